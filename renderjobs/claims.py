"""A worker's hold on images: claim a micro-batch, renew its lease, give it back, take it away when it has passed.

Every function is one transaction. Jobs are locked before their images are read, so claim, delivery, cancel and expiry
of one job never interleave. Times are the database's; a claim whose ``expires_at`` has passed can never be renewed.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

from django.conf import settings
from django.db import transaction
from django.db.models import Exists, F, OuterRef, QuerySet
from django.db.models.functions import Now

from billing.deployment_clock import billed_services
from billing.holds import holds_locked, terms_of
from billing.ledger import Work, waste_append
from billing.models import UsageRecord
from billing.pricing import Terms
from billing.ratecards import price_in_force
from common.database import now_plus
from gpuworker.contract import AnyRecipe, Weights
from renderjobs.choices import IMAGE_HELD, AttemptOutcome, ImageState, JobState
from renderjobs.expansion import recipe_from, recipe_of
from renderjobs.models import Attempt, Claim, RenderImage, RenderJob
from renderjobs.request import RenderRequest
from renderjobs.rollup import job_settle
from renderjobs.running_room import RunningRoom
from renderjobs.transitions import counted, images_move, job_move, jobs_locked
from renderjobs.work import pixel_steps

logger = logging.getLogger(__name__)
CLAIM_RETRIES = 5
SizeOf = Callable[[AnyRecipe], int]
"""How many images like this one may share a pass."""


class LeaseLost(Exception):
    """The image is not this worker's any more: its lease passed, or the job was cancelled. An expected end."""


@dataclass(frozen=True, slots=True)
class ClaimedImage:
    """One image in a worker's hands; ``fence`` proves it on every write."""

    image_id: int
    attempt_id: int
    fence: int
    index: int
    run_alone: bool
    job: RenderJob
    recipe: AnyRecipe
    terms: Terms

    @property
    def checkpoint(self) -> Weights | None:
        """None for an image that is not drawn."""
        return getattr(self.recipe, "checkpoint", None)


@dataclass(frozen=True, slots=True)
class ClaimedBatch:
    """A micro-batch under one lease. Its images may be of several jobs, each with its own price."""

    claim_id: int
    images: tuple[ClaimedImage, ...]

    @property
    def suspect(self) -> bool:
        """Its image was with a worker that was lost, so nothing else may be under way while it renders."""
        return self.images[0].run_alone


def waiting_in(pool_id: int) -> QuerySet[RenderImage]:
    """The pool's queue, in order: lane, priority, then submission."""
    waiting = RenderImage.objects.filter(pool_id=pool_id, state=ImageState.WAITING, held=False)
    return waiting.order_by("lane", "-priority", "pk")


def as_many_as_may(recipe: AnyRecipe) -> int:
    return settings.MAX_MICROBATCH


def next_in_line(*, pool_id: int, after: Collection[uuid.UUID]) -> tuple[AnyRecipe, int] | None:
    """The recipe of the image that waits first, without seeds, and its team; None where it is of these jobs, or none waits."""
    lead = waiting_in(pool_id).values("job_id").first()
    if lead is None or lead["job_id"] in after:
        return None
    job = RenderJob.objects.filter(pk=lead["job_id"]).values("lock", "team_id").first()
    return (recipe_from(job["lock"]), job["team_id"]) if job else None


def microbatch_claim(*, worker_id: int, pool_id: int, size_of: SizeOf = as_many_as_may) -> ClaimedBatch | None:
    """Lease the first waiting image and others that may share its pass; None when nothing waits that may run now.

    Args:
        size_of: Asked where more than one waits.
    """
    room = RunningRoom.of_now()
    for _ in range(CLAIM_RETRIES):
        waiting = room.of_those_with_room(waiting_in(pool_id))
        lead = waiting.values("pk", "job_id", "pass_key", "run_alone").first()
        if lead is None:
            return None
        with transaction.atomic():
            room = room.locked()
            jobs, images = _companions_locked(room.of_those_with_room(waiting_in(pool_id)), lead, size_of)
            if images := room.taken_by(images, jobs):
                return _lease(worker_id, pool_id, jobs, images)
    return None  # others were faster each time; the next wake-up or poll comes again


