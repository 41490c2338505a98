"""Pictures given by their address, at every call of the door that takes pictures, with a real server beside it."""

from __future__ import annotations

import io
import ipaddress
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

from renderjobs.compat.sdapi.links import links_in, with_pictures
from renderjobs.models import InputFile, RenderJob
from tests.sdapi.test_txt2img import door, post_to, worker  # noqa: F401

pytestmark = pytest.mark.django_db
SERVED = "127.0.0.2"
SMALL = {"steps": 3, "width": 64, "height": 64}


def a_png(colour: str = "red") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), colour).save(file, "PNG")
    return file.getvalue()


class Handler(BaseHTTPRequestHandler):
    asked: list[str] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"no picture" if self.path == "/text.png" else a_png(self.path[1:].partition(".")[0]))

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def pictures(settings) -> Iterator[str]:
    """The address of a server whose ``/red.png`` is red, from which the installation fetches."""
    server = ThreadingHTTPServer((SERVED, 0), Handler)
    Handler.asked = []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    settings.FETCH_HOSTS = [SERVED]
    settings.FETCH_PRIVATE_NETWORKS = [ipaddress.ip_network(f"{SERVED}/32")]
    settings.FETCH_PORTS = [server.server_address[1]]
    yield f"http://{SERVED}:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


CALLS = {
    "img2img": ("sdapi/v1/img2img", {**SMALL, "init_images": ["{link}"]}),
    "a mask": ("sdapi/v1/img2img", {**SMALL, "init_images": ["{link}"], "mask": "{link}"}),
    "image_link": ("sdapi/v1/img2img", {**SMALL, "init_images": [], "alwayson_scripts": {"image_link": "{link}"}}),
    "image_link as a script": (
        "sdapi/v1/img2img",
        {**SMALL, "restore_faces": True, "alwayson_scripts": {"Image_Link": {"args": ["{link}"]}}},
    ),
    "a control unit": (
        "sdapi/v1/txt2img",
        {**SMALL, "alwayson_scripts": {"controlnet": {"args": [{"module": "canny", "image": "{link}"}]}}},
    ),
    "image_link of a control unit": (
        "sdapi/v1/txt2img",
        {**SMALL, "alwayson_scripts": {"ControlNet": {"args": [{"module": "canny", "image_link": "{link}"}]}}},
    ),
    "a picture and its mask of a control unit": (
        "sdapi/v1/txt2img",
        {**SMALL, "alwayson_scripts": {"controlnet": {"args": [{"image": {"image": "{link}", "mask": "{link}"}}]}}},
    ),
    "extras": ("sdapi/v1/extra-single-image", {"image": "{link}"}),
    "extras of several": ("sdapi/v1/extra-batch-images", {"imageList": [{"data": "{link}", "name": "a"}]}),
    "png-info": ("sdapi/v1/png-info", {"image": " {link}"}),
    "detect": ("controlnet/detect", {"controlnet_module": "canny", "controlnet_input_images": ["{link}"]}),
}


def filled(body: object, link: str) -> object:
    if isinstance(body, dict):
        return {name: filled(value, link) for name, value in body.items()}
    if isinstance(body, list):
        return [filled(value, link) for value in body]
    return body.replace("{link}", link) if isinstance(body, str) else body


@pytest.mark.parametrize(("path", "body"), CALLS.values(), ids=CALLS)
def test_a_picture_may_be_given_by_its_address(door, worker, pictures, path, body):  # noqa: F811
    answer = post_to(door, path, filled(body, f"{pictures}/red.png"))
    assert answer.status_code == 200, answer.body
    assert Handler.asked == ["/red.png"]
    assert path.endswith("png-info") or InputFile.objects.get().size_bytes == len(a_png())


@pytest.mark.parametrize(("path", "body"), CALLS.values(), ids=CALLS)
def test_without_a_setting_nothing_is_fetched(door, path, body):  # noqa: F811
    answer = post_to(door, path, filled(body, "http://pictures.example/red.png"))
    assert (answer.status_code, answer.json()) == (
        500,
        {"error": "HTTPException", "detail": "Requests not allowed", "body": "", "errors": ""},
    )
    assert not RenderJob.objects.exists()


@pytest.mark.parametrize(
    ("link", "detail", "reason"),
    [
        ("http://127.0.0.1:{port}/a.png", "Request to local resource not allowed", "not among those"),
        ("http://other.example/a.png", "Request to local resource not allowed", "Port 80"),
        ("{pictures}/text.png", "Invalid encoded image", ""),
        ("http://127.0.0.2:{port}@127.0.0.1/a.png", "Request to local resource not allowed", "user name"),
    ],
)
def test_what_is_not_fetched_is_said_in_a1111s_words_and_ours(door, pictures, link, detail, reason):  # noqa: F811
    link = link.format(pictures=pictures, port=pictures.rpartition(":")[2])
    answer = post_to(door, "sdapi/v1/img2img", {**SMALL, "init_images": [link]})
    assert answer.status_code == 500 and answer.json()["detail"] == detail and reason in answer.json()["errors"]
    assert not RenderJob.objects.exists()


def test_several_addresses_keep_their_order_and_one_is_fetched_once(door, worker, pictures):  # noqa: F811
    links = [f"{pictures}/{colour}.png" for colour in ("red", "blue", "red")]
    answer = post_to(door, "sdapi/v1/img2img", {**SMALL, "batch_size": 3, "init_images": links})
    assert answer.status_code == 200 and sorted(Handler.asked) == ["/blue.png", "/red.png"]
    given = [row["picture"]["sha256"] for row in RenderJob.objects.get().request["img2img"]]
    assert given[0] == given[2] != given[1]


def test_more_addresses_than_are_fetched_for_one_call_are_refused(door, pictures):  # noqa: F811
    links = [f"{pictures}/{number}.png" for number in range(17)]
    answer = post_to(door, "sdapi/v1/img2img", {**SMALL, "batch_size": 17, "init_images": links})
    assert answer.status_code == 422 and Handler.asked == []


def test_the_echo_has_the_addresses_that_were_sent(door, worker, pictures):  # noqa: F811
    body = {**SMALL, "init_images": [f"{pictures}/red.png"], "include_init_images": True}
    assert post_to(door, "sdapi/v1/img2img", body).json()["parameters"]["init_images"] == body["init_images"]


def test_a_request_without_addresses_is_left_as_it_is():
    values = {
        "init_images": ["aGk="],
        "alwayson_scripts": {"controlnet": {"args": [{"image": "aGk="}, 3]}},
        "image": None,
    }
    assert list(links_in(values)) == [] and with_pictures(values, {}) == values
    assert with_pictures(values, {"http://a/": "eA=="}) == values
