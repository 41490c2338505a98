"""Money is held on every budget at once or not at all, settled image by image, released at the end."""

from __future__ import annotations

from decimal import Decimal

import pytest
from django.db import IntegrityError, transaction
from django.db.models import Sum
from django.test import Client

from accounts.models import Project
from billing.errors import BudgetExceededError
from billing.models import BudgetNotice, BudgetPeriod, Hold, LedgerLine, LedgerTransaction
from billing.models.money import MOST_AMOUNT
from common.errors import ConflictError
from renderjobs.claims import Claim, leases_expire
from renderjobs.models import RenderJob
from renderjobs.models.jobs import Source
from renderjobs.submission import job_cancel, job_submit
from tests.billing.budgets import a_budget
from tests.factories import a_caller, a_job, a_platform, a_request
from tests.renderjobs.test_delivery import begun, deliver, image_fail, now_plus

pytestmark = pytest.mark.django_db
EACH = Decimal("0.03")
"""Held for one image that was never measured: 30 s at 0.001."""


def figures() -> set[tuple[Decimal, Decimal]]:
    """(spent, held) of every budget's account."""
    return set(BudgetPeriod.objects.values_list("spent", "held"))


def on_five_levels(limit: str = "1"):
    caller = a_caller()
    project = Project.objects.create(team=caller.team, name="film")
    a_budget("organisation", limit=limit)
    a_budget("team", limit=limit, team=caller.team)
    a_budget("project", limit=limit, team=caller.team, project=project)
    a_budget("member", limit=limit, team=caller.team, user=caller.user)
    a_budget("tag", limit=limit, tag_key="shot", tag_value="12", span="total")
    return caller


def submitted(caller, images: int = 1, **more) -> RenderJob:
    a_platform()
    given = {"project": "film", "tags": {"shot": "12"}, **more}
    return job_submit(caller=caller, request=a_request(n_iter=images), source=Source.API, **given).job


def test_m2_the_estimate_is_held_on_all_budgets_that_concern_the_job():
    submitted(on_five_levels(), images=3)
    assert BudgetPeriod.objects.count() == 5 and figures() == {(Decimal(0), 3 * EACH)}
    assert Hold.objects.get().periods.count() == 5


@pytest.mark.parametrize(
    "fields",
    [
        {"scope": "team", "team": "other"},
        {"scope": "member", "team": "own", "user": "other"},
        {"scope": "tag", "tag_key": "shot", "tag_value": "13"},
        {"scope": "organisation", "enabled": False},
    ],
    ids=["another team", "another member", "another tag", "switched off"],
)
def test_a_budget_of_somebody_else_is_not_touched(fields):
    caller, other = a_caller(), a_caller("team-b", "bob")
    named = {"own": caller, "other": other}
    fields = {name: getattr(named[v], name) if v in named else v for name, v in fields.items()}
    a_budget(limit="0", **fields)
    a_job(caller)
    assert not BudgetPeriod.objects.exists()


def test_m3_a_delivered_image_turns_what_is_held_into_what_is_spent():
    submitted(on_five_levels(), images=3)
    deliver(begun())
    assert figures() == {(Decimal("0.002"), 3 * EACH - Decimal("0.002"))}


def test_m3_the_rest_is_released_when_the_last_image_is_delivered():
    submitted(on_five_levels(), images=2)
    batch = begun()
    deliver(batch, 0)
    deliver(batch, 1)
    hold = Hold.objects.get()
    assert figures() == {(Decimal("0.004"), Decimal(0))}
    assert (hold.amount, hold.settled, hold.released) == (2 * EACH, Decimal("0.004"), 2 * EACH - Decimal("0.004"))


def test_the_hold_is_released_when_the_job_is_cancelled():
    job = submitted(on_five_levels(), images=3)
    deliver(begun())
    job_cancel(job=job)
    job_cancel(job=job)
    assert figures() == {(Decimal("0.002"), Decimal(0))} and Hold.objects.get().ended_at


def test_the_hold_is_released_when_the_job_fails():
    submitted(on_five_levels())
    batch = begun()
    image_fail(batch=batch, image=batch.images[0], code="x", message="It broke.", retryable=False, gpu_us=9)
    assert figures() == {(Decimal(0), Decimal(0))}


def test_the_holds_of_jobs_that_kill_their_workers_are_released(settings):
    settings.MAX_ATTEMPTS = 1
    caller = on_five_levels()
    for _ in range(2):
        submitted(caller)
    begun()
    Claim.objects.update(expires_at=now_plus(-1))
    leases_expire()
    assert set(RenderJob.objects.values_list("state", flat=True)) == {"failed"}
    assert figures() == {(Decimal(0), Decimal(0))}


@pytest.mark.parametrize("level", ["organisation", "team", "project", "member", "tag"])
def test_m2_a_job_that_fits_all_but_one_budget_is_refused_and_nothing_is_stored(level):
    caller = on_five_levels()
    from billing.models import Budget

    Budget.objects.filter(scope=level).update(limit=Decimal("0.029999"))
    with pytest.raises(BudgetExceededError) as refused:
        submitted(caller)
    assert refused.value.account.budget.scope == level
    assert not RenderJob.objects.exists() and not Hold.objects.exists() and not BudgetPeriod.objects.exists()


def test_m2_a_job_that_fits_to_the_last_digit_is_accepted():
    submitted(on_five_levels(limit="0.03"))
    assert RenderJob.objects.count() == 1


