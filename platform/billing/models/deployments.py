"""What was deployed for whom, and since when: the log that deployed instances are billed by, and the days that were billed.

A service is a name and an id here; what it is besides is the business of who logs it.
"""

from __future__ import annotations

from django.db import models
from django.db.models import F, Q

from accounts.models import Team
from fleet.models import Pool


class DeploymentSpan(models.Model):
    """What one service was from one moment to the next. The spans of a service follow one another without a gap.

    ::

        made ──→ running, n instances ──(scaled, moved)──→ running, m instances ──(stopped)──→ 0 instances ──(started)──→ …

    The newest has no end. The database refuses every change of those that have one.
    """

    service_id = models.BigIntegerField()
    service = models.CharField(max_length=128)
    team = models.ForeignKey(Team, on_delete=models.PROTECT, related_name="+")
    pool = models.ForeignKey(Pool, null=True, on_delete=models.PROTECT, related_name="+")
    edition = models.CharField(max_length=16)
    by_time = models.BooleanField(help_text="Whether its edition is billed by instances; else by pictures alone.")
    replicas = models.PositiveIntegerField(help_text="Deployed instances; 0 while the service is stopped.")
    started_at = models.DateTimeField()
    ended_at = models.DateTimeField(null=True, db_index=True)

    class Meta:
        ordering = ["service_id", "started_at"]
        verbose_name = "deployment"
        constraints = [
            models.UniqueConstraint(
                fields=["service_id"], condition=Q(ended_at=None), name="one_open_span_per_service"
            ),
            models.UniqueConstraint(fields=["service_id", "started_at"], name="one_span_per_service_and_start"),
            models.CheckConstraint(
                condition=Q(ended_at=None) | Q(ended_at__gt=F("started_at")), name="a_span_ends_after_it_started"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.service}: {self.replicas} from {self.started_at}"


class DeploymentDay(models.Model):
    """One day (UTC) of one service's instances is settled. Written with its lines in the ledger, once, and never changed."""

    service_id = models.BigIntegerField()
    service = models.CharField(max_length=128)
    team = models.ForeignKey(Team, on_delete=models.PROTECT, related_name="+")
    day = models.DateField(db_index=True)
    billed_us = models.BigIntegerField(help_text="Instances times time, microseconds.")
    unbilled_us = models.BigIntegerField(help_text="The same, while no price for instances was in force.")
    settled_at = models.DateTimeField()

    class Meta:
        ordering = ["day", "service_id"]
        constraints = [models.UniqueConstraint(fields=["service_id", "day"], name="one_settled_day_per_service")]

    def __str__(self) -> str:
        return f"{self.service} on {self.day}"
