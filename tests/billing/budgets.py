"""Budgets for tests, and whom quotas name."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from accounts.authentication import Caller
from billing.models import Budget, BudgetThreshold


def a_budget(
    scope: str,
    *,
    limit: str,
    name: str = "",
    thresholds: tuple[tuple[int, str], ...] = ((100, "block"),),
    **fields: Any,
) -> Budget:
    budget = Budget.objects.create(name=name or scope, scope=scope, limit=Decimal(limit), **fields)
    BudgetThreshold.objects.bulk_create(
        BudgetThreshold(budget=budget, percent=percent, action=action) for percent, action in thresholds
    )
    return budget


def named_by(whose: str, caller: Caller) -> dict[str, Any]:
    """The columns of a quota for everybody, the caller's team, the caller as its member, or the caller's token."""
    return {
        "team": {"team": caller.team},
        "member": {"team": caller.team, "user": caller.user},
        "token": {"token": caller.token},
        "organisation": {},
    }[whose]
