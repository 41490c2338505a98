"""A saved batch and the times at which it is submitted again."""

from __future__ import annotations

from django.db import models
from django_celery_beat.models import PeriodicTask

from accounts.models import Project, Team, User
from renderjobs.choices import JobKind, Lane


class BatchTemplate(models.Model):
    team = models.ForeignKey(Team, on_delete=models.CASCADE, related_name="batch_templates")
    project = models.ForeignKey(Project, null=True, blank=True, on_delete=models.SET_NULL, related_name="+")
    name = models.CharField(max_length=120)
    kind = models.CharField(max_length=16, choices=JobKind, default=JobKind.TXT2IMG)
    request = models.JSONField(help_text="The body of a job's request, in A1111's field names.")
    lane = models.SmallIntegerField(choices=Lane, default=Lane.BACKGROUND)
    created_by = models.ForeignKey(User, on_delete=models.PROTECT, related_name="+", editable=False)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["team__name", "name"]
        constraints = [models.UniqueConstraint(fields=["team", "name"], name="one_template_name_per_team")]

    def __str__(self) -> str:
        return self.name


class BatchSchedule(models.Model):
    """Submits a template by cron. Each run is an ordinary job that names its schedule and its planned minute."""

    template = models.ForeignKey(BatchTemplate, on_delete=models.CASCADE, related_name="schedules")
    minute = models.CharField(max_length=240, default="0")
    hour = models.CharField(max_length=96, default="*")
    day_of_month = models.CharField(max_length=124, default="*")
    month_of_year = models.CharField(max_length=64, default="*")
    day_of_week = models.CharField(max_length=64, default="*")
    timezone = models.CharField(max_length=63, default="UTC")
    enabled = models.BooleanField(default=True)
    periodic_task = models.OneToOneField(
        PeriodicTask, null=True, on_delete=models.SET_NULL, related_name="batch_schedule", editable=False
    )
    last_error = models.TextField(blank=True, editable=False, help_text="Why the last run could not be submitted.")

    class Meta:
        ordering = ["template__name", "pk"]

    def __str__(self) -> str:
        cron = f"{self.minute} {self.hour} {self.day_of_month} {self.month_of_year} {self.day_of_week}"
        return f"{self.template} at {cron} ({self.timezone})"
