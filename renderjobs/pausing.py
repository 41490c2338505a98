"""Jobs that stand aside: what is on a worker ends, what waits is claimed by nobody until the job goes on.

A pause is no state: a paused job is queued or running like any other, and can be cancelled.
"""

from __future__ import annotations

from django.db import transaction
from django.db.models import QuerySet
from django.db.models.functions import Now

from common.errors import ConflictError
from renderjobs.choices import IMAGE_HELD, ImageState, JobState
from renderjobs.dispatch import wake_on_commit
from renderjobs.models import RenderImage, RenderJob
from renderjobs.transitions import jobs_locked

CAN_PAUSE = (JobState.QUEUED, JobState.RUNNING)


def job_pause(*, job: RenderJob) -> None:
    """Claim no more images of the job; pausing twice changes nothing.

    Raises:
        ConflictError: It waits for an approval or has ended.
    """
    with transaction.atomic():
        current = _locked(job, "paused")
        if current.paused_at is None:
            # Those on a worker too: an image whose worker dies comes back to the queue and must not go on there.
            _unfinished(current).update(held=True)
            RenderJob.objects.filter(pk=current.pk).update(paused_at=Now())


def job_resume(*, job: RenderJob) -> None:
    """Let a paused job go on; one that is not paused goes on as it does.

    Raises:
        ConflictError: It waits for an approval or has ended.
    """
    with transaction.atomic():
        current = _locked(job, "resumed")
        if current.paused_at is not None:
            _unfinished(current).update(held=False)
            RenderJob.objects.filter(pk=current.pk).update(paused_at=None)
            wake_on_commit(current.pool.name)


def _locked(job: RenderJob, what: str) -> RenderJob:
    current = jobs_locked([job.pk])[job.pk]
    if current.state not in CAN_PAUSE:
        raise ConflictError(f"The job is {current.state}; only a queued or running job can be {what}.")
    return current


def _unfinished(job: RenderJob) -> QuerySet[RenderImage]:
    return RenderImage.objects.filter(job=job, state__in=[ImageState.WAITING, *IMAGE_HELD])
