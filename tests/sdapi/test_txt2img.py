"""The sdapi door's answers, errors and waiting, on a job whose end the test dictates."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.test import Client
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from renderjobs.claims import ClaimedImage
from renderjobs.compat.sdapi import views, wire
from renderjobs.delivery import StoredPicture, image_deliver, image_fail
from renderjobs.models import RenderJob
from renderjobs.submission import job_cancel
from tests.factories import a_caller, a_checkpoint, a_job, a_platform
from tests.fakes import verdict_of
from tests.renderjobs.test_delivery import begun

pytestmark = pytest.mark.django_db


@pytest.fixture
def door() -> Client:
    a_platform()
    return Client(headers={"Authorization": f"Bearer {a_caller().token.text}"})


def a_stored_picture(image: ClaimedImage, data: bytes) -> StoredPicture:
    key = default_storage.save(f"{image.attempt_id}.png", ContentFile(data))
    text = f"infotext of index {image.index}"
    return StoredPicture(key, "0" * 64, len(data), 64, 64, text, verdict=verdict_of(image.recipe))


@dataclass(frozen=True)
class Answer:
    status_code: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def info(self) -> dict[str, Any]:
        return json.loads(self.json()["info"])


def post(door: Client, *, header: dict[str, str] | None = None, **body: object) -> Answer:
    return post_to(door, "sdapi/v1/txt2img", body, header)


def post_to(door: Client, path: str, body: object, header: dict[str, str] | None = None) -> Answer:
    """One call, its streamed body read to the end."""
    response = door.post(f"/{path}", json.dumps(body), content_type="application/json", headers=header)

    async def read() -> bytes:
        return b"".join([part async for part in response])

    whole = async_to_sync(read)() if response.streaming else response.content
    assert int(response.headers.get("Content-Length", len(whole))) == len(whole)
    return Answer(response.status_code, response.headers, whole)


@pytest.fixture
def worker(monkeypatch):
    """Whoever waits for a job finds it delivered: a worker in no time."""

    def deliver(job_id) -> None:
        if RenderJob.objects.get(pk=job_id).state != "queued":
            return
        batch = begun()
        for image in batch.images:
            stored = a_stored_picture(image, b"picture of seed %d" % getattr(image.recipe, "seed", 0))
            image_deliver(batch=batch, image=image, picture=stored, gpu_us=1000)

    async def rendered(job_id) -> None:
        await sync_to_async(deliver)(job_id)

    monkeypatch.setattr(views, "job_wait", rendered)


def test_the_answer_has_images_parameters_and_info_in_a1111s_order(door, worker):
    answer = post(door, prompt="a cat", seed=5, n_iter=2, steps=3, width=64, height=64).json()
    info = json.loads(answer["info"])
    assert list(answer) == ["images", "parameters", "info"]
    assert [base64.b64decode(image) for image in answer["images"]] == [b"picture of seed 5", b"picture of seed 6"]
    assert list(answer["parameters"]) == list(wire.TXT2IMG) and answer["parameters"]["sampler_name"] is None
    assert info["all_seeds"] == [5, 6] and info["sampler_name"] == "Euler" and info["index_of_first_image"] == 0
    assert list(info)[:8] == [
        "prompt", "all_prompts", "negative_prompt", "all_negative_prompts", "seed", "all_seeds", "subseed", "all_subseeds"
    ]  # fmt: skip


def test_numbers_as_texts_and_truncated_floats_are_taken_as_pydantic_took_them(door, worker):
    answer = post(door, steps="3", width=64.9, height="64", cfg_scale="5.5", seed="7")
    assert answer.status_code == 200
    assert answer.json()["parameters"] | {"width": 64, "steps": 3, "cfg_scale": 5.5} == answer.json()["parameters"]


def test_send_images_false_answers_without_pictures(door, worker):
    assert post(door, steps=3, width=64, height=64, send_images=False).json()["images"] == []


def test_ignored_fields_are_named_in_a_header(door, worker):
    answer = post(door, steps=3, width=64, height=64, hr_cfg=1, hello=2)
    assert answer.status_code == 200 and answer.headers["X-Ignored-Fields"] == "hr_cfg, hello"


def test_the_same_task_id_waits_for_the_same_job(door, worker):
    first = post(door, steps=3, width=64, height=64, seed=1, force_task_id="task(1)")
    again = post(door, steps=3, width=64, height=64, seed=1, force_task_id="task(1)")
    assert first.headers["X-Job-Id"] == again.headers["X-Job-Id"] and RenderJob.objects.count() == 1
    assert first.json()["images"] == again.json()["images"]


@pytest.mark.parametrize(
    "field", [{"override_settings": {"sd_model_checkpoint": "other"}}, {"sd_model_checkpoint": "other.safetensors"}]
)
def test_the_checkpoint_is_taken_wherever_clients_name_it(door, worker, field):
    a_checkpoint("other")
    info = json.loads(post(door, steps=3, width=64, height=64, **field).json()["info"])
    assert info["sd_model_name"] == "other"


WRONG = {
    "text for a number": ({"steps": "abc"}, 422, ["body", "steps"], "value is not a valid integer"),
    "list for a text": ({"prompt": ["a", "b"]}, 422, ["body", "prompt"], "str type expected"),
    "width 0": ({"width": 0}, 422, ["body", "width"], "accepted are 16 to 8192"),
    "height 100000": ({"height": 100_000}, 422, ["body", "height"], "accepted are 16 to 8192"),
    "steps -1": ({"steps": -1}, 422, ["body", "steps"], "accepted are 1 to 1000"),
    "steps 10000": ({"steps": 10_000}, 422, ["body", "steps"], "accepted are 1 to 1000"),
    "batch_size 1000000": ({"batch_size": 10**6}, 422, ["body", "batch_size"], "accepted are 1 to 1000"),
    "too many at once": ({"n_iter": 200}, 422, ["body", "n_iter"], "at most 100"),
    "a list within styles": ({"styles": ["a", []]}, 422, ["body", "styles", 1], "str type expected"),
    "a file format nobody has": (
        {"override_settings": {"samples_format": "bmp"}}, 422, ["body", "override_settings", "samples_format"], "accepted are",
    ),
    "no text for a checkpoint": (
        {"alwayson_scripts": {"sd_model_checkpoint": 5}}, 422, ["body", "alwayson_scripts", "sd_model_checkpoint"],
        "str type expected",
    ),
    "looks of a grid": (
        {"save_images": True, "override_settings": {"n_rows": 1}}, 422, ["body", "override_settings", "n_rows"], "1",
    ),
    "a long task id": ({"force_task_id": "t" * 121}, 422, ["body", "force_task_id"], "at most 120"),
    "a hires pass without size": ({"enable_hr": True, "hr_scale": 0.01}, 422, ["body", "hr_scale"], "accepted are"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_field_is_named_and_nothing_is_stored(door, name):
    body, status, location, message = WRONG[name]
    answer = post(door, **{"width": 64, "height": 64, "steps": 3, **body})
    (detail,) = answer.json()["detail"]
    assert answer.status_code == status and detail["loc"] == location and message in detail["msg"]
    assert not RenderJob.objects.exists()


def test_an_infotext_fills_in_what_the_call_does_not_say(door, worker):
    text = "a red ring\nNegative prompt: blurry\nSteps: 3, Sampler: Euler a, CFG scale: 4, Seed: 77, Size: 64x72"
    info = json.loads(post(door, infotext=text, steps=2).json()["info"])
    assert (info["prompt"], info["negative_prompt"], info["seed"], info["steps"]) == ("a red ring", "blurry", 77, 2)
    assert (info["sampler_name"], info["cfg_scale"], info["height"]) == ("Euler a", 4.0, 72)


def test_png_info_reads_what_a_picture_says(door):
    texts = PngInfo()
    texts.add_text("parameters", "a cat\nSteps: 9, Sampler: Euler a, CFG scale: 7.0, Seed: 5, Size: 64x64")
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG", pnginfo=texts)
    body = {"image": "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()}
    answer = door.post("/sdapi/v1/png-info", body, content_type="application/json").json()
    assert answer["info"].startswith("a cat\nSteps: 9")
    assert (answer["parameters"]["Prompt"], answer["parameters"]["Seed"]) == ("a cat", "5")


def test_png_info_of_no_picture_is_refused_as_a1111_does(door):
    answer = door.post("/sdapi/v1/png-info", {"image": "aGk="}, content_type="application/json")
    assert (answer.status_code, answer.json()["detail"]) == (500, "Invalid encoded image")


HANDLED = {
    "unknown checkpoint": ({"override_settings": {"sd_model_checkpoint": "nope"}}, 404, "model 'nope' not found"),
    "unknown option": ({"override_settings": {"nope": 1}}, 500, "'nope'"),
    "a control module that needs weights": (
        {"alwayson_scripts": {"ControlNet": {"args": [{"module": "depth_midas"}]}}},
        422,
        "Module 'depth_midas' needs weights that are not installed here; send its map with module 'none'.",
    ),
    "unknown script": ({"alwayson_scripts": {"nope": {"args": []}}}, 422, "Script 'nope' not found"),
}


@pytest.mark.parametrize("name", HANDLED)
def test_what_a_handler_refuses_has_a1111s_four_keys(door, name):
    body, status, message = HANDLED[name]
    answer = post(door, width=64, height=64, steps=3, **body)
    assert answer.status_code == status and set(answer.json()) == {"error", "detail", "body", "errors"}
    assert message in answer.json()["detail"] + answer.json()["errors"] and not RenderJob.objects.exists()


def test_malformed_json_is_answered_as_fastapi_does(door):
    answer = door.post("/sdapi/v1/txt2img", "{nope", content_type="application/json")
    (detail,) = answer.json()["detail"]
    assert answer.status_code == 422 and detail["loc"] == ["body", 1] and detail["type"] == "value_error.jsondecode"
    assert detail["msg"] == "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"


def test_a_missing_body_a_wrong_method_and_an_unknown_path(door):
    assert (
        door.post("/sdapi/v1/txt2img", content_type="application/json", data="").json()["detail"][0]["type"]
        == "value_error.missing"
    )
    refused = door.get("/sdapi/v1/txt2img")
    assert refused.status_code == 405 and refused.json() == {"detail": "Method Not Allowed"}
    assert door.post("/sdapi/v1/nope").json() == {"detail": "Not Found"}


@pytest.mark.parametrize("header", ["", "Bearer nope", "Basic bm9wZTpub3Bl"])
def test_no_usable_token_is_401_in_a1111s_shape(header):
    answer = Client(headers={"Authorization": header}).get("/sdapi/v1/sd-models")
    text = "Incorrect username or password" if header else "Not authenticated"
    assert answer.status_code == 401 and answer.json()["detail"] == text and answer.json()["error"] == "HTTPException"


def test_progress_and_interrupt_concern_the_callers_own_work_only(door):
    other = a_job(a_caller("team-b", "eve"))
    assert door.get("/sdapi/v1/progress").json()["state"]["job_count"] == 0
    assert door.post("/sdapi/v1/interrupt").json() == {}
    other.refresh_from_db()
    assert other.state == "queued"


def test_the_lists_have_the_recorded_fields(door):
    assert set(door.get("/sdapi/v1/sd-models").json()[0]) == {
        "title", "model_name", "hash", "sha256", "filename", "config"
    }  # fmt: skip
    assert [sampler["name"] for sampler in door.get("/sdapi/v1/samplers").json()][:2] == ["DPM++ 2M", "DPM++ SDE"]
    assert door.get("/sdapi/v1/schedulers").json()[2]["label"] == "Karras"
    assert door.get("/sdapi/v1/options").json()["CLIP_stop_at_last_layers"] == 1.0


def test_a_request_of_a_hosted_webui_is_taken_as_its_documents_print_it(door, worker):
    a_checkpoint("deliberate_v2")
    scripts = {"sd_model_checkpoint": "deliberate_v2.safetensors", "sd_vae": "Automatic", "id_task": "14837"}
    body = {"prompt": "girls", "steps": 20, "batch_size": 1, "n_iter": 2, "width": 576, "height": 576}
    answer = post(door, **body, negative_prompt="ugly, out of frame", alwayson_scripts=scripts)
    assert answer.info["sd_model_name"] == "deliberate_v2" and len(answer.json()["images"]) == 2
    assert "X-Ignored-Fields" not in answer.headers and RenderJob.objects.get().tags == {"id_task": "14837"}


def test_a_task_id_of_another_member_is_a_conflict(door, worker):
    other = Client(headers={"Authorization": f"Bearer {a_caller(user='eve').token.text}"})
    assert post(other, steps=3, width=64, height=64, force_task_id="task(1)").status_code == 200
    answer = post(door, steps=3, width=64, height=64, force_task_id="task(1)")
    assert answer.status_code == 409 and "task(1)" in answer.json()["detail"]


def test_a_repeated_idempotency_key_gets_the_same_job_and_says_so(door, worker):
    body, header = {"steps": 3, "width": 64, "height": 64}, {"Idempotency-Key": "k1"}
    first, again = post(door, header=header, **body), post(door, header=header, **body)
    assert again.headers["X-Job-Id"] == first.headers["X-Job-Id"] and again.json()["images"] == first.json()["images"]
    assert again.headers["Idempotency-Replayed"] == "true" and "Idempotency-Replayed" not in first.headers
    assert post(door, header=header, **{**body, "steps": 4}).status_code == 409


@pytest.fixture
def ended(monkeypatch):
    """Whoever waits finds the job ended by the given function of the job."""

    def by(end) -> None:
        async def waited(job_id) -> None:
            await sync_to_async(lambda: end(RenderJob.objects.get(pk=job_id)))()

        monkeypatch.setattr(views, "job_wait", waited)

    return by


def test_a_failed_job_answers_500_with_its_reason_and_its_id(door, ended):
    def fail(job: RenderJob) -> None:
        batch = begun()
        image_fail(batch=batch, image=batch.images[0], code="nan", message="The picture is all NaN.", retryable=False)

    ended(fail)
    answer = post(door, steps=3, width=64, height=64)
    assert answer.status_code == 500 and answer.headers["X-Job-Id"] == str(RenderJob.objects.get().pk)
    assert answer.json() == {"error": "RuntimeError", "detail": "", "body": "", "errors": "The picture is all NaN."}


def test_an_interrupted_job_answers_200_with_what_there_is(door, ended):
    ended(lambda job: job_cancel(job=job))
    answer = post(door, steps=3, width=64, height=64, n_iter=2, seed=5)
    assert answer.status_code == 200 and answer.json()["images"] == [] and answer.info["all_seeds"] == [5, 6]


def test_skip_ends_the_batch_being_rendered_and_leaves_the_others(door, ended):
    def skip(job: RenderJob) -> None:
        batch = begun()
        assert len(batch.images) == 4
        assert door.post("/sdapi/v1/skip").json() is None
        for image in batch.images[2:]:
            image_deliver(batch=batch, image=image, picture=a_stored_picture(image, b"x"), gpu_us=1)

    ended(skip)
    answer = post(door, steps=3, width=64, height=64, n_iter=2, batch_size=2)
    states = RenderJob.objects.get().images.order_by("index").values_list("state", flat=True)
    assert list(states) == ["cancelled", "cancelled", "delivered", "delivered"] and len(answer.json()["images"]) == 2


GRIDS = {
    "three pictures": (3, {}, 4),
    "one picture": (1, {}, 1),
    "one, but wanted": (1, {"grid_only_if_multiple": False}, 2),
    "not to be returned": (3, {"return_grid": False}, 3),
}


@pytest.mark.parametrize("name", GRIDS)
def test_a_saved_batch_has_its_contact_sheet_first_when_a1111_would(door, ended, name):
    count, options, expected = GRIDS[name]

    def draw(job: RenderJob) -> None:
        batch = begun()
        for image in batch.images:
            data = io.BytesIO()
            Image.new("RGB", (64, 64), (image.index * 80, 0, 0)).save(data, "PNG")
            picture = a_stored_picture(image, data.getvalue())
            image_deliver(batch=batch, image=image, picture=picture, gpu_us=1)

    ended(draw)
    answer = post(door, steps=3, width=64, height=64, n_iter=count, save_images=True, override_settings=options)
    pictures, info = answer.json()["images"], answer.info
    assert len(pictures) == len(info["infotexts"]) == expected
    assert info["index_of_first_image"] == expected - count
    if expected > count:
        sheet = Image.open(io.BytesIO(base64.b64decode(pictures[0])))
        assert sheet.size == ((128, 128) if count == 3 else (64, 64))
        assert sheet.info["parameters"] == info["infotexts"][0] == "infotext of index 0"


def test_progress_and_interrupt_are_about_calls_of_this_door(door):
    caller = a_caller(user="bob")
    batch = a_job(caller)
    own = Client(headers={"Authorization": f"Bearer {caller.token.text}"})
    assert own.get("/sdapi/v1/progress").json()["progress"] == 0 and own.post("/sdapi/v1/interrupt").json() == {}
    batch.refresh_from_db()
    assert batch.state == "queued"


def test_a_trailing_slash_is_redirected_as_fastapi_does(door):
    answer = door.get("/sdapi/v1/sd-models/?a=1")
    assert answer.status_code == 307 and answer.headers["Location"] == "/sdapi/v1/sd-models?a=1"


def test_a_body_beyond_the_limit_is_413(door, settings):
    settings.DATA_UPLOAD_MAX_MEMORY_SIZE = 100
    assert post(door, prompt="a" * 200).status_code == 413


def test_without_a_token_a_wrong_body_is_401_and_not_looked_at(door):
    assert post(Client(), steps="abc").status_code == 401


def test_a_token_without_the_scope_is_403(door):
    client = Client(headers={"Authorization": a_caller(scopes=["jobs:read"]).token.text})
    assert client.get("/sdapi/v1/sd-models").status_code == 403


@pytest.mark.parametrize(
    ("value", "status"), [("mini", 200), ("mini.safetensors", 200), (None, 200), ("other", 200), ("nope", 500)]
)
def test_the_option_of_the_checkpoint_knows_its_aliases(door, value, status):
    a_checkpoint("other")
    answer = door.post("/sdapi/v1/options", {"sd_model_checkpoint": value}, content_type="application/json")
    assert answer.status_code == status
    assert status != 500 or answer.json()["errors"] == "model 'nope' not found"


def test_the_whole_of_the_options_can_be_posted_back(door):
    whole = door.get("/sdapi/v1/options").json()
    assert door.post("/sdapi/v1/options", whole, content_type="application/json").status_code == 200


def test_webuiapi_lists_scripts_and_refreshes(door):
    assert "x/y/z plot" in door.get("/sdapi/v1/scripts").json()["txt2img"]
    assert {"x/y/z plot", "loopback"} <= {script["name"] for script in door.get("/sdapi/v1/script-info").json()}
    assert door.post("/sdapi/v1/refresh-checkpoints").json() is None


def test_what_the_checkpoints_family_cannot_do_is_a_wrong_field(door):
    a_checkpoint("flow", family="sd3", is_default=False)
    answer = post(door, sampler_name="DPM++ 2M", override_settings={"sd_model_checkpoint": "flow"})
    (detail,) = answer.json()["detail"]
    assert (answer.status_code, detail["loc"]) == (422, ["body", "sampler_name"])
    assert detail["msg"] == "Stable Diffusion 3 is sampled with Euler, not with 'DPM++ 2M'."
    assert not RenderJob.objects.exists()
