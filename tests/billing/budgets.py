"""Budgets for tests."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

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
