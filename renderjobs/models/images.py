"""The unit of work, retry, delivery and charge, with the worker's hold on it and its tries."""

from __future__ import annotations

from django.db import models
from django.db.models import Q

from fleet.models import Pool, Worker
from gpuworker.contract.safety import VERDICTS
from renderjobs.choices import AttemptOutcome, ImageState, Lane
from renderjobs.models.jobs import RenderJob


class Claim(models.Model):
    """A worker's lease on one micro-batch. It is valid while ``expires_at`` lies ahead by the database's clock."""

    worker = models.ForeignKey(Worker, on_delete=models.PROTECT, related_name="claims")
    created_at = models.DateTimeField()
    expires_at = models.DateTimeField()
    ended_at = models.DateTimeField(null=True, help_text="When the last image left it.")
    step = models.PositiveIntegerField(default=0, help_text="Finished denoiser steps of the pass.")
    steps = models.PositiveIntegerField(default=0)

    class Meta:
        ordering = ["-pk"]
        indexes = [models.Index(fields=["expires_at"], condition=Q(ended_at=None), name="claim_by_expiry")]

    def __str__(self) -> str:
        return f"claim {self.pk}"


class RenderImage(models.Model):
    """The states are drawn in ``choices.ImageState``."""

    # The indexes of job and claim are below: each one more is paid for at every submission, ten thousand times.
    job = models.ForeignKey(RenderJob, on_delete=models.PROTECT, related_name="images", db_index=False)
    index = models.PositiveIntegerField()
    seed = models.BigIntegerField()
    subseed = models.BigIntegerField()
    state = models.CharField(max_length=16, choices=ImageState, default=ImageState.WAITING)
    # What claiming needs, kept here so that it reads one index and no other table.
    pool = models.ForeignKey(Pool, on_delete=models.PROTECT, related_name="+", db_index=False)
    lane = models.SmallIntegerField(choices=Lane)
    priority = models.SmallIntegerField()
    pass_key = models.CharField(max_length=32, help_text="Images of one pass key may be denoised together.")
    claim = models.ForeignKey(Claim, null=True, on_delete=models.PROTECT, related_name="images", db_index=False)
    fence = models.PositiveIntegerField(
        default=0, help_text="Grows with every claim; an older holder's writes are refused."
    )
    attempts = models.PositiveSmallIntegerField(default=0, help_text="Tries that count against the limit.")
    held = models.BooleanField(
        default=False, db_default=False, help_text="Its job waits for an approval or is paused, so nobody claims it."
    )
    run_alone = models.BooleanField(default=False, help_text="A worker was lost with it, so it gets a pass of its own.")
    # What delivery fills in.
    file_key = models.CharField(max_length=300, blank=True)
    sha256 = models.CharField(max_length=64, blank=True)
    size_bytes = models.BigIntegerField(default=0)
    width = models.PositiveIntegerField(default=0)
    height = models.PositiveIntegerField(default=0)
    infotext = models.TextField(blank=True)
    warnings = models.JSONField(default=list, blank=True, help_text="What of its recipe had no effect.")
    safety_verdict = models.CharField(
        max_length=8,
        blank=True,
        choices=[(verdict, verdict) for verdict in VERDICTS],
        help_text="Of the safety filter.",
    )
    gpu_us = models.BigIntegerField(default=0)
    cost_amount = models.DecimalField(max_digits=18, decimal_places=6, default=0)
    error_code = models.CharField(max_length=40, blank=True)
    error_message = models.TextField(blank=True)
    delivered_at = models.DateTimeField(null=True)

    class Meta:
        ordering = ["job", "index"]
        indexes = [
            models.Index(fields=["claim"], condition=Q(claim__isnull=False), name="image_by_claim"),
            models.Index(
                fields=["pool", "lane", "-priority", "id"],
                condition=Q(state=ImageState.WAITING, held=False),
                name="image_next",
            ),
            models.Index(
                fields=["pool", "pass_key", "lane", "-priority", "id"],
                condition=Q(state=ImageState.WAITING, held=False),
                name="image_companions",
            ),
        ]
        constraints = [
            models.UniqueConstraint(fields=["job", "index"], name="one_image_per_job_and_index"),
            models.UniqueConstraint(fields=["file_key"], condition=~Q(file_key=""), name="one_image_per_file"),
            models.CheckConstraint(condition=Q(state__in=ImageState.values), name="image_state_is_known"),
            models.CheckConstraint(
                condition=Q(state=ImageState.DELIVERED) & ~Q(file_key="") & ~Q(sha256="")
                | ~Q(state=ImageState.DELIVERED) & Q(file_key=""),
                name="only_a_delivered_image_has_a_file",
            ),
            models.CheckConstraint(
                condition=Q(state__in=[ImageState.CLAIMED, ImageState.RENDERING], claim__isnull=False)
                | ~Q(state__in=[ImageState.CLAIMED, ImageState.RENDERING]),
                name="a_held_image_has_a_claim",
            ),
        ]

    def __str__(self) -> str:
        return f"image {self.index} of {self.job_id}"


class Attempt(models.Model):
    image = models.ForeignKey(RenderImage, on_delete=models.PROTECT, related_name="tries")
    fence = models.PositiveIntegerField()
    claim = models.ForeignKey(Claim, on_delete=models.PROTECT, related_name="tries")
    outcome = models.CharField(max_length=16, choices=AttemptOutcome, default=AttemptOutcome.RUNNING)
    error_code = models.CharField(max_length=40, blank=True)
    error_message = models.TextField(blank=True)
    gpu_us = models.BigIntegerField(default=0)
    started_at = models.DateTimeField()
    ended_at = models.DateTimeField(null=True)

    class Meta:
        ordering = ["image", "fence"]
        constraints = [models.UniqueConstraint(fields=["image", "fence"], name="one_attempt_per_image_and_fence")]

    def __str__(self) -> str:
        return f"attempt {self.fence} at image {self.image_id}"
