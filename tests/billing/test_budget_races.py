"""Many submitters at the last cent of four budgets: no level is exceeded, not by one digit (M2, I4, F12)."""

from __future__ import annotations

import threading
from decimal import Decimal
from queue import Queue

import pytest
from django.db.models import Sum

from accounts.models import Project
from billing.errors import BudgetExceededError, QuotaExceededError
from billing.models import BudgetPeriod, Hold, LedgerLine, LedgerTransaction, Quota
from operations.invariants import violations
from renderjobs.models import RenderJob
from renderjobs.models.jobs import Source
from renderjobs.submission import job_cancel, job_submit
from tests.billing.budgets import a_budget
from tests.factories import a_caller, a_platform, a_request
from tests.renderjobs.test_races import at_once, work_until_empty

pytestmark = pytest.mark.django_db(transaction=True)
SUBMITTERS, THREADS = 200, 12
"""A thread is a submitter for several turns: the connections of a pool are fewer than submitters."""


def submit_all(callers: list, outcome: dict[str, int]) -> None:
    turns: Queue = Queue()
    for number in range(SUBMITTERS):
        turns.put(number)
    lock = threading.Lock()

    def submit() -> None:
        while not turns.empty():
            try:
                number = turns.get_nowait()
            except Exception:
                return
            caller = callers[number % len(callers)]
            given = {"project": "film"} if number % 2 else {}
            try:
                request = a_request(n_iter=1 + number % 3)
                job_submit(caller=caller, request=request, source=Source.API, tags={"shot": str(number % 2)}, **given)
                result = "accepted"
            except (BudgetExceededError, QuotaExceededError):
                result = "refused"
            with lock:
                outcome[result] += 1

    at_once(*[submit] * THREADS)


@pytest.mark.timeout(600)
def test_m2_two_hundred_submitters_exceed_no_level_by_anything():
    a_platform()
    callers = [a_caller("team-a", "ada"), a_caller("team-a", "alan"), a_caller("team-b", "bob")]
    for caller in callers[::2]:
        Project.objects.create(team=caller.team, name="film")
    team = callers[0].team
    a_budget("tag", limit="0.9", tag_key="shot", tag_value="1")
    a_budget("organisation", limit="1.77")
    a_budget("team", limit="1.11", team=team)
    a_budget("project", limit="0.54", team=team, project=team.projects.get())
    a_budget("member", limit="0.66", team=team, user=callers[0].user)
    outcome = {"accepted": 0, "refused": 0}
    submit_all(callers, outcome)
    assert outcome["accepted"] == RenderJob.objects.count() > 10 and sum(outcome.values()) == SUBMITTERS
    for account in BudgetPeriod.objects.select_related("budget"):
        assert account.spent == 0 and account.held <= account.budget.limit
        assert account.held == sum(hold.amount for hold in account.holds.all())
    # Every level had work enough to be filled; what is left is less than the largest job.
    left = min(account.budget.limit - account.held for account in BudgetPeriod.objects.select_related("budget"))
    assert left < Decimal("0.09")
    at_once(*(lambda name=name: work_until_empty(name) for name in ("w1", "w2", "w3")))
    assert set(BudgetPeriod.objects.values_list("held", flat=True)) == {Decimal(0)}
    assert LedgerLine.objects.aggregate(total=Sum("amount"))["total"] == pytest.approx(0, abs=1e-9)
    charged = LedgerLine.objects.filter(account="team_spend").values_list("amount", flat=True)
    assert sum(charged) == sum(RenderJob.objects.values_list("cost_amount", flat=True))
    assert sum(charged) == sum(Hold.objects.values_list("settled", flat=True))
    assert LedgerTransaction.objects.count() == sum(RenderJob.objects.values_list("images_total", flat=True))
    assert list(violations(objects=False)) == []


def test_i4_cancels_deliveries_and_submissions_at_once_leave_nothing_held():
    a_platform()
    caller = a_caller()
    a_budget("organisation", limit="100")
    a_budget("team", limit="100", team=caller.team)

    def submit_and_cancel() -> None:
        for number in range(6):
            job = job_submit(caller=caller, request=a_request(n_iter=2), source=Source.API).job
            if number % 2:
                job_cancel(job=job)

    at_once(submit_and_cancel, submit_and_cancel, submit_and_cancel, lambda: work_until_empty("w1"))
    work_until_empty("w2")
    spent = sum(RenderJob.objects.values_list("cost_amount", flat=True))
    assert set(BudgetPeriod.objects.values_list("spent", "held")) == {(spent, Decimal(0))}
    assert not Hold.objects.filter(ended_at=None).exists()
    assert list(violations(objects=False)) == []


def test_s23_racing_submitters_do_not_exceed_a_quota():
    a_platform()
    caller = a_caller()
    Quota.objects.create(team=caller.team, measure="images_per_day", limit=31)
    outcome = {"accepted": 0, "refused": 0}

    def submit() -> None:
        for _ in range(5):
            try:
                job_submit(caller=caller, request=a_request(n_iter=2), source=Source.API)
                outcome["accepted"] += 1
            except QuotaExceededError:
                outcome["refused"] += 1

    at_once(*[submit] * 6)
    assert RenderJob.objects.count() == 15
