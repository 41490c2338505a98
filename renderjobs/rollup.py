"""Images → job state, and the rest of the hold. Called inside the transaction that ended an image, with the job locked."""

from __future__ import annotations

from django.db import transaction

from billing.holds import hold_release
from renderjobs.choices import JobState
from renderjobs.models import RenderJob
from renderjobs.transitions import job_move
from renderjobs.waiting import announce_end


def job_settle(job: RenderJob, *, cause: str) -> None:
    """Move the job to its end when no image is left open."""
    job.refresh_from_db(fields=["images_delivered", "images_failed", "images_cancelled"])
    if job.images_ended < job.images_total:
        return
    if job.images_delivered == job.images_total:
        state = JobState.SUCCEEDED
    elif job.images_cancelled:
        state = JobState.CANCELLED
    elif job.images_delivered:
        state = JobState.PARTLY_SUCCEEDED
    else:
        state = JobState.FAILED
    job_move(job, state, cause=cause)
    hold_release(job_id=job.pk)
    transaction.on_commit(lambda: announce_end(job.pk), robust=True)
