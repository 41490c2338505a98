"""A refusal names the quota, its limit, what is used and when it is reset (M12, S23)."""

from __future__ import annotations

from datetime import datetime

import pytest
from django.test import Client

from billing.errors import QuotaExceededError
from billing.models import Quota, UsageRecord
from common.database import now_plus
from renderjobs.models import RenderJob
from renderjobs.submission import job_cancel
from tests.factories import a_caller, a_job, a_platform
from tests.renderjobs.test_delivery import begun, deliver

pytestmark = pytest.mark.django_db


def a_quota(measure: str, limit: int, **whose) -> Quota:
    return Quota.objects.create(measure=measure, limit=limit, **whose)


def test_m12_images_per_day_count_what_was_accepted_today():
    caller = a_caller()
    a_quota("images_per_day", 5, team=caller.team)
    a_job(caller, n_iter=3)
    with pytest.raises(QuotaExceededError) as refused:
        a_job(caller, n_iter=3)
    assert refused.value.members() | {"resets_at": ""} == {
        "quota": "images_per_day", "whose": "team", "limit": 5, "used": 3, "asked": 3, "resets_at": "",
    }  # fmt: skip
    a_job(caller, n_iter=2)


def test_yesterdays_images_do_not_count():
    caller = a_caller()
    a_quota("images_per_day", 3, team=caller.team)
    a_job(caller, n_iter=3)
    RenderJob.objects.update(created_at=now_plus(-86_400))
    a_job(caller, n_iter=3)


def test_cancelled_images_do_not_count():
    caller = a_caller()
    a_quota("images_per_day", 3, team=caller.team)
    job_cancel(job=a_job(caller, n_iter=3))
    a_job(caller, n_iter=3)


def test_m12_gpu_seconds_per_day():
    caller = a_caller()
    a_quota("gpu_seconds_per_day", 2, team=caller.team)
    a_job(caller)
    deliver(begun())  # 2 s
    with pytest.raises(QuotaExceededError):
        a_job(caller)
    UsageRecord.objects.update(ended_at=now_plus(-86_400))
    a_job(caller)


@pytest.mark.parametrize("measure", ["waiting_jobs", "open_jobs"])
def test_m12_jobs_at_a_time_are_free_again_as_jobs_go_on(measure):
    caller = a_caller()
    a_quota(measure, 1, team=caller.team)
    a_job(caller)
    with pytest.raises(QuotaExceededError) as refused:
        a_job(caller)
    assert refused.value.members()["resets_at"] is None and "Retry-After" not in refused.value.headers()
    deliver(begun())
    a_job(caller)


def test_a_running_job_is_open_and_not_waiting():
    caller = a_caller()
    a_quota("waiting_jobs", 1, team=caller.team)
    a_job(caller, n_iter=2)
    begun()
    a_job(caller)
    a_quota("open_jobs", 2, team=caller.team)
    job_cancel(job=RenderJob.objects.first())
    a_job(caller)
    with pytest.raises(QuotaExceededError):
        a_job(caller)


@pytest.mark.parametrize("whose", ["team", "member", "token", "organisation"])
def test_a_quota_counts_what_it_names_and_nothing_else(whose):
    caller, colleague, stranger = a_caller(), a_caller(user="alan"), a_caller("team-b", "bob")
    named = {
        "team": {"team": caller.team},
        "member": {"team": caller.team, "user": caller.user},
        "token": {"token": caller.token},
        "organisation": {},
    }
    a_quota("open_jobs", 1, **named[whose])
    a_job(caller)
    refused = []
    for other in (a_caller(), colleague, stranger):  # the first is the same member with another token
        try:
            a_job(other)
        except QuotaExceededError as error:
            refused.append((other.user.username, error.members()["whose"]))
    free = {"team": ["ada", "alan"], "member": ["ada"], "token": [], "organisation": ["ada", "alan", "bob"]}
    assert refused == [(name, whose) for name in free[whose]]


def test_m12_the_job_api_answers_with_limit_used_and_reset():
    a_platform()
    caller = a_caller()
    a_quota("images_per_day", 1, team=caller.team)
    client = Client(headers={"Authorization": f"Bearer {caller.token.text}"})
    body = {"kind": "txt2img", "request": {"width": 64, "height": 64, "steps": 4, "n_iter": 2}}
    answer = client.post("/api/v1/jobs", body, content_type="application/json")
    problem = answer.json()
    assert answer.status_code == 429 and problem["code"] == "quota_exceeded"
    assert (problem["quota"], problem["limit"], problem["used"], problem["asked"]) == ("images_per_day", 1, 0, 2)
    reset = datetime.fromisoformat(problem["resets_at"])
    assert (reset.hour, reset.minute) == (0, 0) and 0 < int(answer["Retry-After"]) <= 86_400
    assert (answer["RateLimit-Limit"], answer["RateLimit-Remaining"]) == ("1", "1")
    assert not RenderJob.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_m12_the_sdapi_answers_in_its_own_shape_with_the_same_headers():
    a_platform()
    caller = a_caller()
    a_quota("images_per_day", 0, team=caller.team)
    client = Client(headers={"Authorization": f"Bearer {caller.token.text}"})
    answer = client.post("/sdapi/v1/txt2img", {"prompt": "x"}, content_type="application/json")
    assert answer.status_code == 429 and set(answer.json()) == {"error", "detail", "body", "errors"}
    assert int(answer["Retry-After"]) > 0 and "images_per_day" in answer.json()["detail"]
