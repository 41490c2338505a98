"""Money set aside for a job, and the terms it was accepted on."""

from __future__ import annotations

from decimal import Decimal

from django.db import models
from django.db.models import Q

from accounts.models import Team
from billing.models.budgets import BudgetPeriod
from billing.models.money import MONEY
from billing.models.ratecards import RatePrice


class Hold(models.Model):
    """One per job, written with it. ``amount`` = ``settled`` + ``remaining`` + ``released`` at any moment.

    ``remaining`` shrinks by each charge; what is left at the job's end is released. The same amount is held on every budget
    of ``periods``.
    """

    job_id = models.UUIDField(unique=True)
    price = models.ForeignKey(RatePrice, on_delete=models.PROTECT, related_name="+")
    pixel_steps = models.BigIntegerField(help_text="Of one image.")
    per_image = models.DecimalField(**MONEY, help_text="The most that one image may cost.")
    shows_cost = models.BooleanField(default=True, help_text="Whether the files say what they cost.")
    deployed = models.BooleanField(
        default=False,
        db_default=False,
        help_text="The bill of deployed instances pays for its images; nothing is held.",
    )
    amount = models.DecimalField(**MONEY)
    settled = models.DecimalField(**MONEY, default=Decimal(0))
    remaining = models.DecimalField(**MONEY)
    released = models.DecimalField(**MONEY, default=Decimal(0))
    periods: models.ManyToManyField = models.ManyToManyField(BudgetPeriod, related_name="holds")
    created_at = models.DateTimeField()
    ended_at = models.DateTimeField(null=True)

    class Meta:
        ordering = ["pk"]
        constraints = [
            models.CheckConstraint(condition=Q(remaining__gte=0), name="a_hold_is_not_overdrawn"),
            models.CheckConstraint(condition=Q(ended_at=None) | Q(remaining=0), name="an_ended_hold_holds_nothing"),
        ]
        indexes = [models.Index(fields=["id"], condition=Q(ended_at=None), name="open_hold")]

    def __str__(self) -> str:
        return f"hold of job {self.job_id}"


class BillingProfile(models.Model):
    """What a team chose about its bills. A team without a row has the defaults."""

    team = models.OneToOneField(Team, on_delete=models.CASCADE, related_name="billing_profile")
    cost_in_files = models.BooleanField(
        default=True, help_text="Whether PNG files say what they cost. Off, equal pictures are equal files."
    )

    def __str__(self) -> str:
        return f"billing of {self.team}"
