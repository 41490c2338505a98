"""A job above a budget's approval threshold waits, with its money held, until who answers for the budget decides."""

from __future__ import annotations

import pytest
from django.test import Client

from accounts.models import Role, User
from billing.models import BudgetPeriod, Hold
from common.errors import ConflictError, ForbiddenError
from operations.invariants import violations
from renderjobs.approvals import job_approve, job_decline
from renderjobs.models import JobApproval, RenderJob
from renderjobs.submission import job_cancel
from renderjobs.tasks import wake_pools
from tests.billing.budgets import a_budget
from tests.factories import a_caller, a_job, a_platform
from tests.renderjobs.test_delivery import begun, deliver

pytestmark = pytest.mark.django_db
ASKS = ((50, "approval"), (100, "block"))


@pytest.fixture
def lead() -> User:
    return a_caller(user="lena", role=Role.LEAD).user


@pytest.fixture
def held(lead) -> RenderJob:
    caller = a_caller()
    a_budget("team", limit="0.1", team=caller.team, thresholds=ASKS)
    return a_job(caller, n_iter=2)


def test_m9_a_job_above_the_threshold_is_held_with_its_money_and_is_not_claimed(held):
    assert held.state == "held" and BudgetPeriod.objects.get().held == Hold.objects.get().amount > 0
    with pytest.raises(AttributeError):
        begun()
    wake_pools()
    assert list(violations(objects=False)) == []


def test_a_job_below_the_threshold_is_not_held(lead):
    caller = a_caller()
    a_budget("team", limit="0.1", team=caller.team, thresholds=ASKS)
    assert a_job(caller).state == "queued" and not JobApproval.objects.exists()


def test_m9_an_approved_job_renders(held, lead):
    job_approve(job=held, user=lead, note="For the trailer.")
    deliver(begun())
    approval = JobApproval.objects.get()
    held.refresh_from_db()
    assert (held.state, approval.approved, approval.decided_by, approval.note) == (
        "running", True, lead, "For the trailer.",
    )  # fmt: skip
    assert list(violations(objects=False)) == []


def test_m9_a_declined_job_is_cancelled_and_its_money_is_free_again(held, lead):
    job_decline(job=held, user=lead)
    held.refresh_from_db()
    assert held.state == "cancelled" and BudgetPeriod.objects.get().held == 0
    assert list(violations(objects=False)) == []


@pytest.mark.parametrize("decide", [job_approve, job_decline])
def test_a_member_does_not_decide(held, decide):
    with pytest.raises(ForbiddenError):
        decide(job=held, user=held.user)
    assert JobApproval.objects.get().approved is None


def test_a_lead_does_not_decide_about_a_budget_of_all_teams(lead):
    a_budget("organisation", limit="0.1", thresholds=ASKS)
    job = a_job(n_iter=2)
    with pytest.raises(ForbiddenError):
        job_approve(job=job, user=lead)
    job_approve(job=job, user=User.objects.create(username="root", is_superuser=True))


def test_a_decision_is_made_once(held, lead):
    job_approve(job=held, user=lead)
    with pytest.raises(ConflictError):
        job_decline(job=held, user=lead)


def test_a_held_job_can_be_cancelled_and_then_not_be_approved(held, lead):
    job_cancel(job=held)
    with pytest.raises(ConflictError, match="cancelled"):
        job_approve(job=held, user=lead)


def test_the_job_api_approves_and_declines(held):
    lead = a_caller(user="lena", role=Role.LEAD)
    client = Client(headers={"Authorization": f"Bearer {lead.token.text}"})
    wrong = client.post(f"/api/v1/jobs/{held.pk}/approve", {"node": "x"}, content_type="application/json")
    answer = client.post(f"/api/v1/jobs/{held.pk}/approve", {"note": "yes"}, content_type="application/json")
    again = client.post(f"/api/v1/jobs/{held.pk}/decline", {}, content_type="application/json")
    assert wrong.status_code == 422 and answer.json()["state"] == "queued" and again.status_code == 409


@pytest.mark.django_db(transaction=True)
def test_the_sdapi_does_not_wait_for_an_approval():
    a_platform()
    caller = a_caller()
    a_budget("team", limit="0.1", team=caller.team, thresholds=ASKS)
    client = Client(headers={"Authorization": f"Bearer {caller.token.text}"})
    body = {"prompt": "x", "width": 64, "height": 64, "n_iter": 2}
    response = client.post("/sdapi/v1/txt2img", body, content_type="application/json")
    assert response.status_code == 402 and not RenderJob.objects.exists()
