"""The append-only book: double entry, decimal to six places. The database itself refuses UPDATE and DELETE on both tables."""

from __future__ import annotations

from django.db import models

from accounts.models import Project, Team, User
from billing.models.money import MONEY
from billing.models.ratecards import Placement
from fleet.lanes import Lane
from fleet.models import Pool


class TransactionKind(models.TextChoices):
    CHARGE = "charge"
    REVERSAL = "reversal"
    """A charge is taken back."""
    OVERHEAD = "overhead"
    """The cards' time that no delivered image stands for."""
    DEPLOYMENT = "deployment"
    """A part of what the instances of a service cost on one day."""


class Account(models.TextChoices):
    TEAM_SPEND = "team_spend"
    """What a team has used; debits, and the only ones on its bill."""
    RENDER_REVENUE = "render_revenue"
    """What rendering has earned; credits."""
    FAILED_ATTEMPTS = "failed_attempts"
    """Attempts that failed, were stopped or were lost with their worker."""
    MODEL_LOADS = "model_loads"
    """Loading weights onto a card."""
    IDLE_TIME = "idle_time"
    """Workers that waited for work."""
    BEYOND_HOLD = "beyond_hold"
    """What delivered images cost beyond what was held for them."""
    TAKEN_BACK = "taken_back"
    """Charges that were reversed: the cards' time was used and nobody pays for it."""
    DEPLOYED = "deployed"
    """The cards' time that deployments pay for: debits at the price of GPU time, credits by what is on the bill for them."""


UNALLOCATED = (
    Account.FAILED_ATTEMPTS,
    Account.MODEL_LOADS,
    Account.IDLE_TIME,
    Account.BEYOND_HOLD,
    Account.TAKEN_BACK,
)
"""Costs that are on no team's bill."""


class LedgerTransaction(models.Model):
    """One business event. Its lines sum to zero; ``event_id`` makes writing it twice impossible.

    A charge names everything; of others is empty what they do not have: idle time has no job, a load no image, a day's instances
    no user where no job used them.
    """

    event_id = models.CharField(max_length=80, unique=True)
    kind = models.CharField(max_length=16, choices=TransactionKind)
    occurred_at = models.DateTimeField(db_index=True)
    currency = models.CharField(max_length=3)
    rate_card_id = models.BigIntegerField()
    placement = models.CharField(max_length=16, choices=Placement, default=Placement.POOL, db_default=Placement.POOL)
    team = models.ForeignKey(Team, null=True, on_delete=models.PROTECT, related_name="+")
    project = models.ForeignKey(Project, null=True, on_delete=models.PROTECT, related_name="+")
    user = models.ForeignKey(User, null=True, on_delete=models.PROTECT, related_name="+")
    token_id = models.BigIntegerField(null=True)
    pool = models.ForeignKey(Pool, on_delete=models.PROTECT, related_name="+")
    lane = models.SmallIntegerField(null=True, choices=Lane)
    service = models.CharField(
        max_length=128, blank=True, db_default="", help_text="Name of the EAS service it came through or is about."
    )
    checkpoint_sha256 = models.CharField(max_length=64, blank=True)
    checkpoint_name = models.CharField(max_length=200, blank=True)
    job_id = models.UUIDField(null=True, db_index=True)
    image_id = models.BigIntegerField(null=True)
    attempt_id = models.BigIntegerField(null=True)
    gpu_us = models.BigIntegerField(help_text="GPU time, or time of deployed instances; microseconds.")
    tags = models.JSONField(default=dict)
    note = models.CharField(max_length=360, blank=True, db_default="", help_text="Of a reversal: whose it is, and why.")

    class Meta:
        ordering = ["pk"]
        constraints = [
            models.UniqueConstraint(
                fields=["image_id"], condition=models.Q(kind="charge"), name="one_charge_per_image"
            ),
            models.UniqueConstraint(
                fields=["image_id"], condition=models.Q(kind="reversal"), name="one_reversal_per_image"
            ),
            models.CheckConstraint(
                condition=models.Q(kind="overhead")
                | models.Q(kind="deployment", team__isnull=False, image_id=None) & ~models.Q(service="")
                | models.Q(team__isnull=False, user__isnull=False, job_id__isnull=False, image_id__isnull=False),
                name="a_charge_names_whose_it_is",
            ),
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
