"""Saved batches by cron: the rows Celery beat reads, the next run times, and the run itself, which is one ordinary job.

Beat only sends "schedule 7 is due"; what that makes of which planned minute is decided here, by the rows: each planned minute gets
one ``ScheduledRun``. What beat's message should have done and did not is found a minute later. What a template is lives in
``saved_batches``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import UTC, date, datetime, time, timedelta
from itertools import islice
from typing import Any
from zoneinfo import ZoneInfo

from celery.schedules import ParseException, crontab
from django.db import transaction
from django.db.models import Q
from django.db.models.functions import Now
from django_celery_beat.models import CrontabSchedule, PeriodicTask

from accounts.authentication import Caller
from common.errors import ConflictError, FieldError, ForbiddenError, InvalidRequestError, PlatformError
from renderjobs.choices import JOB_OPEN, MissedPolicy, OverlapPolicy, RunOutcome
from renderjobs.models import BatchSchedule, BatchTemplate, RenderJob, ScheduledRun
from renderjobs.models.jobs import Source
from renderjobs.saved_batches import template_submit
from renderjobs.submission import job_cancel

TASK = "renderjobs.submit_schedule"
CRON_FIELDS = ("minute", "hour", "day_of_month", "month_of_year", "day_of_week")
HORIZON_DAYS = 9 * 366
"""The 29th of February can be eight years away."""
CLOCK_TOLERANCE = timedelta(seconds=10)
"""The clock beat goes by may be this much ahead of the database's."""
MESSAGE_TIME = timedelta(seconds=30)
"""How long a planned minute is left to beat's message."""
ON_TIME = timedelta(minutes=5)
"""A run that begins no later than this was not missed: messages wait while workers are busy."""
MOST_AT_ONCE = 24
"""Of missed runs that are made up for."""
MOST_RECORDED = 100
"""Of missed minutes that get a row of their own."""
LONGEST_LOOK_BACK = timedelta(days=40)
Window = tuple[time, time]


@transaction.atomic
def schedule_sync(schedule: BatchSchedule, *, retimed: bool = False) -> PeriodicTask:
    """Make beat's rows say what the schedule says.

    Args:
        retimed: It was planned for other times before; what the new ones would have been until now was not missed.
    """
    cron = {name: getattr(schedule, name) for name in CRON_FIELDS} | {"timezone": schedule.timezone}
    times = CrontabSchedule.objects.filter(**cron).first() or CrontabSchedule.objects.create(**cron)
    name = _task_name(schedule.pk)
    was_on = PeriodicTask.objects.filter(name=name, enabled=True).exists()
    task, _ = PeriodicTask.objects.update_or_create(
        name=name,
        defaults={"task": TASK, "args": json.dumps([schedule.pk]), "crontab": times, "enabled": schedule.enabled},
    )
    changes: dict[str, Any] = {"periodic_task": task}
    if retimed or not was_on:
        changes["handled_until"] = Now()  # what was planned while it was off, or before it was there, was not missed
    BatchSchedule.objects.filter(pk=schedule.pk).update(**changes)
    schedule.refresh_from_db(fields=list(changes))
    return task


@transaction.atomic
def schedule_remove(schedule: BatchSchedule) -> None:
    """Delete the schedule and beat's row; jobs it has made stay."""
    task_id = schedule.periodic_task_id
    schedule.delete()
    PeriodicTask.objects.filter(pk=task_id).delete()


@transaction.atomic
def template_remove(template: BatchTemplate) -> None:
    """With its schedules; jobs made of it stay."""
    for schedule in template.schedules.all():
        schedule_remove(schedule)
    template.delete()


def schedule_run(*, schedule_id: int, due: datetime) -> list[ScheduledRun]:
    """Give every planned minute up to ``due`` that has no outcome yet its outcome, oldest first.

    So a message that comes late, or comes again an hour later because its worker was killed, adds no second job. A refusal is kept
    as the minute's outcome: nobody waits for an answer here.
    """
    rows = BatchSchedule.objects.select_related("template__team", "template__project")
    schedule = rows.filter(pk=schedule_id, enabled=True).first()
    if schedule is None:
        if not BatchSchedule.objects.filter(pk=schedule_id).exists():
            PeriodicTask.objects.filter(name=_task_name(schedule_id)).delete()  # went with its team
        return []  # removed or switched off while the message was on its way
    minutes = unsettled_minutes(schedule, due + CLOCK_TOLERANCE)
    settled = [_settled(schedule, minute, reason) for minute, reason in _by_policy(schedule, minutes, due)]
    runs = [run for run in settled if run is not None]
    if minutes:
        later = BatchSchedule.objects.filter(Q(handled_until=None) | Q(handled_until__lt=minutes[-1]), pk=schedule.pk)
        later.update(handled_until=minutes[-1])
    return runs


