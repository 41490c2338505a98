"""`/options` as every caller's own: read back, taken into account below each call's own options, seen by nobody else."""

from __future__ import annotations

import json
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.test import Client

from assets.models import Asset
from renderjobs.models import OptionProfile, RenderJob
from tests.engine.recordings import A1111, needs_recordings
from tests.factories import a_caller, a_checkpoint, a_platform

pytestmark = pytest.mark.django_db
OPTIONS = "/sdapi/v1/options"


def client_of(**caller: Any) -> Client:
    return Client(headers={"Authorization": f"Bearer {a_caller(**caller).token.text}"})


@pytest.fixture
def door() -> Client:
    a_platform()
    return client_of()


def post(client: Client, values: Any, path: str = OPTIONS) -> Any:
    return client.post(path, values, content_type="application/json")


def submitted(client: Client, monkeypatch, **body: Any) -> dict[str, Any]:
    """The canonical request of a call; the wait for its end is left out."""

    async def no_wait(_: object) -> None:
        await sync_to_async(RenderJob.objects.update)(state="cancelled")

    monkeypatch.setattr("renderjobs.compat.sdapi.views.job_wait", no_wait)
    answer = post(client, {"prompt": "x", "width": 64, "height": 64, **body}, "/sdapi/v1/txt2img")
    assert answer.status_code == 200, answer.content
    return RenderJob.objects.latest("id").request


def test_what_is_set_is_read_back(door):
    assert post(door, {"CLIP_stop_at_last_layers": 2, "eta_noise_seed_delta": 31337}).json() is None
    options = door.get(OPTIONS).json()
    assert (options["CLIP_stop_at_last_layers"], options["eta_noise_seed_delta"]) == (2, 31337)


@pytest.mark.django_db(transaction=True)
def test_calls_take_what_is_set_and_their_own_options_win(monkeypatch):
    a_platform()
    door = client_of()
    post(door, {"CLIP_stop_at_last_layers": 2, "eta_noise_seed_delta": 7})
    assert submitted(door, monkeypatch)["clip_skip"] == 2
    own = submitted(door, monkeypatch, override_settings={"CLIP_stop_at_last_layers": 3})
    assert (own["clip_skip"], own["ensd"]) == (3, 7)


@pytest.mark.django_db(transaction=True)
def test_a_chosen_checkpoint_is_that_of_further_calls(monkeypatch):
    a_platform()
    a_checkpoint("other", is_default=False)
    door = client_of()
    post(door, {"sd_model_checkpoint": "other"})
    options = door.get(OPTIONS).json()
    assert options["sd_model_checkpoint"].startswith("other.safetensors [")
    assert submitted(door, monkeypatch)["checkpoint"] == options["sd_model_checkpoint"]


@pytest.mark.django_db(transaction=True)
def test_a_chosen_checkpoint_that_is_gone_gives_way_to_the_default(monkeypatch):
    a_platform()
    a_checkpoint("other", is_default=False)
    door = client_of()
    post(door, {"sd_model_checkpoint": "other"})
    Asset.objects.filter(name="other").update(state="retired")
    assert door.get(OPTIONS).json()["sd_model_checkpoint"].startswith("mini.safetensors [")
    assert submitted(door, monkeypatch)["checkpoint"] == ""


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("restore", "kept"), [(True, {}), (False, {"eta_noise_seed_delta": 7}), (None, {"eta_noise_seed_delta": 7})]
)
def test_overrides_that_are_not_restored_stay_the_callers_options(monkeypatch, restore, kept):
    a_platform()
    door, overrides = client_of(), {"eta_noise_seed_delta": 7, "CLIP_stop_at_last_layers": 1}
    submitted(door, monkeypatch, override_settings=overrides, override_settings_restore_afterwards=restore)
    assert (OptionProfile.objects.values_list("values", flat=True).first() or {}) == kept


def test_c3_nobody_elses_options_change(door):
    mate, rival = client_of(user="bob"), client_of(team="rivals", user="eve")
    post(door, {"CLIP_stop_at_last_layers": 2})
    assert [one.get(OPTIONS).json()["CLIP_stop_at_last_layers"] for one in (mate, rival)] == [1, 1]


