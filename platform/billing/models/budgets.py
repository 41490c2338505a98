"""How much may be spent on what, and how much of it is spent and held.

A budget's account of one period is one row, ``BudgetPeriod``. It is locked by whoever changes it, always in the order of the
budgets, so that two submitters never wait for one another in a circle.
"""

from __future__ import annotations

from decimal import Decimal

from django.db import models
from django.db.models import Q

from accounts.models import Project, Team, User
from billing.models.ledger import LedgerTransaction
from billing.models.money import MONEY


class BudgetScope(models.TextChoices):
    ORGANISATION = "organisation"
    TEAM = "team"
    PROJECT = "project"
    MEMBER = "member", "Member of a team"
    TAG = "tag"


class BudgetSpan(models.TextChoices):
    MONTH = "month", "Each calendar month (UTC)"
    TOTAL = "total", "Once"


class BudgetQuerySet(models.QuerySet["Budget"]):
    def visible_to(self, user: User) -> BudgetQuerySet:
        """Those of the user's teams; a superuser sees all."""
        return self if user.is_superuser else self.filter(team__memberships__user=user)


class Budget(models.Model):
    """Without a threshold that blocks it only warns."""

    name = models.CharField(max_length=120)
    scope = models.CharField(max_length=16, choices=BudgetScope)
    team = models.ForeignKey(Team, null=True, blank=True, on_delete=models.PROTECT, related_name="budgets")
    project = models.ForeignKey(Project, null=True, blank=True, on_delete=models.PROTECT, related_name="+")
    user = models.ForeignKey(User, null=True, blank=True, on_delete=models.PROTECT, related_name="+")
    tag_key = models.CharField(max_length=64, blank=True)
    tag_value = models.CharField(max_length=64, blank=True)
    span = models.CharField(max_length=8, choices=BudgetSpan, default=BudgetSpan.MONTH)
    limit = models.DecimalField(**MONEY)
    currency = models.CharField(max_length=3, default="USD")
    enabled = models.BooleanField(default=True)
    created_at = models.DateTimeField(auto_now_add=True)

    objects = BudgetQuerySet.as_manager()

    class Meta:
        ordering = ["scope", "name"]
        constraints = [
            models.CheckConstraint(
                condition=Q(scope="organisation", team=None, project=None, user=None, tag_key="")
                | Q(scope="team", team__isnull=False, project=None, user=None, tag_key="")
                | Q(scope="project", team__isnull=False, project__isnull=False, user=None, tag_key="")
                | Q(scope="member", team__isnull=False, project=None, user__isnull=False, tag_key="")
                | Q(scope="tag", project=None, user=None) & ~Q(tag_key=""),
                name="a_budget_names_its_scope",
                violation_error_message="A budget names exactly what its scope says: team; team and project; team and "
                "user; a tag and, where it is one team's, the team; or nothing for the organisation.",
            ),
            models.CheckConstraint(
                condition=Q(limit__gte=0),
                name="a_limit_is_not_negative",
                violation_error_message="The limit is zero or more.",
            ),
        ]

    def __str__(self) -> str:
        return self.name


class ThresholdAction(models.TextChoices):
    NOTIFY = "notify"
    APPROVAL = "approval"
    BLOCK = "block"


class BudgetThreshold(models.Model):
    """What happens when a submission would bring spent and held together above this part of the limit."""

    budget = models.ForeignKey(Budget, on_delete=models.CASCADE, related_name="thresholds")
    percent = models.PositiveSmallIntegerField(default=100)
    action = models.CharField(max_length=8, choices=ThresholdAction, default=ThresholdAction.BLOCK)

    class Meta:
        ordering = ["budget", "percent"]
        constraints = [
            models.UniqueConstraint(fields=["budget", "percent", "action"], name="one_threshold_per_percent"),
            models.CheckConstraint(condition=Q(percent__gte=1, percent__lte=1000), name="percent_is_a_percentage"),
        ]

    def __str__(self) -> str:
        return f"{self.action} at {self.percent} %"

    def amount(self, limit: Decimal) -> Decimal:
        return limit * self.percent / 100


class BudgetPeriod(models.Model):
    """One budget's account of one period. A job belongs to the period in which it was submitted, with all its images."""

    budget = models.ForeignKey(Budget, on_delete=models.PROTECT, related_name="periods")
    period = models.CharField(max_length=7, help_text="YYYY-MM, or total.")
    spent = models.DecimalField(**MONEY, default=Decimal(0))
    held = models.DecimalField(**MONEY, default=Decimal(0))
    most = models.DecimalField(
        **MONEY,
        null=True,
        help_text="What spent and held were limited to at the newest hold, or what deployed instances, which nobody can "
        "refuse, have brought them to; empty without a limit.",
    )
    deployments: models.ManyToManyField = models.ManyToManyField(
        LedgerTransaction, related_name="+", help_text="Of deployed instances, counted as spent."
    )

    class Meta:
        ordering = ["budget", "period"]
        constraints = [
            models.UniqueConstraint(fields=["budget", "period"], name="one_account_per_budget_and_period"),
            models.CheckConstraint(condition=Q(spent__gte=0), name="spent_is_not_negative"),
            models.CheckConstraint(condition=Q(held__gte=0), name="held_is_not_negative"),
        ]

    def __str__(self) -> str:
        return f"{self.budget} {self.period}"


class BudgetNotice(models.Model):
    """A threshold was passed: written once per period with what passed it. Whoever tells people reads it here."""

    period = models.ForeignKey(BudgetPeriod, on_delete=models.CASCADE, related_name="notices")
    threshold = models.ForeignKey(BudgetThreshold, on_delete=models.CASCADE, related_name="+")
    job_id = models.UUIDField(null=True, help_text="Empty when deployed instances passed it.")
    created_at = models.DateTimeField()

    class Meta:
        ordering = ["-pk"]
        constraints = [models.UniqueConstraint(fields=["period", "threshold"], name="one_notice_per_threshold")]

    def __str__(self) -> str:
        return f"{self.period}: {self.threshold}"
