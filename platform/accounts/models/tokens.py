"""API tokens: 256 random bits shown once, kept as a keyed hash."""

from __future__ import annotations

from django.db import models
from django.db.models import Q
from django.db.models.functions import Now

from accounts.models.teams import Team, User


class Scope(models.TextChoices):
    SDAPI = "sdapi"
    JOBS_READ = "jobs:read"
    JOBS_WRITE = "jobs:write"
    JOBS_CANCEL = "jobs:cancel"
    MODELS_READ = "models:read"
    MODELS_WRITE = "models:write"
    USAGE_READ = "usage:read"


def all_scopes() -> list[str]:
    return list(Scope.values)


class ApiTokenQuerySet(models.QuerySet["ApiToken"]):
    def usable(self) -> ApiTokenQuerySet:
        """Not revoked, not expired, of an active user who is still a member of the team."""
        return self.filter(
            Q(expires_at__isnull=True) | Q(expires_at__gt=Now()),
            revoked_at__isnull=True,
            user__is_active=True,
            user__memberships__team=models.F("team"),
        )


class ApiToken(models.Model):
    """Acts for one user in one team."""

    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="api_tokens")
    team = models.ForeignKey(Team, on_delete=models.CASCADE, related_name="api_tokens")
    name = models.CharField(max_length=120, blank=True)
    digest = models.CharField(max_length=64, unique=True, editable=False)
    prefix = models.CharField(
        max_length=12, editable=False, help_text="The first characters, to recognise the token by."
    )
    scopes = models.JSONField(default=all_scopes)
    expires_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True)
    last_used_at = models.DateTimeField(null=True, blank=True, editable=False)
    created_at = models.DateTimeField(auto_now_add=True)

    objects = ApiTokenQuerySet.as_manager()

    class Meta:
        ordering = ["-created_at"]

    def __str__(self) -> str:
        return f"{self.prefix}… of {self.user} in {self.team}"

    def has_scope(self, scope: str) -> bool:
        return scope in self.scopes
