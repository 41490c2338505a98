"""Schedules under a dictated clock: each planned time gets one outcome, whatever stood still or came twice."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta
from time import process_time

import pytest
from django.core.exceptions import ValidationError
from django.utils import timezone
from django_celery_beat.models import PeriodicTask

from accounts.services import member_ensure
from billing.models import Hold
from common.errors import InvalidRequestError
from renderjobs.models import BatchSchedule, RenderJob, ScheduledRun
from renderjobs.schedules import in_window, next_runs, schedule_run, schedule_sync, schedules_behind
from renderjobs.tasks import settle_schedules
from tests.factories import a_caller, a_platform, a_schedule

pytestmark = pytest.mark.django_db
NIGHT = datetime(2026, 11, 20, 3, 0, tzinfo=UTC)


@pytest.fixture(autouse=True)
def platform() -> None:
    a_platform()


def nightly(**fields: object) -> BatchSchedule:
    caller = a_caller()
    return a_schedule(caller.user, caller.team, **{"minute": "0", "hour": "3", **fields})


def run(schedule: BatchSchedule, due: datetime) -> list[str]:
    return [f"{one.planned_for:%d %H:%M} {one.outcome}" for one in schedule_run(schedule_id=schedule.pk, due=due)]


def end_all() -> None:
    RenderJob.objects.update(state="succeeded")


# --- each planned time once -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("later", [0, 1, 61, 600], ids="{} minutes later".format)
def test_a_message_that_comes_again_makes_no_second_job(later):
    schedule = nightly()
    [first] = schedule_run(schedule_id=schedule.pk, due=NIGHT)
    assert run(schedule, NIGHT + timedelta(minutes=later)) == []
    assert first.job.scheduled_for == NIGHT and RenderJob.objects.count() == 1


def test_a_run_that_was_killed_before_its_outcome_was_written_is_finished():
    schedule = nightly()
    [first] = schedule_run(schedule_id=schedule.pk, due=NIGHT)
    ScheduledRun.objects.all().delete()
    BatchSchedule.objects.update(handled_until=None)
    [again] = schedule_run(schedule_id=schedule.pk, due=NIGHT)
    assert again.job == first.job and RenderJob.objects.count() == 1


def test_beats_clock_may_be_a_little_ahead():
    assert run(nightly(), NIGHT - timedelta(seconds=2)) == ["20 03:00 submitted"]


def test_each_run_is_an_ordinary_job_that_names_schedule_and_version():
    schedule = nightly()
    [one] = schedule_run(schedule_id=schedule.pk, due=NIGHT)
    assert (one.job.schedule, one.job.template_version.number, one.job.source) == (schedule, 1, "schedule")


def test_a_schedule_that_is_off_or_gone_runs_nothing():
    schedule = nightly(enabled=False)
    assert run(schedule, NIGHT) == [] and schedule_run(schedule_id=schedule.pk + 1, due=NIGHT) == []


def test_a_refusal_is_the_outcome_and_the_next_run_goes_on():
    schedule = nightly()
    schedule.template.newest.created_by.memberships.all().delete()
    [refused] = schedule_run(schedule_id=schedule.pk, due=NIGHT)
    assert refused.outcome == "refused" and "no longer an active member" in refused.reason
    member_ensure(team_name="team-a", user_name="ada")
    assert run(schedule, NIGHT + timedelta(days=1)) == ["21 03:00 submitted"]


def test_a_run_that_might_cost_more_than_the_ceiling_is_refused_and_a_cheaper_one_runs():
    schedule = nightly(ceiling="0.000001")
    [refused] = schedule_run(schedule_id=schedule.pk, due=NIGHT)
    assert refused.outcome == "refused" and "the ceiling is 0.000001" in refused.reason
    assert not RenderJob.objects.exists() and not Hold.objects.exists()
    BatchSchedule.objects.update(ceiling=1000)
    assert run(schedule, NIGHT + timedelta(days=1)) == ["21 03:00 submitted"]


def test_what_was_planned_while_it_was_off_was_not_missed():
    schedule = nightly(missed="all", minute="*", hour="*")
    schedule_sync(schedule)
    run(schedule, timezone.now())
    PeriodicTask.objects.update(enabled=False)
    BatchSchedule.objects.update(handled_until=timezone.now() - timedelta(days=3))
    schedule_sync(schedule)
    assert run(schedule, timezone.now() - timedelta(minutes=1)) == []


def test_a_schedule_with_other_times_has_missed_none_of_them():
    schedule = nightly(missed="all")
    schedule_sync(schedule)
    BatchSchedule.objects.update(handled_until=timezone.now() - timedelta(days=3), minute="*", hour="*")
    schedule_sync(BatchSchedule.objects.get(), retimed=True)
    assert run(schedule, timezone.now() - timedelta(minutes=1)) == []


def test_i14_a_run_whose_message_was_lost_is_found_a_minute_later(settings):
    settings.CELERY_TASK_ALWAYS_EAGER = True
    schedule = nightly(minute="*", hour="*")
    now = timezone.now()
    BatchSchedule.objects.update(handled_until=now - timedelta(minutes=2))
    assert schedules_behind(now) == [schedule.pk]
    settle_schedules()
    assert schedules_behind(now) == [] and RenderJob.objects.get().schedule == schedule


def test_a_planned_minute_is_left_to_its_message_first():
    nightly()
    BatchSchedule.objects.update(handled_until=NIGHT - timedelta(days=1))
    behind = [bool(schedules_behind(NIGHT + timedelta(seconds=later))) for later in (-1, 0, 29, 30)]
    assert behind == [False, False, False, True]


def test_beats_row_of_a_schedule_that_went_with_its_team_goes_too():
    member = member_ensure(team_name="gone", user_name="ada")
    schedule = a_schedule(member.user, member.team)
    schedule_sync(schedule)
    member.team.delete()
    schedule_run(schedule_id=schedule.pk, due=NIGHT)
    assert not PeriodicTask.objects.filter(name__startswith="batch schedule").exists()


# --- missed runs ------------------------------------------------------------------------------------------------------

STOOD_STILL = {
    "skip": ["20 05:00 missed", "20 06:00 missed", "20 07:00 missed"],
    "latest": ["20 05:00 missed", "20 06:00 missed", "20 07:00 submitted"],
    "all": ["20 05:00 submitted", "20 06:00 submitted", "20 07:00 submitted"],
}


@pytest.mark.parametrize(("policy", "outcomes"), STOOD_STILL.items(), ids=STOOD_STILL)
def test_runs_missed_by_a_standstill_follow_the_policy(policy, outcomes):
    schedule = nightly(minute="0", hour="*", missed=policy)
    BatchSchedule.objects.update(handled_until=datetime(2026, 11, 20, 4, tzinfo=UTC))
    assert run(schedule, datetime(2026, 11, 20, 7, 20, tzinfo=UTC)) == outcomes
    assert run(schedule, datetime(2026, 11, 20, 7, 40, tzinfo=UTC)) == []


def test_a_run_a_few_minutes_late_was_not_missed():
    assert run(nightly(missed="skip"), NIGHT + timedelta(minutes=4)) == ["20 03:00 submitted"]


def test_no_more_than_a_days_worth_is_made_up_for():
    schedule = nightly(minute="*", hour="*", missed="all")
    BatchSchedule.objects.update(handled_until=NIGHT)
    outcomes = run(schedule, NIGHT + timedelta(days=20))
    assert len(outcomes) == 100 and sum("submitted" in line for line in outcomes) == 24
    assert outcomes[-1] == "10 03:00 submitted"


# --- overlap ----------------------------------------------------------------------------------------------------------

BESIDE = {
    "allow": ("submitted", ["queued", "queued"]),
    "skip": ("overlapped", ["queued"]),
    "cancel": ("submitted", ["cancelled", "queued"]),
}


@pytest.mark.parametrize(("policy", "expected"), BESIDE.items(), ids=BESIDE)
def test_a_run_beside_one_that_has_not_ended_follows_the_policy(policy, expected):
    schedule = nightly(overlap=policy)
    run(schedule, NIGHT)
    [second] = schedule_run(schedule_id=schedule.pk, due=NIGHT + timedelta(days=1))
    states = list(RenderJob.objects.order_by("scheduled_for").values_list("state", flat=True))
    assert (second.outcome, states) == expected


def test_a_run_after_one_that_has_ended_overlaps_nothing():
    schedule = nightly(overlap="skip")
    run(schedule, NIGHT)
    end_all()
    assert run(schedule, NIGHT + timedelta(days=1)) == ["21 03:00 submitted"]


def test_a_run_that_is_refused_takes_no_others_place():
    schedule = nightly(overlap="cancel")
    run(schedule, NIGHT)
    BatchSchedule.objects.update(ceiling="0.000001")
    assert run(schedule, NIGHT + timedelta(days=1)) == ["21 03:00 refused"]
    assert RenderJob.objects.get().state == "queued"


# --- windows ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("moment", "inside"),
    [("21:59", False), ("22:00", True), ("23:59", True), ("00:00", True), ("05:59", True), ("06:00", False)],
)
def test_a_window_may_span_midnight(moment, inside):
    assert in_window(time.fromisoformat(moment), (time(22), time(6))) is inside


def test_runs_are_planned_within_the_window_only():
    schedule = nightly(hour="*", window_from=time(22), window_until=time(1), timezone="Europe/Berlin")
    runs = next_runs(schedule, 4, after=datetime(2026, 11, 20, 12, tzinfo=UTC))
    assert [f"{one:%d %H:%M}" for one in runs] == ["20 22:00", "20 23:00", "21 00:00", "21 22:00"]


def test_a_missed_run_is_not_made_up_for_when_the_window_has_closed():
    schedule = nightly(hour="1", window_from=time(0), window_until=time(2))
    BatchSchedule.objects.update(handled_until=NIGHT - timedelta(days=1))
    [missed] = schedule_run(schedule_id=schedule.pk, due=datetime(2026, 11, 20, 9, tzinfo=UTC))
    assert missed.outcome == "missed" and "window has closed" in missed.reason


@pytest.mark.parametrize("ends", [{"window_from": time(1)}, {"window_from": time(1), "window_until": time(1)}])
def test_a_window_needs_two_different_ends(ends):
    with pytest.raises(ValidationError, match="beginning and another end"):
        BatchSchedule(**ends).validate_constraints()


# --- the two changes of the clock -------------------------------------------------------------------------------------


def outcomes_of_a_day(schedule: BatchSchedule, day: datetime) -> list[str]:
    """Ask every minute of the day, as beat does every time its clock matches."""
    BatchSchedule.objects.update(handled_until=day)
    found = []
    for minute in range(0, 24 * 60, 10):
        found += run(schedule, day + timedelta(minutes=minute))
        end_all()
    return found


def test_spring_neither_drops_nor_doubles_a_run():
    """02:30 does not exist on 28 March 2027 in Berlin: it runs as much later as the clock was put forward."""
    schedule = nightly(minute="30", hour="2", timezone="Europe/Berlin")
    assert outcomes_of_a_day(schedule, datetime(2027, 3, 27, 23, tzinfo=UTC)) == ["28 01:30 submitted"]


def test_autumn_neither_drops_nor_doubles_a_run():
    """02:30 comes twice on 31 October 2027 in Berlin: the first counts."""
    schedule = nightly(minute="30", hour="2", timezone="Europe/Berlin")
    assert outcomes_of_a_day(schedule, datetime(2027, 10, 30, 22, tzinfo=UTC)) == ["31 00:30 submitted"]


def test_next_runs_show_the_skipped_time_as_it_will_be():
    schedule = BatchSchedule(minute="30", hour="2", timezone="Europe/Berlin")
    runs = next_runs(schedule, 2, after=datetime(2027, 3, 27, 20, tzinfo=UTC))
    assert [f"{one:%d %H:%M %z}" for one in runs] == ["28 03:30 +0200", "29 02:30 +0200"]


def test_a_skipped_time_that_becomes_a_later_one_pushes_none_of_the_others_out():
    """Lord Howe's clock goes on from 02:00 to 02:30: 02:15 becomes 02:45, and 02:30 is a time of its own before it."""
    schedule = nightly(minute="0,15,30", hour="2", timezone="Australia/Lord_Howe")
    runs = next_runs(schedule, 3, after=datetime(2026, 10, 3, 12, tzinfo=UTC))
    assert [f"{one:%d %H:%M %z}" for one in runs] == ["04 02:30 +1100", "04 02:45 +1100", "05 02:00 +1100"]


