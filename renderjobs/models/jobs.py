"""What was submitted, what happened to it, and the answers that are repeated for a repeated key."""

from __future__ import annotations

from django.db import models
from django.db.models import Q

from accounts.models import ApiToken, Project, Team, User
from assets.models import Asset
from common.identifiers import uuid7
from fleet.models import Pool
from renderjobs.choices import JOB_OPEN, JobKind, JobState, Lane


class Source(models.TextChoices):
    """The door a job came through."""

    API = "api"
    SDAPI = "sdapi"
    AGENT_SCHEDULER = "agent-scheduler"
    OPENAI = "openai"
    ADMIN = "admin"
    SCHEDULE = "schedule"
    EAS = "eas"


WAITED_FOR = (Source.SDAPI, Source.OPENAI)
"""Doors whose callers wait for the pictures with the line open."""


class RenderJobQuerySet(models.QuerySet["RenderJob"]):
    def visible_to(self, user: User) -> RenderJobQuerySet:
        """Jobs of the user's teams; a superuser sees all."""
        return self if user.is_superuser else self.filter(team__memberships__user=user)


class RenderJob(models.Model):
    """The states are drawn in ``choices.JobState``. The counters and sums follow the images, in the same transactions."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    kind = models.CharField(max_length=16, choices=JobKind)
    source = models.CharField(max_length=16, choices=Source)
    state = models.CharField(max_length=16, choices=JobState, default=JobState.QUEUED)
    team = models.ForeignKey(Team, on_delete=models.PROTECT, related_name="jobs")
    project = models.ForeignKey(Project, null=True, blank=True, on_delete=models.PROTECT, related_name="jobs")
    user = models.ForeignKey(User, on_delete=models.PROTECT, related_name="jobs")
    token = models.ForeignKey(ApiToken, null=True, blank=True, on_delete=models.SET_NULL, related_name="+")
    pool = models.ForeignKey(Pool, on_delete=models.PROTECT, related_name="+")
    checkpoint = models.ForeignKey(
        Asset, null=True, on_delete=models.PROTECT, related_name="+", help_text="Empty for jobs that draw nothing."
    )
    lane = models.SmallIntegerField(choices=Lane, default=Lane.STANDARD)
    priority = models.SmallIntegerField(default=0, help_text="Larger goes first within the lane.")
    task_id = models.CharField(max_length=120, blank=True, help_text="The name the caller gave it (force_task_id).")
    request = models.JSONField(help_text="The canonical RenderRequest.")
    lock = models.JSONField(
        default=dict, help_text="The recipe all images share, every file of weights pinned by its hash."
    )
    assets: models.ManyToManyField = models.ManyToManyField(Asset, related_name="jobs", help_text="What it pinned.")
    inputs: models.ManyToManyField = models.ManyToManyField("renderjobs.InputFile", related_name="jobs")
    warnings = models.JSONField(default=list, blank=True, help_text="What was asked for and has no effect.")
    tags = models.JSONField(default=dict, blank=True)
    images_total = models.PositiveIntegerField()
    image_bytes = models.BigIntegerField(
        default=0, db_default=0, help_text="The most that one of its images may take in the storage."
    )
    images_delivered = models.PositiveIntegerField(default=0)
    images_failed = models.PositiveIntegerField(default=0)
    images_cancelled = models.PositiveIntegerField(default=0)
    gpu_us = models.BigIntegerField(default=0, help_text="Charged GPU time, microseconds.")
    cost_amount = models.DecimalField(max_digits=18, decimal_places=6, default=0)
    currency = models.CharField(max_length=3, default="USD")
    error_code = models.CharField(max_length=40, blank=True)
    error_message = models.TextField(blank=True)
    event_sequence = models.PositiveIntegerField(default=0, help_text="Of the newest event.")
    grid_key = models.CharField(
        max_length=300, blank=True, help_text="Storage key of the contact sheet, once it was made."
    )
    save_dir = models.CharField(
        max_length=300, blank=True, help_text="The path its caller asked for, as it is answered."
    )
    save_folder = models.CharField(
        max_length=150, blank=True, help_text="The folder behind that path, within the team's files."
    )
    schedule = models.ForeignKey(
        "renderjobs.BatchSchedule", null=True, blank=True, on_delete=models.SET_NULL, related_name="runs"
    )
    scheduled_for = models.DateTimeField(null=True, blank=True)
    template_version = models.ForeignKey(
        "renderjobs.TemplateVersion", null=True, blank=True, on_delete=models.SET_NULL, related_name="jobs"
    )
    service = models.ForeignKey(
        "renderjobs.EasService",
        null=True,
        blank=True,
        on_delete=models.PROTECT,
        related_name="jobs",
        help_text="The EAS service whose address or token was called.",
    )
    script_call = models.ForeignKey(
        "renderjobs.ScriptCall", null=True, blank=True, on_delete=models.PROTECT, related_name="jobs"
    )
    script_cell = models.PositiveIntegerField(null=True, blank=True, help_text="Which request of the script it is.")
    created_at = models.DateTimeField(db_index=True)
    started_at = models.DateTimeField(null=True, blank=True)
    finished_at = models.DateTimeField(null=True, blank=True)
    paused_at = models.DateTimeField(null=True, blank=True, help_text="Since when none of its images is claimed.")

    objects = RenderJobQuerySet.as_manager()

    class Meta:
        ordering = ["-id"]
        indexes = [
            models.Index(fields=["team", "-id"], name="job_by_team"),
            # What quotas count at every submission: few, however many have ended.
            models.Index(fields=["team"], condition=Q(state__in=JOB_OPEN), name="job_open"),
        ]
        constraints = [
            models.UniqueConstraint(fields=["team", "task_id"], condition=~Q(task_id=""), name="one_job_per_task_id"),
            models.UniqueConstraint(
                fields=["schedule", "scheduled_for"],
                condition=Q(scheduled_for__isnull=False),
                name="one_job_per_schedule_and_time",
            ),
            models.UniqueConstraint(fields=["script_call", "script_cell"], name="one_job_per_script_cell"),
            models.CheckConstraint(condition=Q(state__in=JobState.values), name="job_state_is_known"),
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.id}"

    @property
    def images_ended(self) -> int:
        return self.images_delivered + self.images_failed + self.images_cancelled


class JobEvent(models.Model):
    """One move of a job's or an image's state. Sequences have no gaps and no repeats within a job."""

    job = models.ForeignKey(RenderJob, on_delete=models.CASCADE, related_name="events")
    sequence = models.PositiveIntegerField()
    image_index = models.PositiveIntegerField(null=True, help_text="Empty for the job's own moves.")
    from_state = models.CharField(max_length=16, blank=True)
    to_state = models.CharField(max_length=16)
    cause = models.CharField(max_length=200)
    created_at = models.DateTimeField()

    class Meta:
        ordering = ["job", "sequence"]
        constraints = [models.UniqueConstraint(fields=["job", "sequence"], name="one_event_per_job_and_sequence")]

    def __str__(self) -> str:
        return f"{self.sequence}: {self.from_state or '·'} → {self.to_state} ({self.cause})"


class IdempotencyRecord(models.Model):
    """The answer to one key of one token, kept for IDEMPOTENCY_DAYS. Written in the transaction that accepts the job."""

    token = models.ForeignKey(ApiToken, on_delete=models.CASCADE, related_name="+")
    key = models.CharField(max_length=255)
    body_sha256 = models.CharField(max_length=64)
    job = models.ForeignKey(RenderJob, on_delete=models.CASCADE, related_name="+")
    status = models.PositiveSmallIntegerField(default=201)
    response = models.JSONField(
        null=True, help_text="The stored body; empty for doors that answer from the job itself."
    )
    created_at = models.DateTimeField(db_index=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["token", "key"], name="one_answer_per_token_and_key")]

    def __str__(self) -> str:
        return self.key
