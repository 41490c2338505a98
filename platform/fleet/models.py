"""Pools (one GPU class, one price), the workers that serve them, and what those have learned of their cards."""

from __future__ import annotations

from django.db import models


class Pool(models.Model):
    name = models.SlugField(max_length=64, unique=True)
    gpu_class = models.CharField(
        max_length=64, default="cpu", help_text="One class per pool: pictures of one pool are comparable."
    )
    enabled = models.BooleanField(default=True)

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name


class Worker(models.Model):
    """One process that owns one card. Alive while ``last_seen_at`` is recent by the database's clock."""

    name = models.CharField(max_length=200, unique=True)
    pool = models.ForeignKey(Pool, on_delete=models.PROTECT, related_name="workers")
    device = models.CharField(max_length=120, blank=True)
    card = models.CharField(max_length=80, blank=True, help_text="The card's own number; empty for a CPU.")
    draining = models.BooleanField(default=False, help_text="Finishes what it has and claims nothing more.")
    quarantined_at = models.DateTimeField(
        null=True, blank=True, help_text="Since when it claims nothing until somebody releases it, restarts included."
    )
    quarantine_reason = models.CharField(max_length=300, blank=True)
    quarantined_by = models.CharField(max_length=150, blank=True, help_text="Empty: the platform itself.")
    loaded_checkpoint_sha256 = models.CharField(max_length=64, blank=True)
    report = models.JSONField(default=dict, help_text="Of its last sign of life: memory, and the weights it keeps.")
    started_at = models.DateTimeField()
    last_seen_at = models.DateTimeField()
    stopped_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name


class WorkerDay(models.Model):
    """How long a worker was alive on one day (UTC): what the cards cost whether they render or not."""

    worker = models.ForeignKey(Worker, on_delete=models.PROTECT, related_name="days")
    pool = models.ForeignKey(Pool, on_delete=models.PROTECT, related_name="+")
    day = models.DateField()
    alive_us = models.BigIntegerField(default=0)

    class Meta:
        ordering = ["day", "worker"]
        constraints = [
            models.UniqueConstraint(fields=["worker", "pool", "day"], name="one_row_per_worker_and_day"),
            models.CheckConstraint(
                condition=models.Q(alive_us__gte=0, alive_us__lte=86_400_000_000), name="a_day_has_24_hours"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.worker} on {self.day}"


class PassProfile(models.Model):
    """What passes of so many images took on one kind of card; shared by all workers that have one (H5)."""

    device = models.CharField(max_length=120, help_text="As workers name theirs.")
    build = models.CharField(
        max_length=120, help_text="Of the engine: number format and versions, which decide how fast it is."
    )
    shape = models.CharField(max_length=200, help_text="Family, size and what else decides how long a pass takes.")
    images = models.PositiveIntegerField()
    passes = models.PositiveIntegerField(default=0)
    image_call_ns = models.BigIntegerField(
        null=True, blank=True, help_text="Least time of one image at one call of the denoiser, nanoseconds."
    )
    peak_bytes = models.BigIntegerField(default=0, help_text="Most that a pass took beside the weights.")
    too_large_at = models.DateTimeField(null=True, blank=True, help_text="When it last did not fit into the memory.")
    seen_at = models.DateTimeField()

    class Meta:
        ordering = ["device", "build", "shape", "images"]
        constraints = [
            models.UniqueConstraint(fields=["device", "build", "shape", "images"], name="one_profile_per_pass_size"),
            models.CheckConstraint(
                condition=models.Q(images__gte=1, peak_bytes__gte=0)
                & (models.Q(passes=0, image_call_ns=None) | models.Q(passes__gte=1, image_call_ns__gte=0)),
                name="a_profile_is_of_measured_passes",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.shape}, {self.images} at once, on {self.device}"

    @property
    def milliseconds(self) -> float | None:
        return None if self.image_call_ns is None else self.image_call_ns / 1e6
