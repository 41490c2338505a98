"""Which pictures are looked at: what the team's policy demands, what a door demands beyond it, and nothing without a filter."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from django.test import Client

from assets.models import Access, Asset, AssetKind
from gpuworker.contract.safety import MODES, strictest
from renderjobs.models import RenderJob, SafetyPolicy
from renderjobs.models.jobs import Source
from renderjobs.safety import SafetyFilterMissingError
from renderjobs.submission import job_estimate, job_submit
from tests.factories import a_caller, a_checkpoint, a_platform, a_request, an_eas_service
from tests.sdapi.test_controlnet import picture_text

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def platform() -> None:
    a_platform()


def a_filter(**changes: object) -> Asset:
    kind = {"kind": AssetKind.SAFETY_FILTER, "family": "safety_checker", "is_default": False}
    return a_checkpoint("watchful", **{**kind, **changes})


def policy(mode: str) -> None:
    SafetyPolicy.objects.update_or_create(team=a_caller().team, defaults={"mode": mode})


def submitted(**of_request: object) -> RenderJob:
    return job_submit(caller=a_caller(), request=a_request(**of_request), source=Source.API).job


@pytest.mark.parametrize("team", MODES)
@pytest.mark.parametrize("asked", MODES)
def test_the_strictest_demand_counts(team, asked):
    weights = a_filter()
    policy(team)
    job = submitted(safety=asked)
    mode = strictest([team, asked])
    check = job.lock["recipe"]["safety"]
    assert job.request["safety"] == mode
    assert check is None if mode == "off" else (check["mode"], check["weights"]["sha256"]) == (mode, weights.sha256)


def test_a_service_with_the_filter_blocks_what_its_calls_draw_and_no_others():
    a_filter()
    service, caller = an_eas_service(safety_filter=True), a_caller()
    through = job_submit(caller=replace(caller, through=service), request=a_request(), source=Source.API).job
    beside = job_submit(caller=caller, request=a_request(), source=Source.API).job
    assert (through.request["safety"], beside.request["safety"]) == ("refuse", "off")


def test_another_teams_policy_is_its_own():
    a_filter()
    policy("refuse")
    job = job_submit(caller=a_caller("team-b", "bob"), request=a_request(), source=Source.API).job
    assert job.lock["recipe"]["safety"] is None


@pytest.mark.parametrize("lost", [{"access": Access.TEAMS}, {"state": "retired"}], ids=["not this team's", "retired"])
def test_without_a_filter_nothing_is_accepted_or_stored(lost):
    policy("blur")
    a_filter(**lost)
    for attempt in (submitted, lambda: job_estimate(caller=a_caller(), request=a_request(), lane=1)):
        with pytest.raises(SafetyFilterMissingError, match="import_asset FOLDER --kind safety_filter"):
            attempt()
    assert not RenderJob.objects.exists()


DOORS = {
    "the job API": ("/api/v1/jobs", {"kind": "txt2img", "request": {"prompt": "a"}}, "detail"),
    "txt2img": ("/sdapi/v1/txt2img", {"prompt": "a", "width": 64, "height": 64}, "detail"),
    "img2img": ("/sdapi/v1/img2img", {"init_images": [picture_text()], "width": 64, "height": 64}, "detail"),
    "OpenAI's": ("/v1/images/generations", {"prompt": "a", "size": "512x512"}, "error"),
}


@pytest.mark.parametrize("door", DOORS)
def test_each_door_says_what_is_missing(door):
    policy("refuse")
    path, body, place = DOORS[door]
    client = Client(headers={"Authorization": f"Bearer {a_caller().token.text}"})
    answer = client.post(path, json.dumps(body), content_type="application/json")
    said = json.dumps(answer.json()[place])
    assert answer.status_code == 501 and "none is installed" in said and not RenderJob.objects.exists()


def test_callers_cannot_choose_a_mode():
    client = Client(headers={"Authorization": f"Bearer {a_caller().token.text}"})
    body = {"kind": "txt2img", "request": {"prompt": "a", "safety": "off"}}
    answer = client.post("/api/v1/jobs", json.dumps(body), content_type="application/json")
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "#/request/safety")
