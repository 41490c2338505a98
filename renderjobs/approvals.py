"""Jobs that wait for consent: asked for by a budget at submission, given or refused here by who answers for that budget.

A held job has its hold and its images like any other; they are only not claimed. Declining is cancelling.
"""

from __future__ import annotations

from django.db import transaction
from django.db.models.functions import Now

from accounts.models import Role, User
from billing.models import Budget
from common.errors import ConflictError, ForbiddenError
from renderjobs.choices import JobState
from renderjobs.dispatch import wake_on_commit
from renderjobs.models import JobApproval, RenderImage, RenderJob
from renderjobs.submission import job_cancel
from renderjobs.transitions import job_move, jobs_locked


def may_decide(user: User, budget: Budget) -> bool:
    """A team's lead decides about the team's budgets; what concerns all teams, who runs the platform."""
    if user.is_superuser:
        return True
    return budget.team is not None and user.role_in(budget.team) == Role.LEAD


def job_approve(*, job: RenderJob, user: User, note: str = "") -> None:
    """Let a held job into the queue.

    Raises:
        ForbiddenError: The user does not answer for the budget.
        ConflictError: Nobody is asked about this job any more.
    """
    with transaction.atomic():
        current = _decided(job, user, approved=True, note=note)
        RenderImage.objects.filter(job=current, held=True).update(held=False)
        job_move(current, JobState.QUEUED, cause=f"approved by {user}")
        wake_on_commit(current.pool.name)


def job_decline(*, job: RenderJob, user: User, note: str = "") -> None:
    """Refuse a held job; what was held for it is released.

    Raises:
        ForbiddenError, ConflictError: As ``job_approve``.
    """
    with transaction.atomic():
        _decided(job, user, approved=False, note=note)
        job_cancel(job=job, cause=f"declined by {user}")


def _decided(job: RenderJob, user: User, *, approved: bool, note: str) -> RenderJob:
    current = jobs_locked([job.pk])[job.pk]
    approval = JobApproval.objects.filter(job=current, approved=None).select_related("budget__team").first()
    if approval is None or current.state != JobState.HELD:
        raise ConflictError(f"The job is {current.state}; only a held job can be approved or declined.")
    if not may_decide(user, approval.budget):
        raise ForbiddenError(f"Budget {approval.budget.name} is not yours to decide about.")
    JobApproval.objects.filter(pk=approval.pk).update(
        approved=approved, decided_by=user, decided_at=Now(), note=note[:500]
    )
    return current
