"""image_deliver and image_fail: each image ends exactly once, and a delivered one is charged exactly once.

The object is in storage before ``image_deliver`` is called, under a key that holds the attempt; then one transaction writes
file, state, charge and event. Whoever loses (lease passed, job cancelled) gets LeaseLost and removes its own object.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import F
from django.db.models.functions import Now

from billing.holds import hold_settle
from billing.ledger import Work, charge_append, load_append, waste_append
from billing.models import UsageRecord
from billing.stored import stored_change
from renderjobs.choices import AttemptOutcome, ImageState
from renderjobs.claims import ClaimedBatch, ClaimedImage, LeaseLost, claim_close, lease_is_valid, work_of
from renderjobs.models import Attempt, ImageAttachment, RenderImage, RenderJob
from renderjobs.rollup import job_settle
from renderjobs.transitions import counted, images_move, jobs_locked


@dataclass(frozen=True, slots=True)
class StoredAttachment:
    """A picture that came along, in storage."""

    role: str
    key: str
    sha256: str
    size_bytes: int
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class StoredPicture:
    """An object that lies in storage, and what is known of it."""

    key: str
    sha256: str
    size_bytes: int
    width: int
    height: int
    infotext: str
    attachments: tuple[StoredAttachment, ...] = ()
    warnings: tuple[str, ...] = ()
    verdict: str = ""


def image_deliver(*, batch: ClaimedBatch, image: ClaimedImage, picture: StoredPicture, gpu_us: int) -> None:
    """Make one image delivered: file row, charge, usage, event and counters in one transaction.

    Calling it again after a lost answer is safe: the image is already delivered with this very object.

    Raises:
        LeaseLost: The image is not this worker's any more; nothing is written.
    """
    if RenderImage.objects.filter(pk=image.image_id, state=ImageState.DELIVERED, file_key=picture.key).exists():
        return
    with transaction.atomic():
        jobs, row = _held(batch, image)
        amount = charge_append(work=_work(image, gpu_us), terms=image.terms)
        images_move(
            [row],
            ImageState.DELIVERED,
            cause="delivered",
            jobs=jobs,
            file_key=picture.key,
            sha256=picture.sha256,
            size_bytes=picture.size_bytes,
            width=picture.width,
            height=picture.height,
            infotext=picture.infotext,
            warnings=list(picture.warnings),
            safety_verdict=picture.verdict,
            gpu_us=gpu_us,
            cost_amount=amount,
            delivered_at=Now(),
        )
        ImageAttachment.objects.bulk_create(
            ImageAttachment(
                image=row,
                position=position,
                role=item.role,
                file_key=item.key,
                sha256=item.sha256,
                size_bytes=item.size_bytes,
                width=item.width,
                height=item.height,
            )
            for position, item in enumerate(picture.attachments)
        )
        _attempt_end(image, AttemptOutcome.DELIVERED, gpu_us=gpu_us)
        RenderJob.objects.filter(pk=row.job_id).update(
            **counted(images_delivered=1, gpu_us=gpu_us), cost_amount=F("cost_amount") + amount
        )
        hold_settle(job_id=row.job_id, amount=amount)
        job_settle(jobs[row.job_id], cause="the last image ended")
        claim_close(batch.claim_id)
        job = jobs[row.job_id]
        size_bytes = picture.size_bytes + sum(item.size_bytes for item in picture.attachments)
        stored_change(team_id=job.team_id, user_id=job.user_id, token_id=job.token_id, by=size_bytes)


def image_fail(
    *, batch: ClaimedBatch, image: ClaimedImage, code: str, message: str, retryable: bool, gpu_us: int = 0
) -> None:
    """Put an image back for another try, or end it as failed. It is never charged; the time is recorded as waste.

    Raises:
        LeaseLost: The image is not this worker's any more; nothing is written.
    """
    with transaction.atomic():
        jobs, row = _held(batch, image)
        job = jobs[row.job_id]
        reason = {"error_code": code, "error_message": message}
        waste_append(work=_work(image, gpu_us), terms=image.terms, outcome="failed")
        _attempt_end(image, AttemptOutcome.FAILED, gpu_us=gpu_us, **reason)
        if retryable and row.attempts < settings.MAX_ATTEMPTS:
            images_move([row], ImageState.WAITING, cause=code, jobs=jobs, claim=None)
        else:
            images_move([row], ImageState.FAILED, cause=code, jobs=jobs, **reason)
            RenderJob.objects.filter(pk=job.pk).update(**counted(images_failed=1), **reason)
            job_settle(job, cause="the last image ended")
        claim_close(batch.claim_id)


def image_waste(*, batch: ClaimedBatch, image: ClaimedImage, gpu_us: int) -> None:
    """Record the card's time on an image that was taken away before it was finished."""
    if gpu_us and not UsageRecord.objects.filter(attempt_id=image.attempt_id).exists():
        with transaction.atomic():
            waste_append(work=_work(image, gpu_us), terms=image.terms, outcome="stopped")


def load_record(*, batch: ClaimedBatch, load_us: int) -> None:
    """The time a micro-batch spent on loading weights; it is no image's."""
    image = batch.images[0]
    with transaction.atomic():
        load_append(claim_id=batch.claim_id, work=_work(image, load_us), terms=image.terms)


def _held(batch: ClaimedBatch, image: ClaimedImage) -> tuple[dict[Any, RenderJob], RenderImage]:
    """The image's row under its job's lock, if this claim still holds it."""
    jobs = jobs_locked([image.job.pk])
    row = RenderImage.objects.filter(
        pk=image.image_id, claim_id=batch.claim_id, fence=image.fence, state=ImageState.RENDERING
    ).first()
    if row is None or not lease_is_valid(batch.claim_id):
        raise LeaseLost
    return jobs, row


def _attempt_end(image: ClaimedImage, outcome: str, **values: Any) -> None:
    Attempt.objects.filter(pk=image.attempt_id).update(outcome=outcome, ended_at=Now(), **values)


def _work(image: ClaimedImage, gpu_us: int) -> Work:
    return work_of(image.job, image.checkpoint, image_id=image.image_id, attempt_id=image.attempt_id, gpu_us=gpu_us)
