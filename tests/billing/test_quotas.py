"""A refusal names the quota, its limit, what is used and when it is reset (M12, S23)."""

from __future__ import annotations

import re
from datetime import datetime

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from accounts.authentication import caller_of
from accounts.models import User
from billing.errors import QuotaExceededError
from billing.models import Hold, Measure, Quota, RequestCount, UsageRecord
from billing.quotas import uses_of
from common.database import now_plus
from fleet.services import worker_register
from renderjobs.claims import microbatch_claim
from renderjobs.models import EasFrame, RenderImage, RenderJob
from renderjobs.submission import job_cancel
from tests.billing.budgets import a_budget, named_by
from tests.eas.test_requests import put, results, work_off
from tests.factories import a_caller, a_job, a_platform, a_pool, an_eas_service
from tests.meta.test_routes import handshake
from tests.renderjobs.test_delivery import begun, deliver
from tests.renderjobs.test_races import at_once

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("stopped_clock")]


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
    a_quota("open_jobs", 1, **named_by(whose, caller))
    a_job(caller)
    refused = []
    for other in (a_caller(), colleague, stranger):  # the first is the same member with another token
        try:
            a_job(other)
        except QuotaExceededError as error:
            refused.append((other.user.username, error.members()["whose"]))
    free = {"team": ["ada", "alan"], "member": ["ada"], "token": [], "organisation": ["ada", "alan", "bob"]}
    assert refused == [(name, whose) for name in free[whose]]


def test_m12_gpu_seconds_per_month_are_reset_with_the_month():
    caller = a_caller()
    a_quota("gpu_seconds_per_month", 2, team=caller.team)
    a_job(caller)
    deliver(begun())  # 2 s
    UsageRecord.objects.update(ended_at=now_plus(-1))
    with pytest.raises(QuotaExceededError) as refused:
        a_job(caller)
    reset = refused.value.resets_at
    assert (reset.day, reset.hour, refused.value.used) == (1, 0, 2) and reset > refused.value.now
    UsageRecord.objects.update(ended_at=now_plus(-32 * 86_400))
    a_job(caller)


def test_m12_queued_images_are_those_that_no_worker_has_begun():
    caller = a_caller()
    a_quota("queued_images", 4, team=caller.team)
    a_job(caller, n_iter=4)
    with pytest.raises(QuotaExceededError) as refused:
        a_job(caller)
    assert (refused.value.used, refused.value.asked) == (4, 1)
    batch = begun()
    a_job(caller, n_iter=len(batch.images))
    for position in range(len(batch.images)):
        deliver(batch, position)
    with pytest.raises(QuotaExceededError):
        a_job(caller)


def test_a_held_job_is_queued_and_a_paused_one_too():
    caller = a_caller()
    a_budget("team", limit="0", team=caller.team, thresholds=((100, "approval"),))
    quota = a_quota("queued_images", 2, team=caller.team)
    assert a_job(caller, n_iter=2).state == "held"
    assert uses_of([quota])[0].used == 2


def running_at_once(*names: str) -> list[int]:
    """How many pictures each of the workers gets."""
    pool = a_pool()
    batches = [
        microbatch_claim(worker_id=worker_register(name=name, pool=pool, device="cpu").pk, pool_id=pool.pk)
        for name in names
    ]
    return [len(batch.images) if batch else 0 for batch in batches]


def test_m12_more_images_than_may_run_wait_and_others_go_on():
    caller, stranger = a_caller(), a_caller("team-b", "bob")
    quota = a_quota("running_images", 3, team=caller.team)
    job = a_job(caller, n_iter=10)
    a_job(stranger, n_iter=2, steps=3)
    assert running_at_once("w1", "w2", "w3") == [3, 2, 0]
    assert uses_of([quota])[0].used == 3
    job_cancel(job=job, indices=[0])
    assert running_at_once("w3", "w4") == [1, 0]


