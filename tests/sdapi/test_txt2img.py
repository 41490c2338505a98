"""The sdapi door's answers, errors and waiting, on a job whose end the test dictates."""

from __future__ import annotations

import base64
import json

import pytest
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.test import Client

from renderjobs.compat.sdapi import wire
from renderjobs.models import RenderJob
from tests.factories import a_caller, a_checkpoint, a_platform

pytestmark = pytest.mark.django_db


@pytest.fixture
def door() -> Client:
    a_platform()
    return Client(headers={"Authorization": f"Bearer {a_caller().token.text}"})


def post(door: Client, **body: object):
    return door.post("/sdapi/v1/txt2img", json.dumps(body), content_type="application/json")


@pytest.fixture
def worker(monkeypatch):
    """Whoever waits for a job finds it delivered: a worker in no time."""
    from renderjobs.compat.sdapi import views
    from renderjobs.delivery import StoredPicture, image_deliver
    from tests.renderjobs.test_delivery import begun

    def deliver(job_id) -> None:
        if RenderJob.objects.get(pk=job_id).state != "queued":
            return
        batch = begun()
        for image in batch.images:
            key = default_storage.save(
                f"{image.attempt_id}.png", ContentFile(b"picture of seed %d" % image.recipe.seed)
            )
            stored = StoredPicture(key, "0" * 64, 1, 64, 64, f"infotext of seed {image.recipe.seed}")
            image_deliver(batch=batch, image=image, picture=stored, gpu_us=1000)

    async def rendered(job_id) -> None:
        from asgiref.sync import sync_to_async

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
    "hires": ({"enable_hr": True}, 422, ["body", "enable_hr"], "not supported"),
    "an extra network": ({"prompt": "a <lora:b:1>"}, 422, ["body", "prompt"], "not supported"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_field_is_named_and_nothing_is_stored(door, name):
    body, status, location, message = WRONG[name]
    answer = post(door, **{"width": 64, "height": 64, "steps": 3, **body})
    (detail,) = answer.json()["detail"]
    assert answer.status_code == status and detail["loc"] == location and message in detail["msg"]
    assert not RenderJob.objects.exists()


HANDLED = {
    "unknown checkpoint": ({"override_settings": {"sd_model_checkpoint": "nope"}}, 404, "model 'nope' not found"),
    "unknown option": ({"override_settings": {"nope": 1}}, 500, "'nope'"),
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
    from tests.factories import a_job

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


def test_options_that_cannot_be_kept_are_refused_instead_of_forgotten(door):
    same = door.post("/sdapi/v1/options", {"CLIP_stop_at_last_layers": 1}, content_type="application/json")
    other = door.post("/sdapi/v1/options", {"CLIP_stop_at_last_layers": 2}, content_type="application/json")
    assert (same.status_code, same.json(), other.status_code) == (200, None, 501)
