"""Refusals that name numbers: a budget, a quota, an approval that is needed first."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any

from billing.models import Budget, BudgetPeriod, Measure, Quota
from common.errors import PlatformError


class BudgetExceededError(PlatformError):
    """What is asked for does not fit into a budget."""

    code = "budget_exceeded"
    status = 402

    def __init__(self, account: BudgetPeriod, *, most: Decimal, asked: Decimal):
        budget = account.budget
        super().__init__(
            f"Budget {budget.name} ({budget.get_scope_display()}, {account.period}) has a limit of {most:f} "
            f"{budget.currency}; {account.spent:f} is spent and {account.held:f} held, and {asked:f} was asked for."
        )
        self.account, self.most, self.asked = account, most, asked

    def members(self) -> dict[str, Any]:
        account, budget = self.account, self.account.budget
        return {
            "budget": budget_members(budget),
            "period": account.period,
            "currency": budget.currency,
            "limit": f"{self.most:.6f}",
            "spent": f"{account.spent:.6f}",
            "held": f"{account.held:.6f}",
            "asked": f"{self.asked:.6f}",
        }


class ApprovalNeededError(BudgetExceededError):
    """It would fit after a lead has approved it, and this door cannot wait for that."""

    code = "approval_needed"


FREE_AGAIN = {
    **dict.fromkeys(Measure.values, "it is free again as jobs go on"),
    Measure.STORED_BYTES: "it is free again as files are deleted and jobs end",
    Measure.RUNNING_IMAGES: "nothing may run",
}
"""Of measures that no clock resets."""


class QuotaExceededError(PlatformError):
    code = "quota_exceeded"
    status = 429

    def __init__(self, quota: Quota, *, used: int, asked: int, now: datetime, resets_at: datetime | None):
        when = f"it is reset at {resets_at:%Y-%m-%d %H:%M} UTC" if resets_at else FREE_AGAIN[quota.measure]
        super().__init__(f"The quota {quota} is {quota.limit}; {used} is used and {asked} was asked for; {when}.")
        self.quota, self.used, self.asked, self.now, self.resets_at = quota, used, asked, now, resets_at

    def members(self) -> dict[str, Any]:
        return {
            "quota": self.quota.measure,
            "whose": whose(self.quota),
            "limit": self.quota.limit,
            "used": self.used,
            "asked": self.asked,
            "resets_at": self.resets_at.isoformat() if self.resets_at else None,
        }

    def headers(self) -> dict[str, str]:
        shown = {
            "RateLimit-Limit": str(self.quota.limit),
            "RateLimit-Remaining": str(max(0, self.quota.limit - self.used)),
        }
        if self.resets_at is None:
            return shown
        seconds = str(max(1, round((self.resets_at - self.now).total_seconds())))
        return {**shown, "RateLimit-Reset": seconds, "Retry-After": seconds}


def budget_members(budget: Budget) -> dict[str, Any]:
    return {"id": budget.pk, "name": budget.name, "scope": budget.scope}


def whose(quota: Quota) -> str:
    if quota.token_id:
        return "token"
    if quota.user_id:
        return "member"
    return "team" if quota.team_id else "organisation"
