"""Limits on how much may be asked for, whatever it costs, and the counters of what cannot be counted anew each time."""

from __future__ import annotations

from django.db import models

from accounts.models import ApiToken, Team, User


class Measure(models.TextChoices):
    IMAGES_PER_DAY = "images_per_day"
    """Accepted since midnight, UTC."""
    GPU_SECONDS_PER_DAY = "gpu_seconds_per_day"
    """Of delivered images since midnight, UTC."""
    GPU_SECONDS_PER_MONTH = "gpu_seconds_per_month"
    """Of delivered images since the first of the month, UTC."""
    WAITING_JOBS = "waiting_jobs"
    OPEN_JOBS = "open_jobs"
    """Waiting or running at a time."""
    QUEUED_IMAGES = "queued_images"
    """Accepted and not begun."""
    RUNNING_IMAGES = "running_images"
    """With workers at a time: what is beyond it waits."""
    STORED_BYTES = "stored_bytes"
    """Of files that are kept, and of those that open jobs may still bring."""
    REQUESTS_PER_MINUTE = "requests_per_minute"
    """By tokens, since the minute began."""


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


class StoredBytes(models.Model):
    """Bytes of the files of one team, by who brought them in. Moves in the transactions that write and remove their rows.

    ``user_id`` and ``token_id`` are 0 where there is none; they are kept when the user or the token goes, so one row alone may fall
    below zero while a team's rows together are right.
    """

    team = models.ForeignKey(Team, on_delete=models.CASCADE, related_name="+")
    user_id = models.BigIntegerField(default=0)
    token_id = models.BigIntegerField(default=0)
    size_bytes = models.BigIntegerField(default=0)

    class Meta:
        ordering = ["team", "user_id", "token_id"]
        constraints = [
            models.UniqueConstraint(fields=["team", "user_id", "token_id"], name="one_count_of_bytes_per_origin")
        ]

    def __str__(self) -> str:
        return f"{self.size_bytes} bytes of {self.team}"


class RequestCount(models.Model):
    """How many requests of a quota the minute has seen in which the newest came."""

    quota = models.OneToOneField(Quota, on_delete=models.CASCADE, related_name="requests")
    minute = models.DateTimeField()
    requests = models.PositiveIntegerField()

    class Meta:
        ordering = ["quota"]

    def __str__(self) -> str:
        return f"{self.requests} in {self.minute}"