def test_half_an_hour_that_comes_twice_runs_once():
    schedule = nightly(minute="*/15", hour="1", timezone="Australia/Lord_Howe")
    runs = outcomes_of_a_day(schedule, datetime(2027, 4, 3, 12, tzinfo=UTC))
    assert runs == ["03 14:00 submitted", "03 14:15 submitted", "03 14:30 submitted", "03 14:45 submitted"]


def test_a_skipped_time_of_a_window_that_the_clock_skips_as_well_runs():
    schedule = BatchSchedule(minute="30", hour="2", timezone="Europe/Berlin", window_from=time(2), window_until=time(3))
    runs = next_runs(schedule, 2, after=datetime(2027, 3, 27, 20, tzinfo=UTC))
    assert [f"{one:%d %H:%M %z}" for one in runs] == ["28 03:30 +0200", "29 02:30 +0200"]


@pytest.mark.parametrize(
    ("cron", "runs"),
    [
        ({"day_of_month": "29", "month_of_year": "2"}, ["2028-02-29 00:00", "2032-02-29 00:00"]),
        ({"day_of_week": "mon-wed/2,fri"}, ["2026-11-20 00:00", "2026-11-23 00:00"]),
        ({"month_of_year": "jan,dec", "day_of_month": "31"}, ["2026-12-31 00:00", "2027-01-31 00:00"]),
        ({"day_of_month": "13", "day_of_week": "fri"}, ["2027-08-13 00:00", "2028-10-13 00:00"]),
        ({"minute": "10-30/10", "hour": "0"}, ["2026-11-20 00:10", "2026-11-20 00:20"]),
    ],
    ids=["leap day", "names and steps", "ends of months", "both kinds of day must match", "steps in a range"],
)
def test_cron_fields_are_read_as_they_are_written(cron, runs):
    schedule = BatchSchedule(**{"minute": "0", "hour": "0", **cron})
    found = next_runs(schedule, 2, after=datetime(2026, 11, 19, 12, tzinfo=UTC))
    assert [f"{one:%Y-%m-%d %H:%M}" for one in found] == runs


def test_times_that_never_lie_in_the_window_are_told_at_once():
    schedule = BatchSchedule(minute="*", hour="0-11", window_from=time(12), window_until=time(13))
    began = process_time()
    assert next_runs(schedule, 1) == [] and process_time() - began < 1


def test_a_day_that_the_month_does_not_have_is_named():
    with pytest.raises(InvalidRequestError, match="No month of 'feb' has a day of '30'"):
        next_runs(BatchSchedule(day_of_month="30", month_of_year="feb"))
