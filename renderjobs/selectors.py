"""Reads for API, doors and admin. Every query begins with the caller's team; foreign and unknown look alike."""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from django.db.models import Count, F, OuterRef, QuerySet, Subquery
from django.db.models.functions import Now

from accounts.authentication import Caller
from billing.models import Hold
from common.database import ValueOfKey
from common.errors import NotFoundError
from renderjobs.choices import IMAGE_HELD, JOB_OPEN, JobState
from renderjobs.models import Claim, EasService, JobEvent, RenderImage, RenderJob


def service_of(caller: Caller) -> EasService | None:
    """The EAS service whose settings hold for the caller's calls: that of the address, else the token's own."""
    if isinstance(caller.through, EasService):
        return caller.through  # the token's need not be read
    return next((service for service in caller.services if isinstance(service, EasService)), None)


@dataclass(frozen=True, slots=True)
class JobProgress:
    """How far a job is. ``step`` and ``steps`` are those of the micro-batch that is furthest."""

    fraction: float
    """0…1, running images counted by their denoiser steps."""
    eta_seconds: float | None
    """From the job's own pace; None before there is one, 0 at the end."""
    step: int = 0
    steps: int = 0


def jobs_of(caller: Caller) -> QuerySet[RenderJob]:
    """With what is held for each, and its rate card."""
    hold = Hold.objects.filter(job_id=OuterRef("pk"))
    columns = {"hold_amount": "amount", "hold_remaining": "remaining", "rate_card": "price__card__name"}
    money = {name: Subquery(hold.values(column)) for name, column in columns.items()}
    return (
        RenderJob.objects.filter(team=caller.team)
        .select_related("project", "service")
        .annotate(**money)
        .order_by("-pk")
    )


def with_tag(jobs: QuerySet[RenderJob], key: str, value: str) -> QuerySet[RenderJob]:
    return jobs.alias(tag_value=ValueOfKey("tags", key)).filter(tag_value=value)


def job_get(caller: Caller, job_id: str | uuid.UUID) -> RenderJob:
    """Raises: NotFoundError: No such job, or another team's."""
    try:
        key = job_id if isinstance(job_id, uuid.UUID) else uuid.UUID(str(job_id))
    except ValueError:
        key = None
    job = jobs_of(caller).filter(pk=key).annotate(now=Now()).first() if key else None
    if job is None:
        raise NotFoundError("There is no such job.")
    return job


def job_progress(job: RenderJob) -> JobProgress:
    """Progress of one job in at most one query; ``job`` must come from ``job_get`` or ``jobs_of(…).annotate(now=Now())``."""
    return jobs_progress([job])[job.pk]


def jobs_progress(jobs: Sequence[RenderJob]) -> dict[uuid.UUID, JobProgress]:
    """Progress of any number of jobs in at most one query; they come from where ``job_progress`` takes its job."""
    running = [job.pk for job in jobs if job.state == JobState.RUNNING]
    passes: dict[uuid.UUID, list[tuple[int, int, int]]] = defaultdict(list)
    if running:
        # From the open claims, which are few: a job's own images can be many thousands.
        claims = Claim.objects.filter(ended_at=None, images__job__in=running, images__state__in=IMAGE_HELD)
        rows = claims.values("pk", "step", "steps", job_id=F("images__job")).annotate(held=Count("images"))
        for row in rows.order_by():
            passes[row["job_id"]].append((row["held"], row["step"], row["steps"]))
    return {job.pk: _progress(job, passes[job.pk]) for job in jobs}


def _progress(job: RenderJob, passes: Sequence[tuple[int, int, int]]) -> JobProgress:
    """``passes`` has (images held, step, steps) of every micro-batch with images of the job."""
    if job.state not in JOB_OPEN:
        return JobProgress(1.0 if job.state == JobState.SUCCEEDED else job.images_ended / job.images_total, 0.0)
    if job.state in (JobState.HELD, JobState.QUEUED):
        return JobProgress(0.0, None)
    done, furthest = float(job.images_ended), (0, 0)
    for held, step, steps in passes:
        done += held * step / steps if steps else 0
        furthest = max(furthest, (step, steps))
    fraction = min(1.0, done / job.images_total)
    return JobProgress(fraction, _eta(job, fraction), *furthest)


def _eta(job: RenderJob, fraction: float) -> float | None:
    now = getattr(job, "now", None)
    if not fraction or job.started_at is None or now is None:
        return None
    elapsed = (now - job.started_at).total_seconds()
    return round(elapsed / fraction - elapsed, 1)


def images_of(job: RenderJob, *, after: int = -1) -> QuerySet[RenderImage]:
    """The job's images by index, from the one behind ``after``."""
    return RenderImage.objects.filter(job=job, index__gt=after).order_by("index")


def events_of(job: RenderJob, *, after: int = 0) -> QuerySet[JobEvent]:
    """The job's events by sequence, from the one behind ``after``; a reader that resumes misses and repeats none."""
    return JobEvent.objects.filter(job=job, sequence__gt=after).order_by("sequence")
