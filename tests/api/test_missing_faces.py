"""Face restoration is not installed; the job API and the queue of agent-scheduler say so by name, and store nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest
from django.test import Client

from renderjobs.models import InputFile, RenderJob
from tests.factories import a_caller, a_platform
from tests.sdapi.test_controlnet import picture_text

pytestmark = pytest.mark.django_db
EXTRAS = {"imageList": [{"data": picture_text(), "name": "a"}]}
ASKED: dict[str, tuple[str, dict[str, Any], str]] = {
    "the field": ("txt2img", {"restore_faces": True}, "CodeFormer"),
    "the field of img2img": ("img2img", {"restore_faces": True, "init_images": [picture_text()]}, "CodeFormer"),
    "the option": ("txt2img", {"override_settings": {"face_restoration": True}}, "CodeFormer"),
    "extras": ("extras", {**EXTRAS, "gfpgan_visibility": 0.5}, "GFPGAN"),
    "extras in the other way": ("extras", {**EXTRAS, "codeformer_visibility": 1}, "CodeFormer"),
}


@pytest.fixture
def client() -> Client:
    a_platform()
    return Client(headers={"Authorization": f"Bearer {a_caller().token.text}"})


def post(client: Client, path: str, body: Any) -> Any:
    answer = client.post(path, json.dumps(body), content_type="application/json")
    assert not RenderJob.objects.exists() and not InputFile.objects.exists()
    return answer


@pytest.mark.parametrize("path", ["/api/v1/jobs", "/api/v1/jobs/estimate"])
@pytest.mark.parametrize("name", ASKED)
def test_the_job_api_names_what_is_missing(client, name, path):
    kind, request, missing = ASKED[name]
    answer = post(client, path, {"kind": kind, "request": request})
    message = f"Restoring faces needs {missing}, which is not installed here."
    assert (answer.status_code, answer.json()["detail"]) == (422, message)
    assert answer.json()["errors"] == [{"pointer": "#/request", "detail": message}]


def test_the_queue_of_agent_scheduler_names_what_is_missing(client):
    answer = post(client, "/agent-scheduler/v1/queue/txt2img", {"prompt": "a", "restore_faces": True})
    assert (answer.status_code, "CodeFormer" in answer.json()["detail"]) == (501, True)
