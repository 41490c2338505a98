"""job_submit, job_estimate and job_cancel. One transaction accepts a job with everything it needs, the money included."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models.functions import Now

from accounts.authentication import Caller
from accounts.models import READING_ROLES, Project, User
from billing.deployment_clock import billed_services
from billing.errors import BudgetExceededError, QuotaExceededError
from billing.estimates import Estimate, estimate
from billing.holds import Free, Placed, free_budgets, hold_place
from billing.models import Measure
from billing.quotas import asked_by_a_job, quotas_check
from billing.ratecards import price_in_force
from billing.subjects import Subject
from common.database import insert_rows, now_plus
from common.errors import ConflictError, FieldError, ForbiddenError, InvalidRequestError
from fleet.services import pools_for_new_jobs
from renderjobs.choices import IMAGE_HELD, JOB_OPEN, AttemptOutcome, ImageState, JobState, Lane
from renderjobs.claims import claim_close
from renderjobs.dispatch import wake_on_commit
from renderjobs.expansion import lock_of, pass_digest, seeds_of
from renderjobs.inputs import Upload, input_store, inputs_new
from renderjobs.models import (
    Attempt,
    BatchSchedule,
    IdempotencyRecord,
    InputFile,
    JobApproval,
    RenderImage,
    RenderJob,
    ScriptCall,
    TemplateVersion,
)
from renderjobs.models.jobs import WAITED_FOR
from renderjobs.outputs import SavedUnder
from renderjobs.pinning import Pinned, pinned
from renderjobs.placing import pool_for
from renderjobs.request import RenderRequest
from renderjobs.rollup import job_settle
from renderjobs.safety import with_safety
from renderjobs.selectors import service_of
from renderjobs.transitions import counted, images_move, job_created, jobs_locked
from renderjobs.work import image_bytes, pixel_steps

MAX_TAGS, MAX_TAG_LENGTH = 20, 64


@dataclass(frozen=True, slots=True)
class Submitted:
    """``replayed`` is True when an earlier call with the same key or task id made the job."""

    job: RenderJob
    replayed: bool


@dataclass(frozen=True, slots=True)
class Accepted:
    """A request that passed every check a submission makes, before anything is stored."""

    job: RenderJob
    pins: Pinned
    estimate: Estimate

    @property
    def subject(self) -> Subject:
        job = self.job
        return Subject(
            job_id=job.pk,
            team_id=job.team_id,
            user_id=job.user_id,
            project_id=job.project_id,
            token_id=job.token_id,
            tags=job.tags,
        )


def job_submit(
    *,
    caller: Caller,
    request: RenderRequest,
    source: str,
    body: Any = None,
    idempotency_key: str = "",
    task_id: str = "",
    lane: int = Lane.STANDARD,
    priority: int = 0,
    project: str = "",
    tags: Mapping[str, str] | None = None,
    template_version: TemplateVersion | None = None,
    schedule: BatchSchedule | None = None,
    scheduled_for: datetime | None = None,
    script: tuple[ScriptCall, int] | None = None,
    uploads: Sequence[Upload] = (),
    ceiling: Decimal | None = None,
    saved: SavedUnder | None = None,
) -> Submitted:
    """Accept a job: the job, its images and the idempotency record in one transaction, the wake-up after it.

    Args:
        body: What the caller sent, compared when ``idempotency_key`` comes again. A repeated ``task_id`` names the job it
            named before, whatever else is sent: clients repeat a call by it alone.
        script: The call the job is a part of, and its number there.
        uploads: The pictures the request names; those that are stored already cost nothing.
        ceiling: The most that may have to be held for it; None for any amount.
        saved: The folder its pictures go to; None: one of the job's own.
    Raises:
        InvalidRequestError: Checkpoint, project or tags cannot be used, or no pool may run all its models; nothing is stored.
        ConflictError: The key was used before with another body, the task id by another member of the team, or it might
            cost more than the ceiling.
        UnavailableError: No pool, or no price for it.
        SafetyFilterMissingError: Its pictures must be looked at, and nothing is installed that could.
        BudgetExceededError, QuotaExceededError: It does not fit; nothing is stored.
    """
    _require_may_submit(caller)
    digest = body_digest(body)
    if earlier := _earlier(caller, idempotency_key, task_id, digest):
        return Submitted(earlier, replayed=True)
    request = with_safety(request, caller=caller)
    accepted = _accepted(caller, request, source=source, lane=lane, project=project, tags=tags or {})
    if ceiling is not None and accepted.estimate.most > ceiling:
        most = f"{accepted.estimate.most:.6f} {accepted.job.currency}"
        raise ConflictError(f"It might cost {most}; the ceiling is {ceiling:.6f}.")
    job, pins = accepted.job, accepted.pins
    job.priority, job.task_id = priority, task_id
    job.template_version, job.schedule, job.scheduled_for = template_version, schedule, scheduled_for
    job.script_call, job.script_cell = script or (None, None)
    if saved:
        job.save_dir, job.save_folder = saved.path, saved.folder
    pattern = RenderImage(job=job, pool_id=job.pool_id, lane=job.lane, priority=job.priority)
    seeds = seeds_of(request, random.SystemRandom())
    try:
        _inputs_stored(accepted, uploads)
        with transaction.atomic():
            placed = _placed(accepted)
            if placed.approval:
                job.state, pattern.held = JobState.HELD, True
            job.save(force_insert=True)
            if placed.approval:
                JobApproval.objects.create(job=job, budget=placed.approval.account.budget, asked_at=Now())
            job.assets.set(pins.assets.values())
            job.inputs.set(InputFile.objects.filter(team=caller.team, sha256__in=_hashes(request)))
            job_created(job, cause=f"submitted through {source}")
            rows = [(index, seed, subseed) for index, (seed, subseed) in enumerate(seeds)]
            for pattern.pass_key, indices in _passes(pins).items():
                chosen = rows if indices is None else [rows[index] for index in indices]
                insert_rows(pattern, varying=("index", "seed", "subseed"), rows=chosen)
            if idempotency_key:
                _remember(caller, idempotency_key, digest, job)
            wake_on_commit(job.pool.name)
    except (IntegrityError, BudgetExceededError, QuotaExceededError):
        # Two calls with one key raced; the other one's job is the answer to both, and what it took is taken by both.
        earlier = _earlier(caller, idempotency_key, task_id, digest)
        if earlier is None:
            if task_id and RenderJob.objects.filter(team=caller.team, task_id=task_id).exists():
                message = f"Task id {task_id!r} is in use by another member of the team."
                raise ConflictError(message, field="force_task_id") from None
            raise
        return Submitted(earlier, replayed=True)
    job.refresh_from_db(fields=["created_at"])
    return Submitted(job, replayed=False)


def _inputs_stored(accepted: Accepted, uploads: Sequence[Upload]) -> None:
    """Keep the pictures of a job that will be accepted: of one that is refused, nothing stays.

    Raises:
        BudgetExceededError, QuotaExceededError: It is refused.
    """
    team = accepted.job.team
    new = inputs_new(team=team, uploads=uploads)
    if new:
        with transaction.atomic():
            _placed(accepted, more_bytes=sum(len(upload.data) for upload in new.values()))
            transaction.set_rollback(True)
    input_store(team=team, uploads=new.values())


def _placed(accepted: Accepted, *, more_bytes: int = 0) -> Placed:
    """What a job takes of quotas and budgets, inside the caller's transaction.

    Raises:
        BudgetExceededError, QuotaExceededError: It does not fit, or its caller cannot wait for the approval it needs.
    """
    job = accepted.job
    asked = asked_by_a_job(images=job.images_total, image_bytes=job.image_bytes)
    asked[Measure.STORED_BYTES] += more_bytes
    quotas_check(subject=accepted.subject, asked=asked)
    placed = hold_place(subject=accepted.subject, estimate=accepted.estimate)
    if placed.approval and job.source in WAITED_FOR:
        raise placed.approval
    return placed


def job_repeat(*, job: RenderJob, user: User, source: str) -> RenderJob:
    """The same request once more as a new job of ``user``: with the models of today, and new seeds where the caller left them open.

    Raises:
        PlatformError: As ``job_submit``.
    """
    return job_submit(
        caller=Caller(user=user, team=job.team),
        request=RenderRequest.from_json(job.request),
        source=source,
        lane=job.lane,
        priority=job.priority,
        project=job.project.name if job.project else "",
        tags=job.tags,
    ).job


def job_estimate(
    *, caller: Caller, request: RenderRequest, lane: int, project: str = "", tags: Mapping[str, str] | None = None
) -> tuple[Estimate, list[Free]]:
    """What ``job_submit`` would hold, and what the budgets have left. The same checks; nothing is stored.

    Raises:
        PlatformError: As ``job_submit`` before it asks for money.
    """
    _require_may_submit(caller)
    request = with_safety(request, caller=caller)
    accepted = _accepted(caller, request, source="", lane=lane, project=project, tags=tags or {})
    return accepted.estimate, free_budgets(subject=accepted.subject, currency=accepted.job.currency)


def _require_may_submit(caller: Caller) -> None:
    """Raises: ForbiddenError: Who only reads a team's work, or its money, adds nothing to either."""
    role = caller.user.role_in(caller.team)
    if role in READING_ROLES:
        raise ForbiddenError(f"Jobs are submitted by leads and members, not in the role {role}.")


