"""A saved batch, its versions, the times at which it is submitted again, and what became of each of those times."""

from __future__ import annotations

from typing import Any

from django.db import models
from django.db.models import F, OuterRef, Q, Subquery
from django_celery_beat.models import PeriodicTask

from accounts.models import Project, Team, User
from billing.models.money import MONEY
from renderjobs.choices import JobKind, Lane, MissedPolicy, OverlapPolicy, RunOutcome


class BatchTemplateQuerySet(models.QuerySet["BatchTemplate"]):
    def with_newest(self) -> BatchTemplateQuerySet:
        """With ``version``, the number of the newest version, and ``kind``."""
        newest = TemplateVersion.objects.filter(template=OuterRef("pk")).order_by("-number")
        return self.annotate(version=Subquery(newest.values("number")[:1]), kind=Subquery(newest.values("kind")[:1]))


class BatchTemplate(models.Model):
    """What it renders is in its versions; jobs keep the one they were made of."""

    team = models.ForeignKey(Team, on_delete=models.CASCADE, related_name="batch_templates")
    project = models.ForeignKey(Project, null=True, blank=True, on_delete=models.SET_NULL, related_name="+")
    name = models.CharField(max_length=120)
    lane = models.SmallIntegerField(choices=Lane, default=Lane.BACKGROUND)
    created_at = models.DateTimeField(auto_now_add=True)

    objects = BatchTemplateQuerySet.as_manager()

    class Meta:
        ordering = ["team__name", "name"]
        constraints = [models.UniqueConstraint(fields=["team", "name"], name="one_template_name_per_team")]

    def __str__(self) -> str:
        return self.name

    @property
    def newest(self) -> TemplateVersion | None:
        return self.versions.select_related("created_by").order_by("-number").first()


class TemplateVersion(models.Model):
    """Never changed: saving a template again adds one."""

    template = models.ForeignKey(BatchTemplate, on_delete=models.CASCADE, related_name="versions")
    number = models.PositiveIntegerField()
    kind = models.CharField(max_length=16, choices=JobKind, default=JobKind.TXT2IMG)
    request = models.JSONField(help_text="The body of a job's request, in A1111's field names.")
    locked = models.JSONField(
        default=list, blank=True, help_text="Fields of the request that whoever submits the template cannot change."
    )
    created_by = models.ForeignKey(
        User, on_delete=models.PROTECT, related_name="+", help_text="For whom runs of a schedule act."
    )
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["template", "-number"]
        constraints = [models.UniqueConstraint(fields=["template", "number"], name="one_template_version_per_number")]

    def __str__(self) -> str:
        return f"{self.template} v{self.number}"


class BatchSchedule(models.Model):
    """Submits a template by cron. Each run is an ordinary job that names its schedule and its planned minute."""

    template = models.ForeignKey(BatchTemplate, on_delete=models.CASCADE, related_name="schedules")
    minute = models.CharField(max_length=240, default="0")
    hour = models.CharField(max_length=96, default="*")
    day_of_month = models.CharField(max_length=124, default="*")
    month_of_year = models.CharField(max_length=64, default="*")
    day_of_week = models.CharField(max_length=64, default="*")
    timezone = models.CharField(max_length=63, default="UTC")
    window_from = models.TimeField(
        null=True, blank=True, help_text="No run begins outside these times of day; until before from spans midnight."
    )
    window_until = models.TimeField(null=True, blank=True)
    missed = models.CharField(
        max_length=8,
        choices=MissedPolicy,
        default=MissedPolicy.LATEST,
        help_text="What becomes of runs that were planned while the platform stood still.",
    )
    overlap = models.CharField(
        max_length=8,
        choices=OverlapPolicy,
        default=OverlapPolicy.ALLOW,
        help_text="What becomes of a run while the one before it has not ended.",
    )
    ceiling = models.DecimalField(
        **MONEY,
        null=True,
        blank=True,
        help_text="A run that might cost more, by the estimate that is held for it, is not submitted. Empty for no ceiling.",
    )
    enabled = models.BooleanField(default=True)
    periodic_task = models.OneToOneField(
        PeriodicTask, null=True, on_delete=models.SET_NULL, related_name="batch_schedule", editable=False
    )
    handled_until = models.DateTimeField(
        null=True, editable=False, help_text="Planned times up to this one have their outcome."
    )

    class Meta:
        ordering = ["template__name", "pk"]
        constraints = [
            models.CheckConstraint(
                condition=Q(window_from=None, window_until=None)
                | Q(window_from__isnull=False, window_until__isnull=False) & ~Q(window_from=F("window_until")),
                name="a_window_has_two_ends",
                violation_error_message="A window has a beginning and another end.",
            ),
            models.CheckConstraint(
                condition=Q(ceiling=None) | Q(ceiling__gt=0),
                name="a_ceiling_is_more_than_nothing",
                violation_error_message="The ceiling is more than zero.",
            ),
        ]

    def __str__(self) -> str:
        cron = f"{self.minute} {self.hour} {self.day_of_month} {self.month_of_year} {self.day_of_week}"
        return f"{self.template} at {cron} ({self.timezone})"


class ScheduledRun(models.Model):
    """What became of one planned minute; written once."""

    schedule = models.ForeignKey(BatchSchedule, on_delete=models.CASCADE, related_name="planned")
    planned_for = models.DateTimeField()
    outcome = models.CharField(max_length=12, choices=RunOutcome)
    job: Any = models.OneToOneField(
        "renderjobs.RenderJob", null=True, on_delete=models.SET_NULL, related_name="scheduled_run"
    )
    reason = models.TextField(blank=True, help_text="Why there is no job.")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-planned_for"]
        constraints = [models.UniqueConstraint(fields=["schedule", "planned_for"], name="one_outcome_per_planned_time")]

    def __str__(self) -> str:
        return f"{self.planned_for:%Y-%m-%d %H:%M} {self.outcome}"
