"""Imports from the model zoo. In a module of its own, which ``assets.models`` shows to Django."""

from __future__ import annotations

from django.db import models
from django.db.models import Q

from accounts.models import User


class ZooState(models.TextChoices):
    WAITING = "waiting"
    RUNNING = "running"
    ENDED = "ended"
    FAILED = "failed"


ZOO_OPEN = (ZooState.WAITING, ZooState.RUNNING)


class ZooImport(models.Model):
    """One model of the zoo that is fetched, in the background.

    ::

        waiting ⇄ running ──→ ended | failed ──asked for again──→ waiting, where its upload is still there

    The bytes arrive as the parts of the asset's upload, so what is here already is not fetched again.
    """

    entry = models.CharField(max_length=60, help_text="Its key in the zoo.")
    asset = models.ForeignKey("assets.Asset", null=True, on_delete=models.SET_NULL, related_name="+")
    state = models.CharField(max_length=8, choices=ZooState, default=ZooState.WAITING)
    reason = models.TextField(blank=True)
    version = models.CharField(max_length=200, blank=True, help_text="What the server calls this state of the file.")
    fence = models.PositiveIntegerField(default=0, help_text="Grows with each worker that takes it over.")
    failures = models.PositiveSmallIntegerField(default=0, help_text="Of the server, in a row.")
    started_by = models.ForeignKey(User, null=True, on_delete=models.SET_NULL, related_name="+")
    created_at = models.DateTimeField()
    began_at = models.DateTimeField(null=True, help_text="When the present worker began.")
    bytes_before = models.BigIntegerField(default=0, help_text="Here when the present worker began, for its speed.")
    touched_at = models.DateTimeField(null=True)
    ended_at = models.DateTimeField(null=True)

    class Meta:
        ordering = ["-created_at"]
        constraints = [
            models.UniqueConstraint(
                fields=["entry"], condition=Q(state__in=["waiting", "running"]), name="one_open_import_per_zoo_entry"
            )
        ]

    def __str__(self) -> str:
        return self.entry
