"""Deployed instances: their log, what a day costs and whose it is, and that nothing is paid for twice (J5, J6, J7)."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from importlib import import_module
from io import StringIO

import pytest
from django.core.management import call_command
from django.db import DatabaseError, connection, transaction
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from accounts.models import Project, Team
from billing.allocation import idle_settle
from billing.deployment_clock import deployment_log
from billing.deployments import deployments_settle, share_of, unsettled
from billing.errors import BudgetExceededError
from billing.holds import budgets_of, concerns
from billing.models import (
    Budget,
    BudgetNotice,
    BudgetPeriod,
    DeploymentDay,
    DeploymentSpan,
    Hold,
    LedgerLine,
    LedgerTransaction,
    RatePrice,
)
from billing.ratecards import rate_card_publish
from billing.reports import Period, unallocated, usage_by
from billing.subjects import Subject
from fleet.models import Pool, WorkerDay
from fleet.services import worker_register
from operations.invariants import violations
from renderjobs.compat.eas.services import service_start, service_stop, service_token_renew
from renderjobs.delivery import image_fail, load_record
from renderjobs.models import EasService
from renderjobs.models.jobs import Source
from renderjobs.submission import job_submit
from tests.billing.budgets import a_budget
from tests.billing.deployed import HOURLY, a_priced_platform, a_service, charged_at, logged, rendered
from tests.factories import a_caller, a_card_of, a_checkpoint, a_pool, a_request
from tests.renderjobs.test_delivery import begun, deliver

pytestmark = pytest.mark.django_db
SECOND, MINUTE, HOUR = 1_000_000, timedelta(minutes=1), timedelta(hours=1)
START = datetime(2021, 5, 3, tzinfo=UTC)
"""A Monday, long settled anywhere but here."""
NOON = START + 12 * HOUR
MAY = Period(start=datetime(2021, 5, 1, tzinfo=UTC), end=datetime(2021, 6, 1, tzinfo=UTC))


def report(*by: str, period: Period = MAY) -> dict[object, Decimal]:
    rows = usage_by(by, start=period.start, end=period.end, team_ids=period.team_ids)
    return {tuple(row[name] for name in by) if len(by) > 1 else row[by[0]]: row["amount"] for row in rows}


def on_the_bill() -> Decimal:
    return sum(LedgerLine.objects.filter(account="team_spend").values_list("amount", flat=True), Decimal(0))


def booked(*accounts: str) -> Decimal:
    return sum(LedgerLine.objects.filter(account__in=accounts).values_list("amount", flat=True), Decimal(0))


def broken_rows() -> list[str]:
    return list(violations(objects=False))


# --- the log ----------------------------------------------------------------------------------------------------------


def spans() -> list[tuple[int, bool]]:
    """Instances, and whether it is so still."""
    return [(span.replicas, span.ended_at is None) for span in DeploymentSpan.objects.order_by("pk")]


def changed(service, **fields) -> None:
    for name, value in fields.items():
        setattr(service, name, value)
    service.save()


def test_a_service_is_logged_when_it_is_made_scaled_stopped_and_started():
    a_priced_platform()
    service = a_service(replicas=2)
    for change in ({"replicas": 3}, {"window": 4}, {"enabled": False}, {"replicas": 1}, {"enabled": True}):
        time.sleep(0.005)  # SQLite's clock has milliseconds
        changed(service, **change)
    service_token_renew(service=service)
    assert spans() == [(2, False), (3, False), (0, False), (1, True)]
    rows = list(DeploymentSpan.objects.order_by("pk"))
    assert all(before.ended_at == after.started_at for before, after in zip(rows, rows[1:], strict=False))
    assert broken_rows() == []


def test_whoever_stops_starts_or_deletes_a_service_stops_and_starts_its_clock():
    a_priced_platform()
    a_service(replicas=2)
    for change in (service_stop, service_stop, service_start):
        time.sleep(0.005)
        change(service=EasService.objects.get())
    assert spans() == [(2, False), (0, False), (2, True)] and broken_rows() == []
    time.sleep(0.005)
    EasService.objects.get().delete()
    assert spans() == [(2, False), (0, False), (2, False), (0, True)]
    assert not EasService.objects.exists() and broken_rows() == []


def test_a_save_of_other_fields_logs_what_the_row_says_and_not_what_the_object_thinks():
    service = a_service(replicas=2)
    stale = type(service).objects.get(pk=service.pk)
    changed(service, replicas=5)
    stale.window = 3
    stale.save(update_fields=["window"])
    assert DeploymentSpan.objects.get(ended_at=None).replicas == 5


def test_a_change_that_is_undone_changes_no_log():
    service = a_service()
    with pytest.raises(RuntimeError), transaction.atomic():
        changed(service, replicas=9)
        raise RuntimeError
    assert spans() == [(1, True)]


def test_what_lasted_no_time_leaves_no_span():
    service = a_service()
    DeploymentSpan.objects.update(started_at=timezone.now() + HOUR)  # the clock went back
    changed(service, replicas=4)
    assert spans() == [(4, True)]


def test_the_database_refuses_to_change_an_ended_span_or_a_settled_day():
    a_priced_platform()
    logged(a_service(), (START, 1), (NOON, 0))
    deployments_settle()
    for rows, change in ((DeploymentSpan.objects.filter(ended_at__isnull=False), {"replicas": 7}),
                         (DeploymentDay.objects.all(), {"billed_us": 7})):  # fmt: skip
        with pytest.raises(DatabaseError, match="append-only"), transaction.atomic():
            rows.update(**change)
        with pytest.raises(DatabaseError, match="append-only"), transaction.atomic():
            rows.delete()


# --- pictures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("edition", ["standard", "api", "cluster"])
def test_j6_a_picture_of_deployed_instances_costs_nothing_and_keeps_its_time(edition):
    a_priced_platform()
    caller = a_caller()
    a_budget("team", limit="0", team=caller.team)
    job = rendered(a_service(edition=edition), caller, NOON, 2 * SECOND)
    hold, (row,) = Hold.objects.get(), usage_by(["service"], start=MAY.start, end=MAY.end)
    assert (job.cost_amount, job.gpu_us, hold.amount, hold.ended_at is None) == (0, 2 * SECOND, 0, False)
    assert (row["service"], row["images"], row["gpu_us"], row["amount"]) == ("sd", 1, 2 * SECOND, 0)
    assert booked("deployed") == Decimal("0.002") == -booked("render_revenue")
    assert unallocated(MAY) == [] and broken_rows() == []


def test_j6_serverless_is_billed_by_generation_time_only():
    a_priced_platform()
    service, caller = a_service(edition="serverless"), a_caller()
    job = rendered(service, caller, NOON, 2 * SECOND)
    logged(service, (START, 3), (NOON, 0))
    assert (deployments_settle(), unsettled(MAY)) == (0, [])
    assert job.cost_amount == Decimal("0.002") and report("service") == {"sd": Decimal("0.002")}


@pytest.mark.parametrize("change", [{"enabled": False}, {}], ids=["stopped", "no price"])
def test_a_picture_is_charged_as_ever_while_no_instances_are_billed(change):
    a_priced_platform(HOURLY if change else None)
    service = a_service()
    changed(service, **change)
    assert rendered(service, a_caller(), NOON, 2 * SECOND).cost_amount == Decimal("0.002")


def test_a_job_that_waited_while_a_price_came_into_force_is_not_charged_beside_the_instances():
    a_priced_platform(None)
    service, caller = a_service(), a_caller()
    budget = a_budget("team", limit="9", team=caller.team)
    job = job_submit(caller=replace(caller, through=service), request=a_request(), source=Source.EAS).job
    assert BudgetPeriod.objects.get(budget=budget).held > 0
    rate_card_publish(
        name="v2", currency="USD", valid_from=datetime(2021, 1, 1, tzinfo=UTC), per_gpu_second=Decimal("0.001"),
        per_instance_hour=HOURLY,
    )  # fmt: skip
    deliver(begun())
    job.refresh_from_db()
    account = BudgetPeriod.objects.get(budget=budget)
    assert (job.state, job.cost_amount, account.held, account.spent) == ("succeeded", 0, 0, 0)
    assert broken_rows() == []


def test_an_estimate_of_deployed_instances_is_nothing_and_fits_an_empty_budget():
    a_priced_platform()
    service = a_service()
    a_budget("team", limit="0", team=service.team)
    client = Client(headers={"Authorization": f"Bearer {service.token.text}"})
    answer = client.post("/api/v1/jobs/estimate", {"kind": "txt2img", "request": {}}, content_type="application/json")
    body = answer.json()
    assert (body["likely"], body["most"], body["fits"]) == ("0.000000", "0.000000", True)


# --- a day ------------------------------------------------------------------------------------------------------------


def test_j6_a_day_costs_instances_times_time_times_price():
    a_priced_platform()
    logged(a_service(), (START + HOUR, 2), (START + 3 * HOUR, 5), (START + 4 * HOUR, 0))
    assert (deployments_settle(), deployments_settle()) == (1, 0)
    assert on_the_bill() == (2 * 2 + 5) * HOURLY and report("service") == {"sd": 9 * HOURLY}
    assert LedgerTransaction.objects.get().gpu_us == 9 * 3600 * SECOND and broken_rows() == []


def test_j6_a_service_that_stops_and_starts_within_an_hour_and_a_price_that_changes_within_it_cost_their_minutes():
    a_priced_platform(Decimal("6"))
    a_card_of(RatePrice(per_gpu_second=1, per_instance_hour=12), name="v2", valid_from=NOON + 50 * MINUTE)
    times = (NOON + 7 * MINUTE, 1), (NOON + 20 * MINUTE, 0), (NOON + 45 * MINUTE, 3), (NOON + 59 * MINUTE, 0)
    logged(a_service(), *times)
    assert deployments_settle() == 1
    assert on_the_bill() == Decimal("0.1") * (13 + 3 * 5) + Decimal("0.2") * 3 * 9 and broken_rows() == []


def test_a_night_from_one_month_into_the_next_is_on_two_bills():
    a_priced_platform()
    service, caller = a_service(replicas=2), a_caller()
    last_hours = MAY.end - 2 * HOUR
    before, after = (rendered(service, caller, at, 600 * SECOND) for at in (last_hours, MAY.end))
    logged(service, (last_hours, 2), (MAY.end + 3 * HOUR, 0))
    assert deployments_settle() == 2
    june = Period(start=MAY.end, end=datetime(2021, 7, 1, tzinfo=UTC))
    assert (report("service"), report("service", period=june)) == ({"sd": 4 * HOURLY}, {"sd": 6 * HOURLY})
    assert set(report("job")) == {before.pk, None} and set(report("job", period=june)) == {after.pk, None}
    assert on_the_bill() == 10 * HOURLY and broken_rows() == []


def test_what_a_deleted_service_cost_stays_on_the_bill():
    a_priced_platform()
    service = a_service()
    logged(service, (START, 1), (START + 2 * HOUR, 0))
    service.delete()
    assert deployments_settle() == 1 and report("service") == {"sd": 2 * HOURLY}
    assert [row for row in unsettled(MAY) if row["cost"] == "accrued_deployment"] == [] == broken_rows()


def test_j5_a_day_is_spread_over_its_jobs_by_their_time_and_the_rest_is_nobodys():
    a_priced_platform()
    service, ada, alan = a_service(), a_caller(), a_caller(user="alan")
    Project.objects.create(team=ada.team, name="film")
    one = rendered(service, ada, NOON, 600 * SECOND, 300 * SECOND, project="film", shot="7")
    two = rendered(service, alan, NOON, 900 * SECOND)
    logged(service, (START, 1), (START + HOUR, 0))
    deployments_settle()
    assert on_the_bill() == HOURLY
    assert share_of(one.pk) == share_of(two.pk) == {"USD": Decimal("0.9")}
    assert report("job") == {one.pk: Decimal("0.9"), two.pk: Decimal("0.9"), None: Decimal("1.8")}
    assert report("member") == {"ada": Decimal("0.9"), "alan": Decimal("0.9"), None: Decimal("1.8")}
    assert report("project") == {"film": Decimal("0.9"), None: Decimal("2.7")}
    assert report("tag:shot") == {"7": Decimal("0.9"), None: Decimal("2.7")}
    assert report("model") == {"mini": Decimal("1.8"), "": Decimal("1.8")}
    assert report("service", "day") == {("sd", date(2021, 5, 3)): HOURLY}
    assert broken_rows() == []


def test_jobs_that_took_more_time_than_was_deployed_share_all_of_it():
    a_priced_platform()
    service, caller = a_service(), a_caller()
    jobs = [rendered(service, caller, NOON, us * SECOND) for us in (7, 7, 7)]
    logged(service, (START, 1), (START + timedelta(seconds=1), 0))
    deployments_settle()
    assert sorted(report("job").values()) == [Decimal(0), Decimal("0.000333"), Decimal("0.000333"), Decimal("0.000334")]
    assert sum(share_of(job.pk)["USD"] for job in jobs) == on_the_bill() == Decimal("0.001")


def test_a_job_of_another_day_or_service_or_one_that_paid_itself_has_no_part():
    a_priced_platform(None)
    service, caller = a_service(), a_caller()
    paid = rendered(service, caller, NOON, SECOND)
    rate_card_publish(
        name="v2", currency="USD", valid_from=datetime(2020, 6, 1, tzinfo=UTC), per_gpu_second=Decimal("0.001"),
        per_instance_hour=HOURLY,
    )  # fmt: skip
    others = [rendered(service, caller, NOON - 24 * HOUR, SECOND), rendered(a_service("b"), caller, NOON, SECOND)]
    logged(service, (START, 1), (START + HOUR, 0))
    deployments_settle()
    assert not any(share_of(job.pk) for job in (paid, *others)) and paid.cost_amount > 0
    assert report("job")[None] == HOURLY


def test_a_day_has_the_prices_of_its_hours_and_of_its_pools():
    a_priced_platform(Decimal("1"))
    pool = Pool.objects.create(name="large")
    noon_card = [
        RatePrice(per_gpu_second=1, per_instance_hour=2),
        RatePrice(pool=pool, per_gpu_second=1, per_instance_hour=8),
    ]
    a_card_of(*noon_card, name="v2", valid_from=NOON)
    logged(a_service("a"), (NOON - 2 * HOUR, 1), (NOON + HOUR, 0))
    logged(a_service("b", pool=pool), (NOON - HOUR, 1), (NOON + HOUR, 0))
    deployments_settle()
    assert report("service", "pool") == {("a", "default"): Decimal(1 + 1 + 2), ("b", "large"): Decimal(1 + 8)}
    assert broken_rows() == []


def test_a_card_in_another_currency_makes_lines_in_it():
    a_priced_platform(Decimal("1"))
    rate_card_publish(
        name="v2", currency="EUR", valid_from=NOON, per_gpu_second=Decimal(1), per_instance_hour=Decimal(5)
    )
    service = a_service()
    job = rendered(service, a_caller(), NOON, 1800 * SECOND)
    logged(service, (NOON - HOUR, 1), (NOON + HOUR, 0))
    deployments_settle()
    rows = usage_by(["service"], start=MAY.start, end=MAY.end)
    assert {row["currency"]: row["amount"] for row in rows} == {"USD": 1, "EUR": 5}
    # The job used a quarter of the day's two hours, so a quarter at each price.
    assert share_of(job.pk) == {"EUR": Decimal("1.25"), "USD": Decimal("0.25")}
    assert broken_rows() == []


def test_an_hour_before_there_was_a_price_is_not_billed_and_the_report_says_so():
    a_priced_platform(None)
    card = {"per_gpu_second": Decimal(1), "per_instance_hour": HOURLY}
    rate_card_publish(name="v2", currency="USD", valid_from=NOON, **card)
    logged(a_service(), (NOON - HOUR, 2), (NOON + HOUR, 0))
    for settled in (False, True):
        said = {row["cost"]: (row["gpu_us"], row["amount"]) for row in unsettled(MAY)}
        assert said["unbilled_deployment"] == (2 * 3600 * SECOND, 0)
        assert ("accrued_deployment" in said) is not settled
        assert deployments_settle() == (not settled)
    out = StringIO()
    call_command("usage_report", month="2021-05", by="team,service", format="json", stdout=out)
    lines = {line["cost"]: line for line in json.loads(out.getvalue())}
    assert lines["images"]["deployment"] == lines["images"]["amount"] == "7.200000"
    assert (lines["unbilled_deployment"]["service"], lines["unbilled_deployment"]["gpu_seconds"]) == (
        "sd",
        "7200.000000",
    )
    assert broken_rows() == []


def test_days_are_settled_once_over_and_after_any_silence():
    a_priced_platform()
    logged(a_service(), (NOON, 1), (NOON + 70 * 24 * HOUR, 0))
    assert (deployments_settle(), deployments_settle()) == (71, 0)
    assert on_the_bill() == 70 * 24 * HOURLY and broken_rows() == []


def test_today_is_not_settled_and_shown_as_accrued():
    a_priced_platform()
    service = a_service(replicas=2)
    midnight = timezone.now().replace(hour=0, minute=0, second=0, microsecond=0)
    DeploymentSpan.objects.update(started_at=min(midnight, timezone.now() - timedelta(seconds=1)))
    client = Client(headers={"Authorization": f"Bearer {a_caller(service.team.name).token.text}"})
    assert deployments_settle() == 0
    answer = client.get("/api/v1/usage?group_by=service").json()
    (row,) = answer["deployments"]
    assert answer["results"] == [] and (row["cost"], row["service"]) == ("accrued_deployment", "sd")
    assert 0 < float(row["amount"]) == pytest.approx(row["gpu_seconds"] / 1000, abs=1e-6)
    stranger = Client(headers={"Authorization": f"Bearer {a_caller('team-b', 'eve').token.text}"})
    assert stranger.get("/api/v1/usage?group_by=service").json()["deployments"] == []


@pytest.mark.parametrize("broken", ["_jobs_of", "_book", "_count_in_budgets"])
def test_a_settlement_killed_in_the_middle_leaves_nothing_and_is_made_up_for(monkeypatch, broken):
    a_priced_platform()
    logged(a_service(), (START, 1), (START + 30 * HOUR, 0))

    def killed(*_: object) -> None:
        raise SystemExit

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(f"billing.deployments.{broken}", killed)
        deployments_settle()
    assert not DeploymentDay.objects.exists() and not LedgerTransaction.objects.exists()
    assert deployments_settle() == 2 and on_the_bill() == 30 * HOURLY and broken_rows() == []


def test_a_day_that_another_worker_settled_meanwhile_is_left_alone(monkeypatch):
    a_priced_platform()
    logged(a_service(), (START, 1), (START + HOUR, 0))
    due = import_module("billing.deployments")._due()
    deployments_settle()
    monkeypatch.setattr("billing.deployments._due", lambda: due)
    assert deployments_settle() == 0 and on_the_bill() == HOURLY


# --- budgets ----------------------------------------------------------------------------------------------------------


def test_deployed_instances_are_spent_on_every_budget_that_their_parts_concern():
    a_priced_platform()
    service, ada = a_service(), a_caller()
    project = Project.objects.create(team=ada.team, name="film")
    fields = {
        "organisation": {}, "team": {"team": ada.team}, "project": {"team": ada.team, "project": project},
        "member": {"team": ada.team, "user": ada.user}, "tag": {"tag_key": "shot", "tag_value": "7"},
    }  # fmt: skip
    budgets = {scope: a_budget(scope, limit="99", **values) for scope, values in fields.items()}
    a_budget("team", name="theirs", limit="99", team=a_caller("team-b", "bob").team)
    a_budget("team", name="off", limit="99", team=ada.team, enabled=False)
    rendered(service, ada, NOON, 900 * SECOND, project="film", shot="7")
    rendered(service, a_caller(user="alan"), NOON, 900 * SECOND)
    logged(service, (START, 1), (START + HOUR, 0))
    deployments_settle()
    spent = {account.budget.name: account.spent for account in BudgetPeriod.objects.filter(period="2021-05")}
    assert spent == {"organisation": HOURLY, "team": HOURLY, **dict.fromkeys(("project", "member", "tag"), HOURLY / 4)}
    assert len(budgets) == 5 and broken_rows() == []


def test_what_passes_a_limit_is_spent_noted_and_refuses_jobs_that_cost_something():
    a_priced_platform()
    service, caller = a_service(), a_caller()
    budget = a_budget("team", limit="1", team=caller.team, span="total", thresholds=((50, "notify"), (100, "block")))
    logged(service, (START, 1), (START + HOUR, 0))
    deployments_settle()
    account = BudgetPeriod.objects.get(budget=budget)
    assert account.spent == HOURLY and broken_rows() == []
    assert [notice.job_id for notice in BudgetNotice.objects.all()] == [None, None]
    with pytest.raises(BudgetExceededError):
        job_submit(caller=caller, request=a_request(), source=Source.API)
    changed(service, enabled=True)
    assert rendered(service, caller, NOON, SECOND).cost_amount == 0


def test_a_budget_that_held_something_when_instances_passed_its_limit_is_no_violation():
    a_priced_platform()
    service, caller = a_service(), a_caller()
    a_budget("team", limit="9", team=caller.team, span="total")
    job_submit(caller=caller, request=a_request(), source=Source.API)
    logged(service, (START, 1), (START + 3 * HOUR, 0))
    deployments_settle()
    deliver(begun())
    assert BudgetPeriod.objects.get().spent > 9 and broken_rows() == []


def test_one_rule_says_which_budgets_concern_a_job():
    ada, bob = a_caller(), a_caller("team-b", "bob")
    film, game = (Project.objects.create(team=ada.team, name=name) for name in ("film", "game"))
    for team in (None, ada.team, bob.team):
        a_budget("tag", limit="1", name=f"tag {team}", team=team, tag_key="shot", tag_value="7")
    for number, values in enumerate((
        {"scope": "organisation"}, {"scope": "team", "team": ada.team}, {"scope": "team", "team": bob.team},
        {"scope": "project", "team": ada.team, "project": film}, {"scope": "project", "team": ada.team, "project": game},
        {"scope": "member", "team": ada.team, "user": ada.user}, {"scope": "member", "team": ada.team, "user": bob.user},
        {"scope": "tag", "tag_key": "shot", "tag_value": "8"}, {"scope": "tag", "tag_key": "other", "tag_value": "7"},
    )):  # fmt: skip
        a_budget(limit="1", name=str(number), **values)
    for project_id, tags in ((film.pk, {"shot": "7"}), (None, {}), (None, {"shot": "8", "other": "7"})):
        job = {"job_id": film.pk, "team_id": ada.team.pk, "user_id": ada.user.pk}
        subject = Subject(project_id=project_id, tags=tags, **job)
        candidates = [budget for budget in Budget.objects.order_by("pk") if budget.team_id in (None, ada.team.pk)]
        assert [budget for budget in candidates if concerns(budget, subject)] == budgets_of(subject, "USD")


# --- the cards' clock -------------------------------------------------------------------------------------------------


def test_m11_the_day_of_a_pool_is_its_clock_times_the_rate_and_no_second_is_paid_for_twice():
    """100 s of cards; 60 s deployed, of which pictures took 20, a failure 3 and a load 2; 10 s of pictures of others."""
    a_priced_platform()
    service, caller, pool = a_service(), a_caller(), a_pool()
    yesterday = (timezone.now() - timedelta(days=1)).date()
    day = datetime.combine(yesterday, datetime.min.time(), UTC)
    rendered(service, caller, day + HOUR, 20 * SECOND)
    rendered(None, caller, day + HOUR, 10 * SECOND)
    job_submit(caller=replace(caller, through=service), request=a_request(), source=Source.EAS)
    with charged_at(day + HOUR):
        batch = begun()
        load_record(batch=batch, load_us=2 * SECOND)
        image_fail(batch=batch, image=batch.images[0], code="x", message="x", retryable=False, gpu_us=3 * SECOND)
    worker = worker_register(name="w", pool=pool, device="cpu")
    WorkerDay.objects.create(worker=worker, pool=pool, day=yesterday, alive_us=100 * SECOND)
    logged(service, (day, 1), (day + timedelta(seconds=60), 0))
    assert (idle_settle(), deployments_settle(), idle_settle()) == (1, 1, 0)
    assert -booked("render_revenue") == Decimal("0.1")  # the cards' clock times its rate
    assert booked("team_spend") == Decimal("0.06") + Decimal("0.01") and booked("idle_time") == Decimal("0.03")
    assert booked("deployed") == 0 == booked("failed_attempts", "model_loads")  # paid for what it took
    idle, reserved = (LedgerTransaction.objects.get(event_id__startswith=name).gpu_us for name in ("idle", "reserved"))
    assert (idle, reserved) == (30 * SECOND, 35 * SECOND) and broken_rows() == []


# --- a month ----------------------------------------------------------------------------------------------------------


def a_month_of_editions() -> list[object]:
    """Two teams, three members, three projects, a service of each edition, work beside them, and two currencies."""
    a_priced_platform(Decimal("1.234567"))
    later = START + 7 * 24 * HOUR + 5 * HOUR
    rate_card_publish(
        name="v2", currency="EUR", valid_from=later, per_gpu_second=Decimal("0.0007"), per_instance_hour=Decimal("0.77")
    )
    ada, alan, bob = a_caller(), a_caller(user="alan"), a_caller("team-b", "bob")
    for caller, name in ((ada, "film"), (ada, "game"), (bob, "film")):
        Project.objects.create(team=caller.team, name=name)
    services = [a_service(edition, edition=edition, replicas=number + 1) for number, edition in enumerate(EDITIONS)]
    services.append(a_service("of-team-b", team="team-b"))
    jobs = []
    for day in (0, 3, 8):
        at = NOON + day * 24 * HOUR
        for number, service in enumerate([*services[:4], None]):
            for caller, project in ((ada, "film"), (ada, ""), (alan, "game")):
                times = [1_234_567 * (day + number + 1 + picture) for picture in range(1 + day % 2)]
                jobs.append(rendered(service, caller, at, *times, project=project, shot=project or "none"))
        jobs.append(rendered(services[4], bob, at, 7_654_321, project="film"))
    for number, service in enumerate(services):
        logged(service, (START + number * HOUR, number + 1), (START + 4 * 24 * HOUR, 1), (START + 13 * 24 * HOUR, 0))
    deployments_settle()
    return jobs


EDITIONS = ("standard", "api", "cluster", "serverless")


def the_command_and_the_api_say_the_same() -> None:
    out = StringIO()
    call_command("usage_report", month="2021-05", by="service", format="json", stdout=out, team="team-a")
    lines = [line for line in json.loads(out.getvalue()) if line["cost"] == "images"]
    printed = {(line["service"], line["currency"]): line for line in lines}
    client = Client(headers={"Authorization": f"Bearer {a_caller().token.text}"})
    asked = "group_by=service&from=2021-05-01&to=2021-06-01"
    rows = client.get(f"/api/v1/usage?{asked}").json()["results"]
    assert {(row["service"], row["currency"]) for row in rows} == printed.keys() and len(rows) == len(lines) == 8
    for row in rows:
        line = printed[row["service"], row["currency"]]
        assert (line["amount"], line["deployment"], line["images"]) == (
            row["amount"],
            row["deployment"],
            str(row["images"]),
        )


def test_j7_a_months_sums_by_user_project_service_edition_and_job_are_the_bill_to_the_last_digit():
    jobs = a_month_of_editions()
    bill = {
        currency: sum(LedgerLine.objects.filter(account="team_spend", transaction__currency=currency)
                      .values_list("amount", flat=True))
        for currency in ("USD", "EUR")
    }  # fmt: skip
    assert all(bill.values())
    for by in (["member"], ["project"], ["service"], ["job"], ["team"], ["day"], ["model"], ["tag:shot"], ["image"],
               ["team", "project", "member", "service", "job", "image", "day"]):  # fmt: skip
        rows = usage_by(by, start=MAY.start, end=MAY.end)
        for currency, total in bill.items():
            assert sum(row["amount"] for row in rows if row["currency"] == currency) == total, by
    rows = usage_by(["job"], start=MAY.start, end=MAY.end)
    for job in jobs:
        pictures = sum(row["amount"] - row["deployment"] for row in rows if row["job"] == job.pk)
        assert pictures == job.cost_amount == sum(job.images.values_list("cost_amount", flat=True))
        assert sum(row["deployment"] for row in rows if row["job"] == job.pk) == sum(share_of(job.pk).values())
    parts = usage_by(["service", "job"], start=MAY.start, end=MAY.end)
    for name in EDITIONS:
        mine = [row for row in parts if row["service"] == name]
        assert any(row["job"] is None for row in mine) is (name != "serverless")  # what no job used is shown
        assert all(row["deployment"] == 0 for row in mine) is (name == "serverless")
        assert all(row["amount"] == row["deployment"] for row in mine) is (name != "serverless")
    the_command_and_the_api_say_the_same()
    assert broken_rows() == []


def test_a_settlement_takes_a_bounded_number_of_statements():
    a_priced_platform()
    services = [a_service(name) for name in ("a", "b")]
    callers = [a_caller(user=f"user-{number}") for number in range(6)]
    for service, some in zip(services, (callers[:1], callers), strict=True):
        for caller in some:
            a_budget("member", limit="9", team=caller.team, user=caller.user, name=f"{service} {caller.user}")
            rendered(service, caller, NOON, SECOND)
    counts = []
    for service in services:
        logged(service, (START, 1), (START + HOUR, 0))
        with CaptureQueriesContext(connection) as captured:
            deployments_settle()
        counts.append(len(captured))
    assert max(counts) <= 25 and abs(counts[0] - counts[1]) <= 6, counts


def test_a_service_that_nobody_knows_any_more_is_found():
    deployment_log(
        service_id=999, service="lost", team_id=Team.objects.create(name="x").pk, pool_id=None, edition="api",
        by_time=True, replicas=1,
    )  # fmt: skip
    assert any("lost, which is no service" in line for line in violations(objects=False))


def test_a_platform_without_a_pool_bills_nothing_and_says_so():
    a_card_of(RatePrice(per_gpu_second=1, per_instance_hour=1))
    a_checkpoint()
    logged(a_service(), (START, 1), (START + HOUR, 0))
    assert deployments_settle() == 1 and on_the_bill() == 0
    assert [row["cost"] for row in unsettled(MAY)] == ["unbilled_deployment"] and broken_rows() == []
