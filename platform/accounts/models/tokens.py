"""API tokens: 256 random bits shown once, kept as a keyed hash."""

from __future__ import annotations

import ipaddress

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
    networks = models.JSONField(
        default=list, blank=True, help_text="From where it may be used, such as 10.1.0.0/16; empty: from anywhere."
    )
    expires_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True)
    last_used_at = models.DateTimeField(null=True, blank=True, editable=False)
    created_at = models.DateTimeField(auto_now_add=True)

    objects = ApiTokenQuerySet.as_manager()

    class Meta:
        ordering = ["-created_at"]

    def __str__(self) -> str:
        return f"{self.prefix}… of {self.user} in {self.team}"

    def is_usable_from(self, address: str) -> bool:
        """``address`` as the web server has it; empty where there is none, as within a test or a shell."""
        if not self.networks:
            return True
        try:
            seen = ipaddress.ip_address(address)
        except ValueError:
            return False
        seen = getattr(seen, "ipv4_mapped", None) or seen
        return any(seen in ipaddress.ip_network(network) for network in self.networks)

    def has_scope(self, scope: str) -> bool:
        return scope in self.scopes
