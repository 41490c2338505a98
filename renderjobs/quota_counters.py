"""What quotas count of jobs. Registered with ``billing``, which must not know of jobs."""

from __future__ import annotations

from datetime import datetime

from django.db.models import F, Sum

from billing.models import Measure, Quota
from billing.quotas import counter_register, whose_rows
from renderjobs.choices import JOB_OPEN, JobState
from renderjobs.models import RenderJob


def images_accepted(quota: Quota, midnight: datetime) -> int:
    """What was cancelled before it was rendered does not count."""
    jobs = RenderJob.objects.filter(whose_rows(quota), created_at__gte=midnight)
    return jobs.aggregate(total=Sum(F("images_total") - F("images_cancelled"), default=0))["total"]


def jobs_waiting(quota: Quota, midnight: datetime) -> int:
    return RenderJob.objects.filter(whose_rows(quota), state=JobState.QUEUED).count()


def jobs_open(quota: Quota, midnight: datetime) -> int:
    return RenderJob.objects.filter(whose_rows(quota), state__in=JOB_OPEN).count()


def register() -> None:
    counter_register(Measure.IMAGES_PER_DAY, images_accepted)
    counter_register(Measure.WAITING_JOBS, jobs_waiting)
    counter_register(Measure.OPEN_JOBS, jobs_open)
