"""What the cards were busy with: one row per ended attempt, charged or not, so that waste is visible beside spend."""

from __future__ import annotations

from django.db import models

from accounts.models import Project, Team, User
from fleet.models import Pool


class UsageRecord(models.Model):
    attempt_id = models.BigIntegerField(unique=True)
    job_id = models.UUIDField()
    image_id = models.BigIntegerField()
    team = models.ForeignKey(Team, on_delete=models.PROTECT, related_name="+")
    project = models.ForeignKey(Project, null=True, on_delete=models.PROTECT, related_name="+")
    user = models.ForeignKey(User, on_delete=models.PROTECT, related_name="+")
    token_id = models.BigIntegerField(null=True)
    pool = models.ForeignKey(Pool, on_delete=models.PROTECT, related_name="+")
    checkpoint_sha256 = models.CharField(max_length=64, blank=True)
    checkpoint_name = models.CharField(max_length=200, blank=True)
    pixel_steps = models.BigIntegerField(
        default=0, db_default=0, help_text="Pixels times denoiser steps: what estimates learn from."
    )
    gpu_us = models.BigIntegerField()
    charged = models.BooleanField(help_text="A delivered image's attempt; false is waste.")
    outcome = models.CharField(max_length=16)
    ended_at = models.DateTimeField(db_index=True)

    class Meta:
        ordering = ["pk"]
        indexes = [
            models.Index(
                fields=["pool", "checkpoint_sha256", "-id"],
                condition=models.Q(charged=True),
                name="usage_to_learn_from",
            )
        ]

    def __str__(self) -> str:
        return f"attempt {self.attempt_id}: {self.gpu_us} µs"
