"""A job that a budget would only let through with somebody's consent, and what that person said."""

from __future__ import annotations

from django.db import models
from django.db.models import Q

from accounts.models import User
from billing.models import Budget
from renderjobs.models.jobs import RenderJob


class JobApprovalQuerySet(models.QuerySet["JobApproval"]):
    def visible_to(self, user: User) -> JobApprovalQuerySet:
        """Those of the user's teams; a superuser sees all."""
        return self if user.is_superuser else self.filter(job__team__memberships__user=user)


class JobApproval(models.Model):
    """Open until it is decided, or until its job is cancelled."""

    job = models.OneToOneField(RenderJob, on_delete=models.CASCADE, related_name="approval")
    budget = models.ForeignKey(Budget, on_delete=models.PROTECT, related_name="+")
    asked_at = models.DateTimeField()
    approved = models.BooleanField(null=True)
    decided_by = models.ForeignKey(User, null=True, on_delete=models.PROTECT, related_name="+")
    decided_at = models.DateTimeField(null=True)
    note = models.CharField(max_length=500, blank=True)

    objects = JobApprovalQuerySet.as_manager()

    class Meta:
        ordering = ["-pk"]
        constraints = [
            models.CheckConstraint(
                condition=Q(approved=None, decided_by=None, decided_at=None)
                | Q(approved__isnull=False, decided_by__isnull=False, decided_at__isnull=False),
                name="a_decision_has_a_person_and_a_time",
            )
        ]

    def __str__(self) -> str:
        return f"approval of job {self.job_id}"