def unsettled_minutes(schedule: BatchSchedule, moment: datetime) -> list[datetime]:
    """The planned minutes after the last one with an outcome, up to ``moment``; of a schedule that has none yet, the newest one.

    Raises:
        InvalidRequestError: A cron field or the time zone cannot be read.
    """
    cron, zone = cron_of(schedule), zone_of(schedule.timezone)
    if schedule.handled_until is None:
        newest = _newest_minute(schedule, moment)
        return [newest] if newest else []
    since = max(schedule.handled_until, moment - LONGEST_LOOK_BACK)
    first, last = since.astimezone(zone).date(), moment.astimezone(zone).date()
    days = (first + timedelta(days=offset) for offset in range((last - first).days + 1))
    # Compared in UTC: two times of one zone compare by the wall clock, which an hour of each autumn shows twice.
    planned = (run.astimezone(UTC) for run in _runs(cron, zone, days, window_of(schedule)))
    return [minute for minute in planned if since < minute <= moment]


def _by_policy(schedule: BatchSchedule, minutes: list[datetime], now: datetime) -> Iterator[tuple[datetime, str]]:
    """Each minute with the reason why it was missed; none for those that run."""
    kept = minutes[-MOST_RECORDED:]
    open_now = in_window(now.astimezone(zone_of(schedule.timezone)).time(), window_of(schedule))
    for place, minute in enumerate(kept):
        following = len(kept) - 1 - place
        late = now - minute > ON_TIME
        if late and schedule.missed == MissedPolicy.SKIP:
            yield minute, "The platform stood still at that time."
        elif following and schedule.missed == MissedPolicy.LATEST:
            yield minute, "The platform stood still at that time; the latest one runs instead."
        elif following >= MOST_AT_ONCE:
            yield minute, f"The platform stood still for too long; at most {MOST_AT_ONCE} runs are made up for."
        elif late and not open_now:
            yield minute, "The platform stood still at that time, and the window has closed since."
        else:
            yield minute, ""


@transaction.atomic
def _settled(schedule: BatchSchedule, minute: datetime, missed: str) -> ScheduledRun | None:
    """The minute's outcome; None where the schedule was removed. Whoever comes second finds what the first one wrote."""
    if BatchSchedule.objects.select_for_update().filter(pk=schedule.pk).first() is None:
        return None
    if earlier := ScheduledRun.objects.filter(schedule=schedule, planned_for=minute).select_related("job").first():
        return earlier
    outcome, job, reason = (RunOutcome.MISSED, None, missed) if missed else _submitted(schedule, minute)
    return ScheduledRun.objects.create(schedule=schedule, planned_for=minute, outcome=outcome, job=job, reason=reason)


def _submitted(schedule: BatchSchedule, minute: datetime) -> tuple[str, RenderJob | None, str]:
    runs = RenderJob.objects.filter(schedule=schedule)
    if earlier := runs.filter(scheduled_for=minute).first():
        return RunOutcome.SUBMITTED, earlier, ""  # of a call that was killed before it wrote the outcome
    others = runs.filter(state__in=JOB_OPEN)
    if schedule.overlap == OverlapPolicy.SKIP and (other := others.first()):
        return RunOutcome.OVERLAPPED, None, f"Job {other.pk} of the run before had not ended."
    try:
        with transaction.atomic():  # a run that is refused takes no other's place
            if schedule.overlap == OverlapPolicy.CANCEL:
                for other in others:
                    job_cancel(job=other, cause=f"the run of {minute:%Y-%m-%d %H:%M} UTC takes its place")
            return RunOutcome.SUBMITTED, _submit(schedule, minute), ""
    except PlatformError as error:
        return RunOutcome.REFUSED, None, error.message


def schedules_behind(moment: datetime) -> list[int]:
    """Those of which a planned minute has no outcome although its message had time to come: it was lost, or never sent."""
    until = moment - MESSAGE_TIME
    found = []
    for schedule in BatchSchedule.objects.filter(enabled=True, handled_until__lt=until).order_by("pk"):
        with suppress(InvalidRequestError):  # a time zone that the machine's database has no more
            if unsettled_minutes(schedule, until):
                found.append(schedule.pk)
    return found


def database_now() -> datetime:
    now = BatchSchedule.objects.annotate(now=Now()).values_list("now", flat=True).first()
    return now or datetime.now(UTC)


def window_of(schedule: BatchSchedule) -> Window | None:
    if schedule.window_from is None or schedule.window_until is None:
        return None
    return schedule.window_from, schedule.window_until