def _companions_locked(
    waiting: QuerySet[RenderImage], lead: dict, size_of: SizeOf
) -> tuple[dict[uuid.UUID, RenderJob], list[RenderImage]]:
    """The images to take, read again under the lock of their jobs: another worker may have been faster."""
    if lead["run_alone"]:
        jobs = jobs_locked([lead["job_id"]])
        return jobs, list(waiting.filter(pk=lead["pk"]))
    together = waiting.filter(pass_key=lead["pass_key"], run_alone=False)
    job_ids = {job_id for (job_id,) in together.values_list("job_id")[: settings.MAX_MICROBATCH]}
    jobs = jobs_locked(job_ids)
    images = list(together.filter(job_id__in=jobs)[: settings.MAX_MICROBATCH])
    if len(images) < 2:
        return jobs, images
    return jobs, images[: size_of(recipe_from(jobs[images[0].job_id].lock))]


def _lease(worker_id: int, pool_id: int, jobs: dict[uuid.UUID, RenderJob], images: list[RenderImage]) -> ClaimedBatch:
    claim = Claim.objects.create(worker_id=worker_id, created_at=Now(), expires_at=now_plus(settings.LEASE_SECONDS))
    images_move(
        images,
        ImageState.CLAIMED,
        cause=f"claim {claim.pk}",
        jobs=jobs,
        claim=claim,
        fence=F("fence") + 1,
        attempts=F("attempts") + 1,
    )
    attempts = Attempt.objects.bulk_create(
        [Attempt(image=image, fence=image.fence + 1, claim=claim, started_at=Now()) for image in images]
    )
    for job in jobs.values():
        if job.state == JobState.QUEUED and any(image.job_id == job.pk for image in images):
            job_move(job, JobState.RUNNING, cause=f"claim {claim.pk}")
    terms = job_terms(jobs)
    requests = {pk: RenderRequest.from_json(job.request) for pk, job in jobs.items()}
    claimed = tuple(
        ClaimedImage(
            image_id=image.pk,
            attempt_id=attempt.pk,
            fence=attempt.fence,
            index=image.index,
            run_alone=image.run_alone,
            job=jobs[image.job_id],
            recipe=recipe_of(
                recipe_from(jobs[image.job_id].lock, image.index),
                requests[image.job_id],
                index=image.index,
                seed=image.seed,
                subseed=image.subseed,
            ),
            terms=terms[image.job_id],
        )
        for image, attempt in zip(images, attempts, strict=True)
    )
    return ClaimedBatch(claim.pk, claimed)


def job_terms(jobs: Mapping[uuid.UUID, RenderJob]) -> dict[uuid.UUID, Terms]:
    """What was agreed with each job. One that was accepted before there were holds pays the price of its day."""
    terms = terms_of(jobs)
    for pk, job in jobs.items():
        if pk not in terms:
            price = price_in_force(pool_id=job.pool_id, lane=job.lane, at=job.created_at)
            terms[pk] = Terms(price=price, pixel_steps=pixel_steps(RenderRequest.from_json(job.request)))
    return _with_deployments(jobs, terms)


def _with_deployments(jobs: Mapping[uuid.UUID, RenderJob], terms: dict[uuid.UUID, Terms]) -> dict[uuid.UUID, Terms]:
    """A job that was accepted before its service's instances came onto a bill is not charged beside them."""
    asked = {pk: job.service_id for pk, job in jobs.items() if job.service_id and not terms[pk].deployed}
    billed = billed_services(set(asked.values())) if asked else set()
    return {pk: replace(one, deployed=True) if asked.get(pk) in billed else one for pk, one in terms.items()}


def held_images(claim_id: int) -> tuple[dict[uuid.UUID, RenderJob], list[RenderImage]]:
    """The claim's unfinished images and their jobs, locked; call inside a transaction."""
    job_ids = RenderImage.objects.filter(claim_id=claim_id, state__in=IMAGE_HELD).values_list("job_id", flat=True)
    jobs = jobs_locked(set(job_ids))
    return jobs, list(RenderImage.objects.filter(claim_id=claim_id, state__in=IMAGE_HELD).order_by("pk"))


def lease_is_valid(claim_id: int) -> bool:
    return Claim.objects.filter(pk=claim_id, ended_at=None, expires_at__gt=Now()).exists()


def lease_renew(*, claim_id: int, step: int, steps: int) -> bool:
    """Extend a valid lease and publish the pass's progress; False when it has passed or nothing is left to do."""
    valid = Claim.objects.filter(pk=claim_id, ended_at=None, expires_at__gt=Now())
    return bool(valid.update(expires_at=now_plus(settings.LEASE_SECONDS), step=step, steps=steps))


@transaction.atomic
def rendering_begin(*, claim_id: int) -> None:
    """Raises: LeaseLost: The lease has passed, or every image of it was cancelled."""
    jobs, images = held_images(claim_id)
    if not images or not lease_is_valid(claim_id):
        raise LeaseLost
    images_move(images, ImageState.RENDERING, cause="rendering begins", jobs=jobs)