def test_running_images_of_several_quotas_share_a_pass_as_far_as_each_allows():
    caller, colleague = a_caller(), a_caller(user="alan")
    a_quota("running_images", 4, team=caller.team)
    a_quota("running_images", 1, token=caller.token)
    a_job(caller, n_iter=3)
    a_job(colleague, n_iter=6)
    assert running_at_once("w1", "w2") == [4, 0]
    held = RenderImage.objects.filter(state="claimed").values_list("job__user__username", flat=True)
    assert sorted(held) == ["ada", "alan", "alan", "alan"]


def test_a_job_is_refused_where_nothing_may_run():
    caller = a_caller()
    a_quota("running_images", 0)
    with pytest.raises(QuotaExceededError) as refused:
        a_job(caller)
    assert refused.value.members()["quota"] == "running_images" and not RenderJob.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_s23_racing_workers_take_no_more_images_than_may_run():
    caller = a_caller()
    a_quota("running_images", 5)
    a_job(caller, n_iter=40)
    at_once(*(lambda name=name: running_at_once(name) for name in ("w1", "w2", "w3", "w4")))
    assert RenderImage.objects.filter(state="claimed").count() == 5


def client_of(caller) -> Client:
    return Client(headers={"Authorization": f"Bearer {caller.token.text}"})


@pytest.mark.parametrize("whose", ["team", "member", "token", "organisation"])
def test_s23_requests_per_minute_are_counted_for_whom_the_quota_names(whose):
    a_platform()
    caller, colleague, stranger = a_caller(), a_caller(user="alan"), a_caller("team-b", "bob")
    a_quota("requests_per_minute", 2, **named_by(whose, caller))
    assert [client_of(caller).get("/api/v1/jobs").status_code for _ in range(3)] == [200, 200, 429]
    others = [client_of(one).get("/api/v1/jobs").status_code for one in (a_caller(), colleague, stranger)]
    expected = {"team": [429, 429, 200], "member": [429, 200, 200], "token": [200] * 3, "organisation": [429] * 3}
    assert others == expected[whose]
    RequestCount.objects.update(minute=now_plus(-60))
    assert client_of(caller).get("/api/v1/jobs").status_code == 200


def test_s23_a_refused_request_counts_on_no_quota_and_says_when_the_next_minute_begins():
    a_platform()
    caller = a_caller()
    a_quota("requests_per_minute", 100, team=caller.team)
    a_quota("requests_per_minute", 1, token=caller.token)
    client = client_of(caller)
    client.get("/api/v1/jobs")
    answer = client.get("/api/v1/jobs")
    body = answer.json()
    assert answer.status_code == 429 and answer["Content-Type"] == "application/problem+json"
    assert (body["quota"], body["whose"], body["limit"], body["used"]) == ("requests_per_minute", "token", 1, 1)
    assert datetime.fromisoformat(body["resets_at"]).second == 0 and 1 <= int(answer["Retry-After"]) <= 60
    assert sorted(RequestCount.objects.values_list("requests", flat=True)) == [1, 1]


def test_one_who_is_only_looked_at_again_sends_no_request():
    caller = a_caller()
    a_quota("requests_per_minute", 1, team=caller.team)
    header = f"Bearer {caller.token.text}"
    assert [caller_of(header, gated=gated) is not None for gated in (True, False)] == [True, True]
    assert RequestCount.objects.get().requests == 1


def test_a_token_without_such_a_quota_costs_no_statement_more():
    a_platform()
    caller = a_caller()
    client, counts = client_of(caller), []
    for whose in ({"token": a_caller("team-b", "bob").token}, {"token": caller.token}):
        client.get("/api/v1/jobs")
        with CaptureQueriesContext(connection) as captured:
            client.get("/api/v1/jobs")
        counts.append(len(captured))
        a_quota("requests_per_minute", 99, **whose)
    assert counts[0] == counts[1]