def test_m2_the_job_api_names_budget_limit_spent_held_and_asked():
    caller = on_five_levels(limit="0.05")
    submitted(caller, images=1)
    deliver(begun())
    job_submit(caller=caller, request=a_request(), source=Source.API)
    client = Client(headers={"Authorization": f"Bearer {caller.token.text}"})
    body = {"kind": "txt2img", "request": {"width": 64, "height": 64, "steps": 4}}
    response = client.post("/api/v1/jobs", body, content_type="application/json")
    problem = response.json()
    assert response.status_code == 402 and response["Content-Type"] == "application/problem+json"
    assert problem["code"] == "budget_exceeded" and problem["budget"]["scope"] == "organisation"
    numbers = {name: problem[name] for name in ("limit", "spent", "held", "asked")}
    assert numbers == {"limit": "0.050000", "spent": "0.002000", "held": "0.030000", "asked": "0.030000"}
    assert RenderJob.objects.count() == 2


@pytest.mark.django_db(transaction=True)
def test_m2_the_sdapi_refuses_in_its_own_shape():
    a_platform()
    caller = a_caller()
    a_budget("team", limit="0", team=caller.team, name="spring")
    client = Client(headers={"Authorization": f"Bearer {caller.token.text}"})
    response = client.post("/sdapi/v1/txt2img", {"prompt": "x"}, content_type="application/json")
    answer = response.json()
    assert response.status_code == 402 and set(answer) == {"error", "detail", "body", "errors"}
    assert "Budget spring" in answer["detail"] and not RenderJob.objects.exists()


def test_a_budget_of_another_currency_is_not_guessed_at():
    caller = a_caller()
    a_budget("team", limit="1000", team=caller.team, currency="EUR")
    with pytest.raises(ConflictError, match="EUR"):
        a_job(caller)


@pytest.mark.parametrize("percent", [33, 100, 1000])
def test_the_largest_budget_there_is_takes_every_job(percent):
    caller = a_caller()
    a_budget("team", limit=str(MOST_AMOUNT), team=caller.team, thresholds=((percent, "block"), (1, "notify")))
    a_job(caller)
    BudgetPeriod.objects.update(spent=MOST_AMOUNT)
    with pytest.raises(BudgetExceededError):
        a_job(caller)


def test_a_soft_budget_warns_once_and_blocks_nothing():
    caller = a_caller()
    a_budget("team", limit="0.05", team=caller.team, thresholds=((50, "notify"), (100, "notify")))
    for _ in range(3):
        a_job(caller)
    assert sorted(BudgetNotice.objects.values_list("threshold__percent", flat=True)) == [50, 100]


def test_a_budget_blocks_where_its_threshold_says():
    caller = a_caller()
    a_budget("team", limit="0.06", team=caller.team, thresholds=((50, "notify"), (150, "block")))
    for _ in range(3):
        a_job(caller)
    with pytest.raises(BudgetExceededError):
        a_job(caller)


def test_s24_an_image_is_never_charged_with_more_than_was_held_for_it():
    caller = on_five_levels(limit="0.06")
    job = submitted(caller, images=2)
    batch = begun()
    deliver(batch, 0, gpu_us=90_000_000)
    deliver(batch, 1)
    job.refresh_from_db()
    assert job.cost_amount == EACH + Decimal("0.002") and figures() == {(job.cost_amount, Decimal(0))}
    beyond = LedgerLine.objects.get(account="beyond_hold")
    assert beyond.amount == Decimal("0.06")
    lines = LedgerTransaction.objects.annotate(total=Sum("lines__amount"))
    assert all(abs(entry.total) < Decimal("1e-9") for entry in lines)


def test_a_months_job_that_ends_in_the_next_stays_in_its_month():
    caller = a_caller()
    a_budget("team", limit="1", team=caller.team)
    job = a_job(caller)
    BudgetPeriod.objects.update(period="2020-01")
    a_job(caller)
    deliver(begun())
    assert job.pk and set(BudgetPeriod.objects.values_list("period", "spent")) > {("2020-01", Decimal("0.002"))}


def test_i5_a_repeated_key_is_answered_although_the_budget_is_used_up():
    a_platform()
    caller = a_caller()
    a_budget("team", limit="0.03", team=caller.team)
    again = {"caller": caller, "request": a_request(), "source": Source.API, "body": 1, "idempotency_key": "k"}
    first = job_submit(**again)
    assert job_submit(**again).replayed and job_submit(**again).job == first.job


def test_i3_a_hold_cannot_be_overdrawn_in_the_database():
    a_job()
    with pytest.raises(IntegrityError), transaction.atomic():
        Hold.objects.update(remaining=Decimal("-0.000001"))


def test_the_job_api_shows_what_is_held_and_the_rate_card():
    caller = a_caller()
    job = a_job(caller, n_iter=2)
    deliver(begun())
    client = Client(headers={"Authorization": f"Bearer {caller.token.text}"})
    shown = client.get(f"/api/v1/jobs/{job.pk}").json()["hold"]
    assert shown == {"amount": "0.060000", "remaining": "0.058000", "currency": "USD"}
    images = client.get(f"/api/v1/jobs/{job.pk}/images").json()["results"]
    assert images[0]["cost"] == {"amount": "0.002000", "currency": "USD", "rate_card": "v1"}
