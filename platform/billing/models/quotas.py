"""Limits on how much may be asked for, whatever it costs."""

from __future__ import annotations

from django.db import models

from accounts.models import ApiToken, Team, User


class Measure(models.TextChoices):
    IMAGES_PER_DAY = "images_per_day"
    """Accepted since midnight, UTC."""
    GPU_SECONDS_PER_DAY = "gpu_seconds_per_day"
    """Of delivered images since midnight, UTC."""
    WAITING_JOBS = "waiting_jobs"
    OPEN_JOBS = "open_jobs"
    """Waiting or running at a time."""


class QuotaQuerySet(models.QuerySet["Quota"]):
    def visible_to(self, user: User) -> QuotaQuerySet:
        """Those of the user's teams; a superuser sees all."""
        return self if user.is_superuser else self.filter(team__memberships__user=user)


class Quota(models.Model):
    """Counts the work of all that it names: a team, a member of it, a token. A row that names nothing counts everybody's."""

    team = models.ForeignKey(Team, null=True, blank=True, on_delete=models.CASCADE, related_name="quotas")
    user = models.ForeignKey(User, null=True, blank=True, on_delete=models.CASCADE, related_name="+")
    token = models.ForeignKey(ApiToken, null=True, blank=True, on_delete=models.CASCADE, related_name="+")
    measure = models.CharField(max_length=24, choices=Measure)
    limit = models.PositiveBigIntegerField()
    enabled = models.BooleanField(default=True)

    objects = QuotaQuerySet.as_manager()

    class Meta:
        ordering = ["team", "measure", "pk"]

    def __str__(self) -> str:
        whose = [str(name) for name in (self.token, self.user, self.team) if name]
        return f"{self.measure} of {', '.join(whose) or 'everybody'}"
