"""OpenAI's images API: bodies, answers, streams and errors in its shapes, on a job whose end the test dictates."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import threading
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client
from PIL import Image

from renderjobs.compat.openai import views
from renderjobs.compat.openai.urls import ROUTES
from renderjobs.delivery import StoredPicture, image_deliver, image_fail
from renderjobs.models import RenderJob
from renderjobs.request import RenderRequest
from renderjobs.submission import job_cancel
from tests.factories import a_caller, a_checkpoint, a_platform
from tests.renderjobs.test_delivery import begun

pytestmark = pytest.mark.django_db
GENERATIONS, EDITS = "/v1/images/generations", "/v1/images/edits"
PICTURE = base64.b64encode(b"a picture").decode()


@pytest.fixture
def door() -> Client:
    a_platform()
    return Client(headers={"Authorization": f"Bearer {a_caller().token.text}"})


@pytest.fixture
def ended(monkeypatch):
    """Whoever waits finds the job ended by the given function of the job."""

    def by(end: Any) -> None:
        async def waited(job_id: Any) -> None:
            await sync_to_async(lambda: end(RenderJob.objects.get(pk=job_id)))()

        monkeypatch.setattr(views, "job_wait", waited)

    return by


def draw(job: RenderJob) -> None:
    if job.state != "queued":
        return
    batch = begun()
    for image in batch.images:
        key = default_storage.save(f"{image.attempt_id}.png", ContentFile(b"a picture"))
        image_deliver(batch=batch, image=image, picture=StoredPicture(key, "0" * 64, 9, 64, 96, ""), gpu_us=1)


@pytest.fixture
def worker(ended) -> None:
    ended(draw)


def read(answer: Any) -> bytes:
    async def whole() -> bytes:
        return b"".join([part async for part in answer])

    return async_to_sync(whole)() if answer.streaming else answer.content


def post(door: Client, *, headers: dict[str, str] | None = None, **body: Any) -> Any:
    return door.post(GENERATIONS, json.dumps(body), content_type="application/json", headers=headers)


def png(mode: str, size: tuple[int, int] = (64, 96), hole: bool = False) -> SimpleUploadedFile:
    picture = Image.new(mode, size, "red")
    if hole:
        picture.putpixel((1, 1), (0, 0, 0, 0))
    file = io.BytesIO()
    picture.save(file, "PNG")
    return SimpleUploadedFile("a.png", file.getvalue(), "image/png")


def made() -> RenderRequest:
    return RenderRequest.from_json(RenderJob.objects.get().request)


def test_a_generation_is_a_job_and_answers_with_its_pictures(door, worker):
    answer = post(door, prompt="a red circle", n=2, size="64x96", model="mini")
    body, job = json.loads(read(answer)), RenderJob.objects.get()
    assert answer.status_code == 200 and answer.headers["X-Job-Id"] == str(job.pk) and job.source == "openai"
    assert body["data"] == [{"b64_json": PICTURE}] * 2 and body["created"] == int(job.created_at.timestamp())
    assert (body["size"], body["output_format"], body["quality"], body["background"]) == (
        "64x96", "png", "medium", "opaque",
    )  # fmt: skip
    assert body["usage"] == {
        "input_tokens": 3,
        "input_tokens_details": {"text_tokens": 3, "image_tokens": 0},
        "output_tokens": 12,
        "total_tokens": 15,
    }
    assert (made().width, made().height, made().n_iter, made().steps) == (64, 96, 2, 25)


def test_pictures_come_as_addresses_when_they_are_asked_for_so(door, worker):
    body = json.loads(read(post(door, prompt="x", size="64x64", response_format="url")))
    path = body["data"][0]["url"].removeprefix("http://testserver")
    assert b"".join(Client().get(path)) == b"a picture"


@pytest.mark.parametrize(("family", "side"), [("sd1", 512), ("sdxl", 1024)])
def test_the_size_is_the_models_own_when_none_is_given(door, worker, family, side):
    a_checkpoint("chosen", family=family, is_default=False)
    post(door, prompt="x", model="chosen")
    assert (made().width, made().height) == (side, side)


@pytest.mark.parametrize(("quality", "steps"), [("low", 12), ("high", 40), ("hd", 40)])
def test_quality_is_the_number_of_steps(door, worker, quality, steps):
    post(door, prompt="x", size="64x64", quality=quality)
    assert made().steps == steps


def test_files_are_of_the_format_that_was_asked_for(door, worker):
    post(door, prompt="x", size="64x64", output_format="jpeg", output_compression=60)
    assert (made().samples_format, made().jpeg_quality) == ("jpeg", 60)


def test_what_these_models_have_beyond_openais_can_be_given(door, worker):
    post(door, prompt="x # no comment", size="64x64", negative_prompt="blurry", seed=7, steps=3, cfg_scale=5)
    assert (made().prompt, made().negative_prompt, made().seed, made().steps, made().cfg_scale) == (
        "x # no comment", "blurry", 7, 3, 5.0,
    )  # fmt: skip


def test_an_edit_begins_from_the_picture_and_has_its_size(door, worker):
    answer = door.post(EDITS, {"prompt": "bluer", "image": png("RGB", (70, 101))})
    assert json.loads(read(answer))["data"] == [{"b64_json": PICTURE}]
    (given,) = made().img2img
    assert (made().kind, made().width, made().height, made().denoising_strength) == ("img2img", 64, 96, 0.75)
    assert given.inpaint is None and (given.picture.width, given.picture.height) == (70, 101)
    assert json.loads(read(door.post(EDITS, {"prompt": "bluer", "image": png("RGB")})))["usage"]["input_tokens"] == 8


def test_an_edit_may_change_what_its_mask_leaves_transparent(door, worker):
    door.post(EDITS, {"prompt": "x", "image[]": png("RGB"), "mask": png("RGBA", hole=True)})
    job = RenderJob.objects.get()
    inpaint = made().img2img[0].inpaint
    stored = job.inputs.get(sha256=inpaint.mask.sha256)
    with default_storage.open(stored.file_key) as file, Image.open(file) as mask:
        assert mask.getpixel((1, 1)) == 255 and mask.getpixel((2, 2)) == 0
    assert made().denoising_strength == 1.0 and not inpaint.full_res


def test_a_transparent_picture_is_its_own_mask(door, worker):
    door.post(EDITS, {"prompt": "x", "image": png("RGBA", hole=True)})
    assert made().img2img[0].inpaint is not None


def streamed(answer: Any) -> list[dict[str, Any]]:
    found = []
    for block in read(answer).decode().strip().split("\n\n"):
        name, data = block.split("\n")
        body = json.loads(data.removeprefix("data: "))
        assert name == f"event: {body['type']}"
        found.append(body)
    return found


def test_a_stream_ends_with_the_pictures(door, worker):
    answer = post(door, prompt="abcd", size="64x96", n=2, stream=True)
    first, second = streamed(answer)
    assert answer.headers["Content-Type"] == "text/event-stream" and first["type"] == "image_generation.completed"
    assert first["b64_json"] == PICTURE and second["usage"]["output_tokens"] == 6 and first["size"] == "64x96"


def test_a_stream_shows_as_many_previews_as_were_asked_for(door, monkeypatch):
    looks = iter([None, b"one", b"one", b"two"])
    left = threading.Semaphore(0)

    def look(job_id: Any) -> bytes | None:
        found = next(looks)  # one more than is wanted would be an error
        if found == b"two":
            left.release()
        return found

    async def waited(job_id: Any) -> None:
        while not left.acquire(blocking=False):
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)  # a look beyond the last one would come now
        await sync_to_async(lambda: draw(RenderJob.objects.get(pk=job_id)))()

    monkeypatch.setattr(views, "job_wait", waited)
    monkeypatch.setattr(views, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(views, "newest_preview", look)
    *partial, completed = streamed(post(door, prompt="x", size="64x64", stream=True, partial_images=2))
    assert [event["type"] for event in partial] == ["image_generation.partial_image"] * 2
    assert [base64.b64decode(event["b64_json"]) for event in partial] == [b"one", b"two"]
    assert [event["partial_image_index"] for event in partial] == [0, 1]
    assert completed["type"] == "image_generation.completed"


def test_an_error_in_a_stream_is_an_event(door, ended):
    ended(lambda job: job_cancel(job=job))
    (event,) = streamed(post(door, prompt="x", size="64x64", stream=True))
    assert (event["type"], event["error"]["code"]) == ("error", "cancelled")


def test_a_failed_job_answers_500_with_its_reason(door, ended):
    def fail(job: RenderJob) -> None:
        batch = begun()
        image_fail(batch=batch, image=batch.images[0], code="nan", message="The picture is all NaN.", retryable=False)

    ended(fail)
    answer = post(door, prompt="x", size="64x64")
    assert answer.status_code == 500 and answer.json()["error"]["type"] == "server_error"
    assert answer.json()["error"]["message"] == "The picture is all NaN." and answer.headers["X-Job-Id"]


def test_a_repeated_key_gets_the_same_pictures_and_no_second_job(door, worker):
    for _ in range(2):
        answer = post(door, prompt="x", size="64x64", headers={"Idempotency-Key": "k"})
        assert answer.status_code == 200
    assert RenderJob.objects.count() == 1 and answer.headers["Idempotency-Replayed"] == "true"
    refused = post(door, prompt="y", size="64x64", headers={"Idempotency-Key": "k"})
    assert refused.status_code == 409 and refused.json()["error"]["type"] == "invalid_request_error"


REFUSED = {
    "no prompt": ({}, 400, "prompt", "missing_required_parameter"),
    "an empty prompt": ({"prompt": " "}, 400, "prompt", "invalid_value"),
    "a prompt that is no text": ({"prompt": ["x"]}, 400, "prompt", "invalid_value"),
    "half a surrogate pair": ({"prompt": "\ud800"}, 400, None, None),
    "a NUL": ({"prompt": "a\0b"}, 400, "prompt", "invalid_value"),
    "an unknown field": ({"prompt": "x", "colour": "red"}, 400, "colour", "unknown_parameter"),
    "too many": ({"prompt": "x", "n": 11}, 400, "n", "invalid_value"),
    "a truth for a number": ({"prompt": "x", "n": True}, 400, "n", "invalid_value"),
    "no size": ({"prompt": "x", "size": "large"}, 400, "size", "invalid_value"),
    "too large a size": ({"prompt": "x", "size": "99999x64"}, 400, "size", "invalid_value"),
    "transparency": ({"prompt": "x", "background": "transparent"}, 400, "background", "invalid_value"),
    "a format": ({"prompt": "x", "output_format": "gif"}, 400, "output_format", "invalid_value"),
    "a model": ({"prompt": "x", "model": "gpt-image-1"}, 404, "model", "model_not_found"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_wrong_is_refused_in_openais_shape_and_nothing_is_stored(door, name):
    body, status, param, code = REFUSED[name]
    answer = post(door, **body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (status, param, code), error
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    assert not RenderJob.objects.exists()


def test_an_edit_without_a_fitting_picture_is_refused(door):
    two = {"image[]": [png("RGB"), png("RGB")]}
    other_size = {"image": png("RGB"), "mask": png("RGBA", (32, 32), hole=True)}
    nothing_open = {"image": png("RGB"), "mask": png("RGBA")}
    text = {"image": SimpleUploadedFile("a.png", b"text")}
    for files, param in (({}, "image"), (two, "image"), (text, "image"), (other_size, "mask"), (nothing_open, "mask")):
        answer = door.post(EDITS, {"prompt": "x", **files})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert door.post(EDITS, "{}", content_type="application/json").status_code == 400
    assert not RenderJob.objects.exists()


def test_malformed_json_a_wrong_method_and_an_unknown_path_have_openais_shape(door):
    answers = [
        door.post(GENERATIONS, "{", content_type="application/json"),
        door.get(GENERATIONS),
        door.get("/v1/nope"),
    ]
    assert [answer.status_code for answer in answers] == [400, 405, 404]
    assert all(set(answer.json()["error"]) == {"message", "type", "param", "code"} for answer in answers)
    assert answers[1].headers["Allow"] == "POST"


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("header", ["", "Bearer nope", "Basic bm9wZTpub3Bl"])
def test_no_usable_token_is_401_on_every_route(path, header):
    client = Client(headers={"Authorization": header})
    answer = client.get(f"/{path}") if path == "v1/models" else client.post(f"/{path}", {})
    assert answer.status_code == 401 and answer.json()["error"]["type"] == "invalid_request_error"


def test_a_token_without_the_scope_is_refused(door):
    caller = a_caller(user="eve")
    caller.token.scopes = ["sdapi"]
    caller.token.save()
    answer = Client(headers={"Authorization": f"Bearer {caller.token.text}"}).get("/v1/models")
    assert answer.status_code == 403 and "jobs:write" in answer.json()["error"]["message"]


def test_n10_models_of_other_teams_are_neither_listed_nor_usable(door):
    a_checkpoint("confidential", is_default=False, access="teams").teams.set([a_caller("rivals", "eve").team])
    assert [model["id"] for model in door.get("/v1/models").json()["data"]] == ["mini"]
    assert post(door, prompt="x", model="confidential").status_code == 404


def test_a_body_beyond_the_limit_is_413(door, settings):
    settings.DATA_UPLOAD_MAX_MEMORY_SIZE = 1000
    for answer in (post(door, prompt="x" * 2000), door.post(EDITS, {"prompt": "x" * 2000, "image": png("RGB")})):
        assert answer.status_code == 413 and answer.json()["error"]["code"] == "request_too_large"