DOORS = {
    "job API": ("post", "/api/v1/jobs", "application/problem+json"),
    "sdapi": ("post", "/sdapi/v1/txt2img", "application/json"),
    "agent scheduler": ("get", "/agent-scheduler/v1/queue", "application/json"),
    "OpenAI": ("post", "/v1/images/generations", "application/json"),
    "EAS queue": ("post", "/api/predict/sd_async", "text/plain; charset=utf-8"),
    "EAS call": ("post", "/api/predict/sd_sync/sdapi/v1/txt2img", "text/plain; charset=utf-8"),
    "models": ("get", "/api/v1/models", "application/problem+json"),
    "tus": ("post", "/api/v1/uploads", "application/problem+json"),
}


@pytest.mark.django_db(transaction=True)
def test_s23_every_door_refuses_a_request_too_many_in_its_own_shape():
    a_platform()
    caller = a_caller()
    an_eas_service("sd_async")
    an_eas_service("sd_sync", edition="standard")
    a_quota("requests_per_minute", 0, team=caller.team)
    for door, (method, address, kind) in DOORS.items():
        answer = getattr(client_of(caller), method)(address, {"prompt": "x"}, content_type="application/json")
        said = answer.content.decode()
        assert answer.status_code == 429 and answer["Content-Type"] == kind, (door, said)
        assert "requests_per_minute" in said and " is 0; 0 is used and 1 was asked for; it is reset at " in said, door
        assert answer["Retry-After"] == "40" and answer["RateLimit-Limit"] == "0", door
        assert not RenderJob.objects.exists() and not EasFrame.objects.exists(), door


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("door", ["job API", "sdapi", "OpenAI", "EAS call"])
def test_m12_every_door_that_takes_jobs_names_quota_limit_used_and_reset(door):
    a_platform()
    caller = a_caller()
    an_eas_service("sd_sync", edition="standard")
    _, address, _ = DOORS[door]
    body = {"kind": "txt2img", "request": {"prompt": "x"}} if door == "job API" else {"prompt": "x"}
    for measure in ("images_per_day", "queued_images", "stored_bytes", "open_jobs"):
        Quota.objects.all().delete()
        a_quota(measure, 0, team=caller.team)
        answer = client_of(caller).post(address, body, content_type="application/json")
        said = answer.content.decode()
        assert answer.status_code == 429 and answer["RateLimit-Limit"] == "0", said
        assert re.search(
            rf"The quota {measure} of team-a is 0; 0 is used and \d+ was asked for; it is (reset at|free again)", said
        )
        assert not RenderJob.objects.exists() and not Hold.objects.exists(), measure


def test_m12_a_queued_request_that_does_not_fit_is_told_so_in_its_result():
    a_platform()
    service = an_eas_service()
    a_quota("images_per_day", 0, team=service.team)
    put(service)
    work_off()
    (frame,) = results(service)
    said = frame["data"]["parameters"]
    assert frame["tags"]["lastCode"] == "429" and said["status"] == 429
    assert "images_per_day of team-a is 0; 0 is used and 1 was asked for; it is reset at " in said["error_msg"]
    assert not RenderJob.objects.exists() and not Hold.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_s23_a_call_of_a_service_is_one_request():
    a_platform()
    service = an_eas_service("sd_sync", edition="standard")
    a_quota("requests_per_minute", 99, team=service.team)
    client = Client(headers={"Authorization": service.token.text})
    assert client.get("/api/predict/sd_sync/sdapi/v1/options").status_code == 200
    assert RequestCount.objects.get().requests == 1


@pytest.mark.django_db(transaction=True)
def test_s23_a_watcher_too_many_is_refused_before_it_is_connected(settings):
    settings.ALLOWED_HOSTS = ["localhost"]
    service = an_eas_service()
    a_quota("requests_per_minute", 1, team=service.team)
    assert [handshake(host="localhost", authorization=service.token.text) for _ in range(2)] == [101, 429]