@transaction.atomic
def lease_release(*, claim_id: int, cause: str) -> None:
    """Give unfinished images back at once; it does not count as a failed attempt."""
    jobs, images = held_images(claim_id)
    _end_attempts(images, AttemptOutcome.RELEASED)
    images_move(images, ImageState.WAITING, cause=cause, jobs=jobs, claim=None, attempts=F("attempts") - 1)
    claim_close(claim_id)


def leases_expire() -> int:
    """Take images back from workers whose lease has passed; returns how many claims ended."""
    passed = Claim.objects.filter(ended_at=None, expires_at__lte=Now()).values_list("pk", flat=True)
    for claim_id in list(passed):
        _expire(claim_id)
    return len(passed)


@transaction.atomic
def _expire(claim_id: int) -> None:
    """An image goes back and runs alone, for it may be what killed the worker; at the limit it fails as poison."""
    jobs, images = held_images(claim_id)
    if lease_is_valid(claim_id):
        return
    cause = f"the lease of claim {claim_id} passed"
    _record_lost(claim_id, jobs, images)
    _end_attempts(images, AttemptOutcome.LOST)
    poison = [image for image in images if image.attempts >= settings.MAX_ATTEMPTS]
    again = [image for image in images if image.attempts < settings.MAX_ATTEMPTS]
    images_move(again, ImageState.WAITING, cause=cause, jobs=jobs, claim=None, run_alone=True)
    message = f"The worker was lost {settings.MAX_ATTEMPTS} times while rendering this image."
    images_move(poison, ImageState.FAILED, cause=cause, jobs=jobs, error_code="poison", error_message=message)
    if poison:
        holds_locked({image.job_id for image in poison})
    for image in poison:
        job = jobs[image.job_id]
        failed = {"error_code": "poison", "error_message": message}
        RenderJob.objects.filter(pk=job.pk).update(**counted(images_failed=1), **failed)
        job_settle(job, cause=cause)
    claim_close(claim_id)
    logger.warning("Claim %s passed: %d images wait again, %d failed", claim_id, len(again), len(poison))


def _record_lost(claim_id: int, jobs: dict[uuid.UUID, RenderJob], images: Sequence[RenderImage]) -> None:
    """The card's time that went with a worker: from the claim to its last sign of life, shared evenly."""
    claim = Claim.objects.get(pk=claim_id)
    last_seen = claim.expires_at - timedelta(seconds=settings.LEASE_SECONDS)
    held_us = max(0, (last_seen - claim.created_at) // timedelta(microseconds=1))
    terms = job_terms(jobs)
    running = Attempt.objects.filter(image__in=images, ended_at=None).select_related("image")
    # The worker may be back and have told its time itself.
    told = UsageRecord.objects.filter(attempt_id=OuterRef("pk"))
    for attempt in running.exclude(Exists(told)):
        job = jobs[attempt.image.job_id]
        checkpoint = getattr(recipe_from(job.lock), "checkpoint", None)
        share_us = held_us // len(images)
        work = work_of(job, checkpoint, image_id=attempt.image_id, attempt_id=attempt.pk, gpu_us=share_us)
        waste_append(work=work, terms=terms[job.pk], outcome=AttemptOutcome.LOST)


def work_of(job: RenderJob, checkpoint: Weights | None, *, image_id: int, attempt_id: int, gpu_us: int) -> Work:
    """An attempt as the ledger names it."""
    return Work(
        job_id=job.pk,
        image_id=image_id,
        attempt_id=attempt_id,
        team_id=job.team_id,
        project_id=job.project_id,
        user_id=job.user_id,
        token_id=job.token_id,
        pool_id=job.pool_id,
        lane=job.lane,
        checkpoint_sha256=checkpoint.sha256 if checkpoint else "",
        checkpoint_name=checkpoint.name if checkpoint else "",
        gpu_us=gpu_us,
        service=job.service.name if job.service else "",
        tags=job.tags,
    )


def _end_attempts(images: Sequence[RenderImage], outcome: str) -> None:
    running = Attempt.objects.filter(image__in=images, ended_at=None)
    running.update(outcome=outcome, ended_at=Now())


def claim_close(claim_id: int) -> None:
    """End the claim if no image of it is held any more."""
    open_claim = Claim.objects.filter(pk=claim_id, ended_at=None)
    if not RenderImage.objects.filter(claim_id=claim_id, state__in=IMAGE_HELD).exists():
        open_claim.update(ended_at=Now())
