"""Charges are taken back: by lines of their own, once, off bill, budgets, pictures and jobs; what was booked stays (M5)."""

from __future__ import annotations

import threading
from datetime import datetime, timedelta
from decimal import Decimal

import pytest
from django.db.models import Sum
from django.test import Client
from django.urls import reverse

from accounts.models import User
from billing.corrections import charges_take_back
from billing.models import BudgetPeriod, Hold, LedgerLine, LedgerTransaction
from billing.reports import Period, shared, unallocated, usage_by
from common.database import database_now
from common.errors import InvalidRequestError
from operations.invariants import violations
from renderjobs.models import RenderImage, RenderJob
from tests.admin.pages import client_of, page
from tests.billing.budgets import a_budget
from tests.common.clocks import clock_moved, quiet_moment
from tests.factories import a_caller, a_job
from tests.renderjobs.test_delivery import begun, deliver
from tests.renderjobs.test_races import at_once

pytestmark = pytest.mark.django_db
PICTURE = Decimal("0.002")
"""Two seconds at 0.001."""


@pytest.fixture
def job() -> RenderJob:
    """Three delivered pictures of a team with a budget."""
    caller = a_caller()
    a_budget("team", limit="1", team=caller.team)
    job = a_job(caller, n_iter=3)
    batch = begun()
    for position in range(3):
        deliver(batch, position, key=f"{position}.png", gpu_us=2_000_000)
    job.refresh_from_db()
    assert job.cost_amount == 3 * PICTURE
    return job


@pytest.fixture
def root() -> User:
    return User.objects.create_superuser("root")


def charges(job: RenderJob) -> list[int]:
    return list(
        LedgerTransaction.objects.filter(kind="charge", job_id=job.pk).order_by("pk").values_list("pk", flat=True)
    )


def around_now() -> dict[str, datetime]:
    return {"start": database_now() - timedelta(days=1), "end": database_now() + timedelta(days=1)}


def spent() -> Decimal:
    return BudgetPeriod.objects.get().spent


def test_m5_one_picture_is_taken_back_with_lines_that_reverse_its_charge(job, root):
    first = charges(job)[0]
    before = list(LedgerLine.objects.order_by("pk").values())
    taken = charges_take_back(entries=[first], reason="the card  was broken", by=root)
    assert (taken.charges, taken.amounts) == (1, {"USD": PICTURE})
    entry = LedgerTransaction.objects.get(kind="reversal")
    assert entry.note == "root: the card was broken" and entry.gpu_us == 0 and entry.team == job.team
    assert dict(entry.lines.values_list("account", "amount")) == {"team_spend": -PICTURE, "taken_back": PICTURE}
    assert list(LedgerLine.objects.order_by("pk").values())[: len(before)] == before
    job.refresh_from_db()
    costs = list(RenderImage.objects.order_by("index").values_list("cost_amount", flat=True))
    assert costs == [0, PICTURE, PICTURE] and job.cost_amount == spent() == 2 * PICTURE
    assert list(violations(objects=False)) == []


def test_m5_a_whole_job_is_taken_back_by_one_of_its_charges(job, root):
    taken = charges_take_back(entries=charges(job)[:1], whole_jobs=True, reason="noise", by=root)
    job.refresh_from_db()
    hold = Hold.objects.get()
    assert taken.charges == 3 and job.cost_amount == spent() == hold.settled == 0 and hold.released == hold.amount
    assert list(violations(objects=False)) == []


def test_a_charge_is_taken_back_once_and_only_charges_are(job, root):
    everything = list(LedgerTransaction.objects.values_list("pk", flat=True))
    assert charges_take_back(entries=[*everything, 0], reason="noise", by=root).charges == 3
    everything = list(LedgerTransaction.objects.values_list("pk", flat=True))
    again = charges_take_back(entries=everything, whole_jobs=True, reason="noise", by=root)
    assert (again.charges, again.amounts) == (0, {}) and spent() == 0
    assert LedgerTransaction.objects.filter(kind="reversal").count() == 3


@pytest.mark.parametrize("reason", ["", " \n\x00", "x" * 201])
def test_without_a_usable_reason_nothing_is_taken_back(job, root, reason):
    with pytest.raises(InvalidRequestError, match="Say why"):
        charges_take_back(entries=charges(job), reason=reason, by=root)
    assert not LedgerTransaction.objects.filter(kind="reversal").exists() and spent() == 3 * PICTURE