@pytest.mark.django_db(transaction=True)
def test_s23_racing_requests_are_let_in_exactly_as_many_as_fit():
    a_platform()
    caller = a_caller()
    a_quota("requests_per_minute", 7, team=caller.team)
    a_quota("requests_per_minute", 100, token=caller.token)
    said: list[int] = []
    at_once(*[lambda: said.extend(client_of(caller).get("/api/v1/jobs").status_code for _ in range(4))] * 5)
    assert sorted(said) == [200] * 7 + [429] * 13
    assert set(RequestCount.objects.values_list("requests", flat=True)) == {7}


def test_m12_the_api_shows_limit_used_and_reset_beforehand():
    caller = a_caller()
    a_quota("images_per_day", 5, team=caller.team)
    a_quota("open_jobs", 3, token=caller.token)
    a_quota("open_jobs", 3, team=a_caller("team-b", "bob").team)
    a_job(caller, n_iter=2)
    first, second = client_of(caller).get("/api/v1/quotas").json()["results"]
    assert datetime.fromisoformat(first.pop("resets_at")).hour == 0
    assert first == {"quota": "images_per_day", "whose": "team", "limit": 5, "used": 2, "left": 3}
    assert second == {"quota": "open_jobs", "whose": "token", "limit": 3, "used": 1, "left": 2, "resets_at": None}
    without = a_caller(scopes=["jobs:read"])
    assert client_of(without).get("/api/v1/quotas").status_code == 403


def test_every_measure_is_counted_in_a_bounded_number_of_statements():
    caller, seen = a_caller(), []
    a_job(caller)
    for many in (1, 20):
        Quota.objects.bulk_create(
            Quota(measure=measure, limit=9, team=caller.team, enabled=measure != "requests_per_minute")
            for measure in Measure.values
            for _ in range(many)
        )
        quotas = list(Quota.objects.all())
        with CaptureQueriesContext(connection) as captured:
            assert len(uses_of(quotas)) == len(quotas)
        seen.append(len(captured))
    assert seen[0] == seen[1] <= 14


@pytest.fixture
def root() -> Client:
    client = Client()
    client.force_login(User.objects.create_superuser("root"))
    return client


def test_m12_the_teams_page_and_the_list_show_what_is_used(root):
    caller, stranger = a_caller(), a_caller("team-b", "bob")
    a_quota("images_per_day", 5, team=caller.team)
    a_quota("open_jobs", 9, team=caller.team, user=caller.user)
    a_quota("open_jobs", 77, team=stranger.team)
    a_job(caller, n_iter=2)
    page = root.get(reverse("admin:accounts_team_change", args=[caller.team.pk])).content.decode()
    assert "images_per_day" in page.lower().replace(" ", "_") and ">77<" not in page
    cells = re.findall(r"field-used.*?readonly[^>]*>\s*(\d+)", page, re.S)
    assert cells == ["2", "1"]
    shown = root.get(reverse("admin:billing_quota_changelist"))
    assert [quota.use.used for quota in shown.context["cl"].result_list] == [2, 1, 0]
    statements = []
    for _ in range(2):
        with CaptureQueriesContext(connection) as captured:
            root.get(reverse("admin:billing_quota_changelist"))
        statements.append(len(captured))
        Quota.objects.bulk_create(Quota(measure="open_jobs", limit=1, team=caller.team) for _ in range(30))
    assert statements[0] == statements[1]


def test_a_team_with_quotas_can_be_saved_on_its_page(root):
    caller = a_caller()
    quota = a_quota("open_jobs", 9, team=caller.team)
    address = reverse("admin:accounts_team_change", args=[caller.team.pk])
    form = root.get(address).context["adminform"].form
    inlines = root.get(address).context["inline_admin_formsets"]
    body = {"name": form.initial["name"], "title": "New title"}
    for part in inlines:
        for row in (part.formset.management_form, *part.formset.initial_forms):
            body |= {row.add_prefix(name): row[name].value() for name in row.fields if row[name].value() is not None}
    answer = root.post(address, body)
    assert answer.status_code == 302, answer.context["errors"] if answer.context else answer
    caller.team.refresh_from_db()
    assert caller.team.title == "New title" and Quota.objects.get() == quota


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