def _accepted(
    caller: Caller,
    request: RenderRequest,
    *,
    source: str,
    lane: int,
    project: str,
    tags: Mapping[str, str],
) -> Accepted:
    """Everything that can be refused without asking what others have taken; reads only."""
    pins = pinned(caller, request)
    service = service_of(caller)
    pool = pool_for(pins.assets.values(), pools_for_new_jobs(service.pool if service else None))
    price = price_in_force(pool_id=pool.pk, lane=lane)
    job = RenderJob(
        kind=request.kind,
        source=source,
        team=caller.team,
        project=_project(caller, project),
        user=caller.user,
        token=caller.token,
        pool=pool,
        service=service,
        checkpoint=pins.checkpoint,
        lane=lane,
        request=request.to_json(),
        lock=lock_of(pins.recipe, pins.own),
        warnings=pins.warnings,
        tags=_tags(tags),
        images_total=request.images_total,
        image_bytes=image_bytes(request),
        currency=price.currency,
        event_sequence=1,
        created_at=Now(),
    )
    by_instances = service is not None and bool(billed_services([service.pk]))
    expected = estimate(
        price=price,
        pool_id=pool.pk,
        checkpoint_sha256=pins.checkpoint.sha256 if pins.checkpoint else "",
        images=request.images_total,
        pixel_steps=pixel_steps(request),
        deployed=by_instances,
    )
    return Accepted(job, pins, expected)


