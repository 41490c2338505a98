"""Face restoration: no weights for it are installed, and every way to ask for it says so, stores nothing and charges nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest
from django.test import Client

from renderjobs.compat.sdapi.scripts.axes import axes_of
from renderjobs.models import InputFile, RenderJob, ScriptCall
from tests.engine.recordings import A1111, needs_recordings
from tests.factories import a_caller, a_platform
from tests.sdapi.test_controlnet import picture_text
from tests.sdapi.test_txt2img import post, worker  # noqa: F401

pytestmark = pytest.mark.django_db
SMALL = {"width": 64, "height": 64, "steps": 2}
FACES = [axis.label for axis in axes_of("txt2img")].index("Face restore")
PLOT = {"script_name": "X/Y/Z plot", "script_args": [FACES, "GFPGAN", [], 0, "", [], 0, "", [], False, True]}
EXTRAS = {"image": picture_text(), "resize_mode": 0}
ASKED: dict[str, tuple[str, dict[str, Any], str]] = {
    "the field": ("txt2img", {**SMALL, "restore_faces": True}, "CodeFormer"),
    "the field of img2img": ("img2img", {**SMALL, "restore_faces": 1, "init_images": [picture_text()]}, "CodeFormer"),
    "the field and its model": (
        "txt2img", {**SMALL, "restore_faces": True, "override_settings": {"face_restoration_model": "GFPGAN"}}, "GFPGAN",
    ),
    "the option": ("txt2img", {**SMALL, "override_settings": {"face_restoration": True}}, "CodeFormer"),
    "an infotext": ("txt2img", {"infotext": "a cat\nSteps: 2, Seed: 1, Size: 64x64, Face restoration: GFPGAN"}, "CodeFormer"),
    "extras": ("extra-single-image", {**EXTRAS, "gfpgan_visibility": 0.5}, "GFPGAN"),
    "extras in the other way": ("extra-single-image", {**EXTRAS, "codeformer_visibility": 1}, "CodeFormer"),
    "extras of several pictures": (
        "extra-batch-images", {"imageList": [{"data": picture_text(), "name": "a"}], "gfpgan_visibility": 1}, "GFPGAN",
    ),
}  # fmt: skip


@pytest.fixture
def door() -> Client:
    a_platform()
    return Client(headers={"Authorization": f"Bearer {a_caller().token.text}"})


@pytest.mark.parametrize("name", ASKED)
def test_who_asks_for_restored_faces_is_told_what_is_missing(door, name):
    path, body, missing = ASKED[name]
    answer = door.post(f"/sdapi/v1/{path}", json.dumps(body), content_type="application/json")
    message = f"Restoring faces needs {missing}, which is not installed here."
    assert answer.status_code == 501
    assert answer.json() == {"error": "HTTPException", "detail": message, "body": "", "errors": ""}
    assert not RenderJob.objects.exists() and not InputFile.objects.exists()


def test_a_cell_of_a_plot_that_restores_faces_refuses_the_plot(door):
    answer = post(door, **SMALL, **PLOT)
    assert answer.status_code == 501 and "GFPGAN" in answer.json()["detail"]
    assert not ScriptCall.objects.exists() and not RenderJob.objects.exists()


@pytest.mark.parametrize(
    "body",
    [
        {"restore_faces": False},
        {"restore_faces": None},
        {"restore_faces": False, "override_settings": {"face_restoration": True}},
        {"override_settings": {"face_restoration_model": "GFPGAN", "code_former_weight": 0.2}},
    ],
)
def test_what_is_said_about_faces_without_restoring_any_has_no_effect(door, worker, body):  # noqa: F811
    assert post(door, **SMALL, **body).status_code == 200


@needs_recordings
def test_restorers_are_listed_as_a1111_lists_them_without_their_weights(door):
    recorded = json.loads((A1111 / "api" / "get_face-restorers.json").read_text())["body"]
    assert door.get("/sdapi/v1/face-restorers").json() == recorded
