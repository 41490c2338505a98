"""Failed attempts, loads and idle time cost money that is on no team's bill; the report shows all of it (M7, J9)."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import pytest
from django.utils import timezone

from billing.allocation import idle_settle, spread
from billing.models import LedgerLine, LedgerTransaction, RateCard, UsageRecord
from billing.reports import Period, unallocated, usage_by
from common.database import now_plus
from fleet.models import Worker, WorkerDay
from fleet.services import worker_register, worker_seen, worker_stopped
from renderjobs.claims import Claim, leases_expire
from renderjobs.delivery import image_fail, image_waste, load_record
from tests.factories import a_caller, a_job, a_pool, a_rate_card
from tests.renderjobs.test_delivery import begun, deliver

pytestmark = pytest.mark.django_db
ALWAYS = Period(start=datetime(2000, 1, 1, tzinfo=UTC), end=datetime(2100, 1, 1, tzinfo=UTC))
SECOND = 1_000_000


def costs(period: Period = ALWAYS) -> dict[tuple[str, str | None], Decimal]:
    return {(row["cost"], row["team"]): row["amount"] for row in unallocated(period)}


def of_team(caller) -> Period:
    return Period(start=ALWAYS.start, end=ALWAYS.end, team_ids=[caller.team.pk])


def failed_once(gpu_us: int = 3 * SECOND) -> None:
    batch = begun()
    image_fail(batch=batch, image=batch.images[0], code="x", message="It broke.", retryable=True, gpu_us=gpu_us)


def test_m7_a_failed_attempt_is_a_line_of_its_own_and_on_nobodys_bill():
    job = a_job()
    failed_once()
    deliver(begun())
    job.refresh_from_db()
    (row,) = usage_by(["team"], start=ALWAYS.start, end=ALWAYS.end)
    assert job.cost_amount == row["amount"] == Decimal("0.002") and row["images"] == 1
    assert costs() == {("failed_attempts", None): Decimal("0.003")}


def test_m7_time_stopped_by_a_cancel_is_overhead():
    a_job()
    batch = begun()
    for _ in range(2):
        image_waste(batch=batch, image=batch.images[0], gpu_us=SECOND)
    assert costs() == {("failed_attempts", None): Decimal("0.001")}


def test_m7_the_time_of_a_lost_worker_is_overhead():
    a_job(n_iter=2)
    begun()
    Claim.objects.update(created_at=now_plus(-50), expires_at=now_plus(-10))  # last renewed 40 s ago
    leases_expire()
    waste = UsageRecord.objects.filter(outcome="lost").values_list("gpu_us", flat=True)
    assert [round(us / SECOND) for us in waste] == [5, 5]
    assert costs()["failed_attempts", None] == pytest.approx(Decimal("0.01"), abs=Decimal("0.0001"))


def test_a_worker_that_told_its_time_before_it_was_given_up_is_counted_once():
    a_job()
    batch = begun()
    Claim.objects.update(created_at=now_plus(-50), expires_at=now_plus(-10))
    image_waste(batch=batch, image=batch.images[0], gpu_us=SECOND)
    leases_expire()
    assert UsageRecord.objects.get().outcome == "stopped" and LedgerTransaction.objects.count() == 1


def test_m7_a_load_is_a_line_of_its_own_written_once():
    a_job()
    batch = begun()
    for _ in range(2):
        load_record(batch=batch, load_us=4 * SECOND)
    assert costs() == {("model_loads", None): Decimal("0.004")}


def test_m11_idle_time_is_what_is_left_of_a_workers_day():
    a_rate_card()
    pool, yesterday = a_pool(), timezone.now() - timedelta(days=1)
    worker = worker_register(name="w1", pool=pool, device="cpu")
    WorkerDay.objects.create(worker=worker, pool=pool, day=yesterday.date(), alive_us=100 * SECOND)
    a_job()
    deliver(begun(), gpu_us=30 * SECOND)
    UsageRecord.objects.update(ended_at=yesterday)
    assert (idle_settle(), idle_settle()) == (1, 0)
    entry = LedgerTransaction.objects.get(kind="overhead")
    assert entry.gpu_us == 70 * SECOND and entry.occurred_at.date() == yesterday.date()
    assert costs()["idle_time", None] == Decimal("0.07")
    spent = sum(LedgerLine.objects.exclude(account="render_revenue").values_list("amount", flat=True))
    assert spent == Decimal("0.1")  # the card's clock times its rate


def test_a_day_that_is_not_over_is_not_settled():
    a_rate_card()
    worker = worker_register(name="w1", pool=a_pool(), device="cpu")
    WorkerDay.objects.create(worker=worker, pool=a_pool(), day=timezone.now().date(), alive_us=1)
    assert idle_settle() == 0


def test_a_day_without_a_card_waits_for_one():
    worker = worker_register(name="w1", pool=a_pool(), device="cpu")
    day = timezone.now().date() - timedelta(days=1)
    WorkerDay.objects.create(worker=worker, pool=a_pool(), day=day, alive_us=SECOND)
    assert idle_settle() == 0
    a_rate_card()
    assert idle_settle() == 1


def test_a_worker_lives_from_one_sign_of_life_to_the_next(stopped_clock):
    worker = worker_register(name="w1", pool=a_pool(), device="cpu")
    Worker.objects.update(last_seen_at=now_plus(-5))
    worker_seen(worker_id=worker.pk, loaded_checkpoint_sha256="")
    assert WorkerDay.objects.get().alive_us == 5 * SECOND
    Worker.objects.update(last_seen_at=now_plus(-3600))
    worker_stopped(worker_id=worker.pk)
    assert WorkerDay.objects.get().alive_us == 5 * SECOND


def test_a_life_over_midnight_is_split(monkeypatch):
    worker = worker_register(name="w1", pool=a_pool(), device="cpu")
    midnight = datetime(2026, 5, 2, tzinfo=UTC)
    Worker.objects.update(last_seen_at=midnight - timedelta(seconds=2))
    monkeypatch.setattr("fleet.services.database_now", lambda: midnight + timedelta(seconds=3))
    worker_seen(worker_id=worker.pk, loaded_checkpoint_sha256="")
    assert list(WorkerDay.objects.values_list("day", "alive_us")) == [
        (date(2026, 5, 1), 2 * SECOND), (date(2026, 5, 2), 3 * SECOND),
    ]  # fmt: skip


def with_placement(placement: str) -> tuple:
    """Two teams: one spent 0.002, the other 0.001 and caused 0.003 of waste."""
    card = RateCard(name="v1", valid_from=datetime(2020, 1, 1, tzinfo=UTC), placement=placement)
    card.save()
    from billing.models import RatePrice
    from billing.ratecards import draft_publish

    RatePrice.objects.create(card=card, per_gpu_second=Decimal("0.001"))
    draft_publish(card=card)
    good, bad = a_caller("team-a", "ada"), a_caller("team-b", "bob")
    a_job(good)
    deliver(begun(), key="good.png")
    a_job(bad)
    failed_once()
    deliver(begun(), key="bad.png", gpu_us=SECOND)
    return good, bad


@pytest.mark.parametrize(
    ("placement", "all_teams", "good_team", "bad_team"),
    [
        ("pool", {None: "0.003"}, {}, {}),
        ("causer", {"team-b": "0.003"}, {}, {"team-b": "0.003"}),
        ("proportional", {"team-a": "0.002", "team-b": "0.001"}, {"team-a": "0.002"}, {"team-b": "0.001"}),
    ],
)
def test_m7_the_rate_cards_policy_places_what_nobody_is_charged_for(placement, all_teams, good_team, bad_team):
    good, bad = with_placement(placement)
    for period, expected in ((ALWAYS, all_teams), (of_team(good), good_team), (of_team(bad), bad_team)):
        assert {team: f"{amount:f}".rstrip("0") for (_, team), amount in costs(period).items()} == expected


@pytest.mark.parametrize(
    ("amount", "weights", "expected"),
    [
        ("0.000010", ["1", "1", "1"], ["0.000004", "0.000003", "0.000003"]),
        ("1", ["2", "1"], ["0.666667", "0.333333"]),
        ("5", ["0"], []),
    ],
)
def test_parts_of_a_cost_sum_to_it_to_the_last_digit(amount, weights, expected):
    parts = spread(Decimal(amount), [Decimal(weight) for weight in weights])
    assert [f"{part:f}" for part in parts] == expected
    assert not expected or sum(parts) == Decimal(amount)


def test_what_goes_beyond_the_hold_is_shown_as_unallocated():
    a_job()
    deliver(begun(), gpu_us=50 * SECOND)
    assert costs() == {("beyond_hold", None): Decimal("0.02")}
