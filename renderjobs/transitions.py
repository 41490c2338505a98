"""The only code that changes a state of a job or an image. Each move writes its event, with time and cause.

Moves of images lock their jobs first (``jobs_locked``), always in the order of the job's id, so that sequences have no
gaps and two movers never wait for one another in a circle.
"""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from django.db.models import F
from django.db.models.functions import Now

from renderjobs.choices import IMAGE_ARROWS, JOB_ARROWS, JOB_TERMINAL, JobState
from renderjobs.models import JobEvent, RenderImage, RenderJob

ROWS_PER_STATEMENT = 500
"""Below SQLite's limit of variables."""


class ForbiddenMove(Exception):
    """A state was to move against the arrows of ``choices``; always a defect of ours."""


def jobs_locked(job_ids: Iterable[uuid.UUID]) -> dict[uuid.UUID, RenderJob]:
    """The jobs, locked until the transaction ends."""
    rows = RenderJob.objects.select_for_update().filter(pk__in=set(job_ids)).order_by("pk")
    return {job.pk: job for job in rows}


def images_move(
    images: Sequence[RenderImage], to_state: str, *, cause: str, jobs: dict[uuid.UUID, RenderJob], **changes: Any
) -> None:
    """Move images that the caller has read under the lock of their ``jobs``, and save ``changes`` with them.

    Raises:
        ForbiddenMove: There is no such arrow; nothing is written.
    """
    for image in images:
        if to_state not in IMAGE_ARROWS.get(image.state, ()):
            raise ForbiddenMove(f"Image {image.pk} cannot move from {image.state} to {to_state}.")
    by_job: dict[uuid.UUID, list[RenderImage]] = defaultdict(list)
    for image in images:
        by_job[image.job_id].append(image)
    events: list[JobEvent] = []
    for job_id, members in by_job.items():
        job = jobs[job_id]
        events += _events(job, [(image.index, image.state) for image in members], to_state, cause)
        RenderJob.objects.filter(pk=job_id).update(event_sequence=job.event_sequence)
    for some in batched([image.pk for image in images], ROWS_PER_STATEMENT):
        RenderImage.objects.filter(pk__in=some).update(state=to_state, **changes)
    JobEvent.objects.bulk_create(events, batch_size=ROWS_PER_STATEMENT)
    for image in images:
        image.state = to_state


def batched(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def job_move(job: RenderJob, to_state: str, *, cause: str, **changes: Any) -> None:
    """Move a job that the caller holds locked, and save ``changes`` with it.

    Raises:
        ForbiddenMove: There is no such arrow; nothing is written.
    """
    if to_state not in JOB_ARROWS.get(job.state, ()):
        raise ForbiddenMove(f"Job {job.pk} cannot move from {job.state} to {to_state}.")
    events = _events(job, [(None, job.state)], to_state, cause)
    times: dict[str, Any] = {}
    if to_state == JobState.RUNNING:
        times["started_at"] = Now()
    if to_state in JOB_TERMINAL:
        times["finished_at"] = Now()
    RenderJob.objects.filter(pk=job.pk).update(state=to_state, event_sequence=job.event_sequence, **times, **changes)
    JobEvent.objects.bulk_create(events)
    job.state = to_state


def job_created(job: RenderJob, *, cause: str) -> None:
    """The first event of a new job; the job's ``event_sequence`` is 1 from its creation."""
    JobEvent.objects.create(job=job, sequence=1, to_state=job.state, cause=cause, created_at=Now())


def _events(job: RenderJob, moved: Sequence[tuple[int | None, str]], to_state: str, cause: str) -> list[JobEvent]:
    """Events for (image index or None, old state); takes the next sequence numbers of the locked job."""
    first = job.event_sequence + 1
    job.event_sequence += len(moved)
    return [
        JobEvent(
            job_id=job.pk,
            sequence=first + offset,
            image_index=index,
            from_state=state,
            to_state=to_state,
            cause=cause[:200],
            created_at=Now(),
        )
        for offset, (index, state) in enumerate(moved)
    ]


def counted(**changes: int) -> dict[str, Any]:
    """Update arguments that add to a job's counters: ``counted(images_failed=1)``."""
    return {name: F(name) + change for name, change in changes.items()}