def test_a_job_that_goes_on_is_charged_for_what_comes_after(root):
    caller = a_caller()
    a_budget("team", limit="1", team=caller.team)
    job = a_job(caller, n_iter=2)
    batch = begun()
    deliver(batch, 0, key="0.png", gpu_us=2_000_000)
    charges_take_back(entries=charges(job), whole_jobs=True, reason="noise", by=root)
    assert list(violations(objects=False)) == []
    deliver(batch, 1, key="1.png", gpu_us=2_000_000)
    job.refresh_from_db()
    assert (job.state, job.cost_amount) == ("succeeded", PICTURE) == (job.state, spent())
    assert list(violations(objects=False)) == []


def test_reports_show_what_is_left_and_what_was_taken_back_beside_it(job, root):
    charges_take_back(entries=charges(job)[:1], reason="noise", by=root)
    (row,) = usage_by(["team"], **around_now())
    assert (row["images"], row["gpu_us"], row["amount"]) == (3, 6_000_000, 2 * PICTURE)
    (beside,) = unallocated(Period(**around_now()))
    assert (beside["cost"], beside["team"], beside["amount"]) == ("taken_back", None, PICTURE)
    client = Client(headers={"Authorization": f"Bearer {a_caller().token.text}"})
    images = client.get(f"/api/v1/jobs/{job.pk}/images").json()["results"]
    assert [image["cost"]["amount"] for image in images] == ["0.000000", "0.002000", "0.002000"]


def test_m5_what_is_taken_back_later_is_of_the_month_in_which_that_is_done(job, root, monkeypatch):
    charged_in = around_now()
    clock_moved(monkeypatch, quiet_moment() + timedelta(days=70))
    charges_take_back(entries=charges(job), reason="noise", by=root)
    (before,) = usage_by(["team"], **charged_in)
    (after,) = usage_by(["team"], **around_now())
    assert (before["images"], before["amount"]) == (3, 3 * PICTURE)
    assert (after["images"], after["gpu_us"], after["amount"]) == (0, 0, -3 * PICTURE)
    page_of_costs = client_of(root).get(reverse("admin:billing_costs"))
    (row,) = page_of_costs.context["rows"]
    assert (row["amount"], row["share"]) == (-3 * PICTURE, 0) and spent() == 0
    assert list(violations(objects=False)) == []


def test_many_jobs_are_taken_back_with_the_statements_of_one(root, django_assert_max_num_queries):
    jobs = []
    for number in range(12):
        jobs.append(a_job(a_caller()))
        deliver(begun(f"w{number}"), key=f"{number}.png", gpu_us=2_000_000)
    entries = [pk for job in jobs for pk in charges(job)]
    with django_assert_max_num_queries(16):
        assert charges_take_back(entries=entries, reason="noise", by=root).charges == 12
    assert list(violations(objects=False)) == []


def test_overhead_is_shared_by_those_who_spent_more_than_they_got_back():
    row = {"total": Decimal("1"), "gpu_us": 10}
    spent = [(1, "a", Decimal("-2")), (2, "b", Decimal("3"))]
    assert shared(row, spent) == [(1, "a", 0, Decimal(0)), (2, "b", 10, Decimal(1))]


@pytest.mark.django_db(transaction=True)
def test_two_who_take_the_same_charges_back_take_them_back_once(job, root):
    found, taken, lock = charges(job), [], threading.Lock()

    def take_back() -> None:
        done = charges_take_back(entries=found, whole_jobs=True, reason="noise", by=root).charges
        with lock:
            taken.append(done)

    at_once(*[take_back] * 4)
    assert sorted(taken) == [0, 0, 0, 3] and spent() == 0
    assert LedgerLine.objects.aggregate(total=Sum("amount"))["total"] == 0
    assert list(violations(objects=False)) == []


def test_finance_takes_charges_back_in_the_admin_after_saying_why(job):
    client = client_of(User.objects.create_user("fin", is_staff=True, is_finance=True))
    book = page("billing_ledgertransaction", "changelist")
    asked = {"action": "take_back", "_selected_action": charges(job)[:1]}
    form = client.post(book, asked)
    assert form.status_code == 200 and "Reason" in form.content.decode() and spent() == 3 * PICTURE
    refused = client.post(book, {**asked, "confirmed": "yes", "reason": " "})
    assert "Say why" in refused.content.decode() and spent() == 3 * PICTURE
    answer = client.post(book, {**asked, "confirmed": "yes", "reason": "noise", "whole_jobs": "on"}, follow=True)
    assert "Charges taken back: 3 (0.006000 USD)." in answer.content.decode() and spent() == 0
    entry = LedgerTransaction.objects.filter(kind="reversal").first()
    shown = client.get(page("billing_ledgertransaction", "change", entry.pk)).content.decode()
    assert "fin: noise" in shown
    assert (
        "Charges taken back: 0."
        in client.post(book, {**asked, "confirmed": "yes", "reason": "x"}, follow=True).content.decode()
    )