def job_cancel(
    *, job: RenderJob, cause: str = "cancelled by the caller", indices: Collection[int] | None = None
) -> RenderJob:
    """Take back what is not delivered. Waiting images end now; a worker sees the flag at its next step.

    Cancelling an ended job changes nothing.

    Args:
        indices: Of the images to take back; None means all.
    """
    with transaction.atomic():
        locked = jobs_locked([job.pk])
        current = locked[job.pk]
        if current.state in JOB_OPEN:
            rows = RenderImage.objects.filter(job=current, state__in=[ImageState.WAITING, *IMAGE_HELD])
            chosen = rows if indices is None else rows.filter(index__in=indices)
            images = list(chosen)
            running = Attempt.objects.filter(image__in=chosen.values("pk"), ended_at=None)
            running.update(outcome=AttemptOutcome.CANCELLED, ended_at=Now())
            images_move(images, ImageState.CANCELLED, cause=cause, jobs=locked)
            for claim_id in {image.claim_id for image in images if image.claim_id}:
                claim_close(claim_id)
            RenderJob.objects.filter(pk=current.pk).update(**counted(images_cancelled=len(images)))
            job_settle(current, cause=cause)
    return RenderJob.objects.get(pk=job.pk)


def _hashes(request: RenderRequest) -> set[str]:
    return {picture.sha256 for picture in request.inputs()}


def body_digest(body: Any) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, default=str).encode()).hexdigest()


def _earlier(caller: Caller, key: str, task_id: str, digest: str) -> RenderJob | None:
    """The job an earlier call with this key or task id made.

    Raises:
        ConflictError: That call had another body.
    """
    if key and caller.token:
        fresh = IdempotencyRecord.objects.filter(created_at__gt=now_plus(-settings.IDEMPOTENCY_DAYS * 86_400))
        record = fresh.filter(token=caller.token, key=key).select_related("job").first()
        if record is not None:
            if record.body_sha256 != digest:
                raise ConflictError(
                    f"Idempotency-Key {key!r} was used before with another body.", field="Idempotency-Key"
                )
            return record.job
    if task_id:
        return RenderJob.objects.filter(team=caller.team, user=caller.user, task_id=task_id).first()
    return None


def _remember(caller: Caller, key: str, digest: str, job: RenderJob) -> None:
    IdempotencyRecord.objects.filter(
        token=caller.token, key=key, created_at__lte=now_plus(-settings.IDEMPOTENCY_DAYS * 86_400)
    ).delete()
    IdempotencyRecord.objects.create(token=caller.token, key=key, body_sha256=digest, job=job, created_at=Now())


def _project(caller: Caller, name: str) -> Project | None:
    if not name:
        return None
    project = Project.objects.filter(team=caller.team, name=name).first()
    if project is None:
        raise InvalidRequestError([FieldError("project", f"Project {name!r} is unknown in this team.", name)])
    return project


def _tags(tags: Mapping[str, str]) -> dict[str, str]:
    wrong = [
        key
        for key, value in tags.items()
        if not isinstance(value, str) or not 0 < len(key) <= MAX_TAG_LENGTH or len(value) > MAX_TAG_LENGTH
    ]
    if wrong or len(tags) > MAX_TAGS:
        message = f"Tags are at most {MAX_TAGS} pairs of texts of up to {MAX_TAG_LENGTH} characters."
        raise InvalidRequestError([FieldError("tags", message)])
    return dict(tags)


def _passes(pins: Pinned) -> dict[str, list[int] | None]:
    """Pass key → the images that may be denoised together; None is all of them."""
    if not pins.own:
        return {pass_digest(pins.recipe): None}
    found: dict[str, list[int] | None] = {}
    for index, recipe in enumerate(pins.own):
        indices = found.setdefault(pass_digest(recipe), [])
        assert indices is not None
        indices.append(index)
    return found
