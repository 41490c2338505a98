"""Saved batches by cron: the rows Celery beat reads, the next run times, and the run itself, which is one ordinary job.

Beat only sends "schedule 7 is due"; whether that makes a job is decided here, by the rows. Nothing here parses a request.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime, time, timedelta
from itertools import islice
from zoneinfo import ZoneInfo

from celery.schedules import ParseException, crontab
from django.db import IntegrityError, transaction
from django.db.models.functions import Now
from django_celery_beat.models import CrontabSchedule, PeriodicTask

from accounts.authentication import Caller
from common.errors import FieldError, ForbiddenError, InvalidRequestError, PlatformError
from renderjobs.api.serializers import render_request
from renderjobs.models import BatchSchedule, BatchTemplate, RenderJob
from renderjobs.models.jobs import Source
from renderjobs.submission import job_submit

TASK = "renderjobs.submit_schedule"
CRON_FIELDS = ("minute", "hour", "day_of_month", "month_of_year", "day_of_week")
HORIZON_DAYS = 9 * 366
"""The 29th of February can be eight years away."""
CLOCK_TOLERANCE = timedelta(seconds=10)
"""The clock beat goes by may be this much ahead of the database's."""


@transaction.atomic
def schedule_sync(schedule: BatchSchedule) -> PeriodicTask:
    """Make beat's rows say what the schedule says."""
    cron = {name: getattr(schedule, name) for name in CRON_FIELDS} | {"timezone": schedule.timezone}
    times = CrontabSchedule.objects.filter(**cron).first() or CrontabSchedule.objects.create(**cron)
    task, _ = PeriodicTask.objects.update_or_create(
        name=_task_name(schedule.pk),
        defaults={"task": TASK, "args": json.dumps([schedule.pk]), "crontab": times, "enabled": schedule.enabled},
    )
    if schedule.periodic_task_id != task.pk:
        schedule.periodic_task = task
        schedule.save(update_fields=["periodic_task"])
    return task


@transaction.atomic
def schedule_remove(schedule: BatchSchedule) -> None:
    """Delete the schedule and beat's row; jobs it has made stay."""
    task_id = schedule.periodic_task_id
    schedule.delete()
    PeriodicTask.objects.filter(pk=task_id).delete()


@transaction.atomic
def template_remove(template: BatchTemplate) -> None:
    for schedule in template.schedules.all():
        schedule_remove(schedule)
    template.delete()


def schedule_run(*, schedule_id: int, due: datetime) -> RenderJob | None:
    """Submit the template's job for the newest planned minute up to ``due``; the same planned minute gives the same job.

    So a message that comes late, or comes again an hour later because its worker was killed, adds no second job.
    A refusal is kept in ``last_error``: nobody waits for an answer here.
    """
    rows = BatchSchedule.objects.select_related("template__team", "template__project", "template__created_by")
    schedule = rows.filter(pk=schedule_id, enabled=True).first()
    if schedule is None:
        if not BatchSchedule.objects.filter(pk=schedule_id).exists():
            PeriodicTask.objects.filter(name=_task_name(schedule_id)).delete()  # went with its team
        return None  # removed or switched off while the message was on its way
    minute = planned_minute(schedule, due + CLOCK_TOLERANCE)
    if minute is None:
        return None
    runs = RenderJob.objects.filter(schedule=schedule, scheduled_for=minute)
    if earlier := runs.first():
        return earlier
    try:
        job = _submit(schedule, minute)
    except PlatformError as error:
        BatchSchedule.objects.filter(pk=schedule_id).update(last_error=error.message)
        return None
    except IntegrityError:
        if earlier := runs.first():
            return earlier  # the other of two messages was faster
        raise
    BatchSchedule.objects.filter(pk=schedule_id).exclude(last_error="").update(last_error="")
    return job


def database_now() -> datetime:
    now = BatchSchedule.objects.annotate(now=Now()).values_list("now", flat=True).first()
    return now or datetime.now(UTC)


def planned_minute(schedule: BatchSchedule, moment: datetime) -> datetime | None:
    """The newest run time that is not after ``moment``; None when the cron fields hardly ever meet.

    Raises:
        InvalidRequestError: A cron field or the time zone cannot be read.
    """
    cron, zone = cron_of(schedule), zone_of(schedule.timezone)
    today = moment.astimezone(zone).date()
    for day in (today - timedelta(days=offset) for offset in range(HORIZON_DAYS)):
        # Compared in UTC: two times of one zone compare by the wall clock, which an hour of each autumn shows twice.
        past = [run for run in _runs(cron, zone, [day]) if run.astimezone(UTC) <= moment]
        if past:
            return past[-1].astimezone(UTC)
    return None


def next_runs(schedule: BatchSchedule, count: int = 5, *, after: datetime | None = None) -> list[datetime]:
    """The next run times in the schedule's time zone; fewer than ``count`` when the cron fields hardly ever meet.

    As Celery counts: a wall time that a change to daylight-saving time skips runs as much later as the clock was put
    forward; of those that come twice the first counts.

    Raises:
        InvalidRequestError: A cron field or the time zone cannot be read.
    """
    cron, zone = cron_of(schedule), zone_of(schedule.timezone)
    start = after or datetime.now(UTC)
    today = start.astimezone(zone).date()
    days = (today + timedelta(days=offset) for offset in range(HORIZON_DAYS))
    return list(islice((run for run in _runs(cron, zone, days) if run.astimezone(UTC) > start), count))


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
    return crontab(**{name: getattr(schedule, name) for name in CRON_FIELDS})


def zone_of(name: str) -> ZoneInfo:
    """Raises: InvalidRequestError: The name is not in the time zone database."""
    try:
        return ZoneInfo(name)
    except (OSError, ValueError, KeyError) as error:
        message = f"Time zone {name!r} is unknown; accepted are names such as UTC or Europe/Berlin."
        raise InvalidRequestError([FieldError("timezone", message, name)]) from error


def _submit(schedule: BatchSchedule, minute: datetime) -> RenderJob:
    template, user = schedule.template, schedule.template.created_by
    if not user.is_active or not (user.is_superuser or user.role_in(template.team)):
        raise ForbiddenError(f"{user} made this template and is no longer an active member of {template.team}.")
    request, uploads = render_request(template.kind, template.request)
    return job_submit(
        caller=Caller(user=user, team=template.team, token=None),
        request=request,
        uploads=uploads,
        source=Source.SCHEDULE,
        lane=template.lane,
        project=template.project.name if template.project else "",
        schedule=schedule,
        scheduled_for=minute,
    ).job


def _runs(cron: crontab, zone: ZoneInfo, days: Iterable[date]) -> Iterator[datetime]:
    """The run times of the days, in the zone's wall time; each once."""
    last = None
    for day in days:
        weekday = day.isoweekday() % 7  # cron's Sunday is 0
        if day.month in cron.month_of_year and day.day in cron.day_of_month and weekday in cron.day_of_week:
            for hour in sorted(cron.hour):
                for minute in sorted(cron.minute):
                    wall = datetime.combine(day, time(hour, minute), zone)
                    run = wall.astimezone(UTC).astimezone(zone)  # moves a time that the clock skips
                    if last is None or run.astimezone(UTC) > last:
                        last = run.astimezone(UTC)
                        yield run


def _task_name(schedule_id: int) -> str:
    return f"batch schedule {schedule_id}"