def test_setting_twice_keeps_one_row_and_a_default_takes_it_back(door):
    for value in (2, 3, 1):
        post(door, {"CLIP_stop_at_last_layers": value})
    assert OptionProfile.objects.get().values == {}


REFUSED = {
    "an unknown option": ({"nope": 1}, 500, "'nope'"),
    "an unknown checkpoint": ({"sd_model_checkpoint": "nope"}, 500, "model 'nope' not found"),
    "what this version has not": ({"face_restoration": True}, 501, "needs CodeFormer, which is not installed"),
}


@pytest.mark.parametrize(("values", "status", "words"), REFUSED.values(), ids=REFUSED)
def test_one_option_that_is_refused_keeps_none(door, values, status, words):
    answer = post(door, {"CLIP_stop_at_last_layers": 2, **values})
    assert answer.status_code == status and words in answer.content.decode()
    assert not OptionProfile.objects.filter(values__CLIP_stop_at_last_layers=2).exists()


def test_a_value_no_call_could_be_made_with_is_passed_over_and_named(door):
    answer = post(door, {"CLIP_stop_at_last_layers": "x", "eta_noise_seed_delta": 5})
    assert (answer.status_code, answer["X-Ignored-Fields"]) == (200, "CLIP_stop_at_last_layers")
    assert OptionProfile.objects.get().values == {"eta_noise_seed_delta": 5}


def recorded(*names: str) -> list[str]:
    return [name for name in names if (A1111 / "api" / f"{name}.json").is_file()]


@needs_recordings
@pytest.mark.parametrize(
    "name",
    recorded("post_options_bad_ckpt", "post_options_bad_type", "post_options_fix", "post_options_set",
             "post_options_unknown", "post_reload", "post_unload", "post_interrogate_empty", "get_extensions"),
)  # fmt: skip
def test_recorded_answers_are_given_again(door, name):
    case = json.loads((A1111 / "api" / f"{name}.json").read_text())
    request = case["request"]
    answer = (
        door.get(request["path"]) if request["method"] == "GET" else post(door, request["body"] or {}, request["path"])
    )
    assert (answer.status_code, answer.json()) == (case["status"], case["body"])


@needs_recordings
def test_start_flags_have_the_recorded_names():
    a_platform()
    case = json.loads((A1111 / "api" / "get_cmd-flags.json").read_text())
    assert client_of().get("/sdapi/v1/cmd-flags").json().keys() == case["body"].keys()


@pytest.mark.parametrize("path", ["create/embedding", "create/hypernetwork", "train/embedding", "train/hypernetwork"])
def test_training_is_refused_with_the_reason(door, path):
    answer = post(door, {}, f"/sdapi/v1/{path}")
    assert answer.status_code == 501 and "Training is not part" in answer.json()["detail"]


def test_a_picture_is_not_put_into_words(door):
    from tests.sdapi.test_controlnet import picture_text

    answer = post(door, {"image": picture_text()}, "/sdapi/v1/interrogate")
    assert answer.status_code == 501 and answer.json()["detail"] == "Interrogation is not installed here."


def test_embeddings_that_do_not_fit_the_chosen_checkpoint_are_listed_as_skipped(door):
    for name, width, encoders in (("fits", 768, 1), ("wide", 1024, 1), ("double", 2048, 2)):
        metadata = {"shape": width, "vectors": 2, "encoders": encoders}
        a_checkpoint(name, kind="embedding", is_default=False, metadata=metadata)
    a_checkpoint("large", is_default=False, family="sdxl")
    before = door.get("/sdapi/v1/embeddings").json()
    assert set(before["loaded"]) == {"fits"} and set(before["skipped"]) == {"wide", "double"}
    assert before["loaded"]["fits"] == {
        "step": None, "sd_checkpoint": None, "sd_checkpoint_name": None, "shape": 768, "vectors": 2,
    }  # fmt: skip
    post(door, {"sd_model_checkpoint": "large"})
    assert set(door.get("/sdapi/v1/embeddings").json()["loaded"]) == {"double"}