def in_window(moment: time, window: Window | None) -> bool:
    """Both ends in the schedule's wall time; the beginning belongs to it, the end does not."""
    if window is None:
        return True
    begin, end = window
    return begin <= moment < end if begin < end else moment >= begin or moment < end


def _newest_minute(schedule: BatchSchedule, moment: datetime) -> datetime | None:
    """The newest run time that is not after ``moment``; None when the cron fields hardly ever meet."""
    cron, zone = cron_of(schedule), zone_of(schedule.timezone)
    today = moment.astimezone(zone).date()
    for day in (today - timedelta(days=offset) for offset in range(HORIZON_DAYS)):
        past = [run for run in _runs(cron, zone, [day], window_of(schedule)) if run.astimezone(UTC) <= moment]
        if past:
            return past[-1].astimezone(UTC)
    return None


def next_runs(schedule: BatchSchedule, count: int = 5, *, after: datetime | None = None) -> list[datetime]:
    """The next run times in the schedule's time zone; fewer than ``count`` when the cron fields hardly ever meet.

    As Celery counts: a wall time that a change to daylight-saving time skips runs as much later as the clock was put
    forward, also where that is behind the window's end; of those that come twice the first counts.

    Raises:
        InvalidRequestError: A cron field or the time zone cannot be read.
    """
    cron, zone = cron_of(schedule), zone_of(schedule.timezone)
    start = after or datetime.now(UTC)
    today = start.astimezone(zone).date()
    days = (today + timedelta(days=offset) for offset in range(HORIZON_DAYS))
    return list(
        islice((run for run in _runs(cron, zone, days, window_of(schedule)) if run.astimezone(UTC) > start), count)
    )


def cron_of(schedule: BatchSchedule) -> crontab:
    """Raises: InvalidRequestError: Naming each field that cannot be read."""
    errors = []
    for name in CRON_FIELDS:
        value = getattr(schedule, name)
        try:
            crontab(**{name: value})
        except (ParseException, ValueError) as error:
            message = f"{value!r} is not a cron field; accepted are forms such as *, */5, 1,15 or 8-17 ({error})."
            errors.append(FieldError(name, message, value))
    if errors:
        raise InvalidRequestError(errors)
    try:
        return crontab(**{name: getattr(schedule, name) for name in CRON_FIELDS})
    except ValueError as error:  # each can be read, but there is no such day
        day, month = schedule.day_of_month, schedule.month_of_year
        message = f"No month of {month!r} has a day of {day!r}."
        raise InvalidRequestError([FieldError("day_of_month", message, day)]) from error


def zone_of(name: str) -> ZoneInfo:
    """Raises: InvalidRequestError: The name is not in the time zone database."""
    try:
        return ZoneInfo(name)
    except (OSError, ValueError, KeyError) as error:
        message = f"Time zone {name!r} is unknown; accepted are names such as UTC or Europe/Berlin."
        raise InvalidRequestError([FieldError("timezone", message, name)]) from error


def _submit(schedule: BatchSchedule, minute: datetime) -> RenderJob:
    """Acts as whoever wrote the newest version of the template."""
    template, version = schedule.template, schedule.template.newest
    if version is None:
        raise ConflictError(f"{template} has no version.")
    user = version.created_by
    if not user.is_active or not (user.is_superuser or user.role_in(template.team)):
        raise ForbiddenError(f"{user} wrote this template and is no longer an active member of {template.team}.")
    caller = Caller(user=user, team=template.team, token=None)
    return template_submit(
        caller=caller,
        version=version,
        source=Source.SCHEDULE,
        schedule=schedule,
        scheduled_for=minute,
        ceiling=schedule.ceiling,
    ).job


def _runs(cron: crontab, zone: ZoneInfo, days: Iterable[date], window: Window | None) -> Iterator[datetime]:
    """The run times of the days within the window, in the zone's wall time and in their order; each once."""
    times = [time(hour, minute) for hour in cron.hour for minute in cron.minute]
    planned = [wall for wall in times if in_window(wall, window)]
    last = None
    for day in days if planned else ():
        weekday = day.isoweekday() % 7  # cron's Sunday is 0
        if day.month in cron.month_of_year and day.day in cron.day_of_month and weekday in cron.day_of_week:
            # A time that the clock skips becomes a later one, which may lie behind another time of the plan or be one.
            for run in sorted({datetime.combine(day, wall, zone).astimezone(UTC) for wall in planned}):
                if last is None or run > last:
                    last = run
                    yield run.astimezone(zone)


def _task_name(schedule_id: int) -> str:
    return f"batch schedule {schedule_id}"
