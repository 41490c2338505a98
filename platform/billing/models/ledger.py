"""The append-only book: double entry, decimal to six places. The database itself refuses UPDATE and DELETE on both tables."""

from __future__ import annotations

from django.db import models

from accounts.models import Project, Team, User
from fleet.models import Pool

MONEY = {"max_digits": 18, "decimal_places": 6}


class TransactionKind(models.TextChoices):
    CHARGE = "charge"
    REVERSAL = "reversal"


class Account(models.TextChoices):
    TEAM_SPEND = "team_spend"
    """What a team has used; debits."""
    RENDER_REVENUE = "render_revenue"
    """What rendering has earned; credits."""


class LedgerTransaction(models.Model):
    """One business event. Its lines sum to zero; ``event_id`` makes writing it twice impossible."""

    event_id = models.CharField(max_length=80, unique=True)
    kind = models.CharField(max_length=16, choices=TransactionKind)
    occurred_at = models.DateTimeField(db_index=True)
    currency = models.CharField(max_length=3)
    rate_card_id = models.BigIntegerField()
    team = models.ForeignKey(Team, on_delete=models.PROTECT, related_name="+")
    project = models.ForeignKey(Project, null=True, on_delete=models.PROTECT, related_name="+")
    user = models.ForeignKey(User, on_delete=models.PROTECT, related_name="+")
    pool = models.ForeignKey(Pool, on_delete=models.PROTECT, related_name="+")
    checkpoint_sha256 = models.CharField(max_length=64)
    checkpoint_name = models.CharField(max_length=200)
    job_id = models.UUIDField(db_index=True)
    image_id = models.BigIntegerField()
    attempt_id = models.BigIntegerField()
    gpu_us = models.BigIntegerField(help_text="GPU time charged for, microseconds.")
    tags = models.JSONField(default=dict)

    class Meta:
        ordering = ["pk"]
        constraints = [
            models.UniqueConstraint(fields=["image_id"], condition=models.Q(kind="charge"), name="one_charge_per_image")
        ]

    def __str__(self) -> str:
        return self.event_id


class LedgerLine(models.Model):
    transaction = models.ForeignKey(LedgerTransaction, on_delete=models.PROTECT, related_name="lines")
    account = models.CharField(max_length=16, choices=Account)
    amount = models.DecimalField(**MONEY, help_text="Positive is a debit, negative a credit.")

    class Meta:
        ordering = ["pk"]
        constraints = [models.UniqueConstraint(fields=["transaction", "account"], name="one_line_per_account")]

    def __str__(self) -> str:
        return f"{self.account} {self.amount}"
