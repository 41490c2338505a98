"""Sums of the book by any of its dimensions. The admin, the API and the command line print the same numbers."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from django.db.models import Count, F, QuerySet, Sum
from django.db.models.functions import TruncDate

from billing.models import Account, LedgerLine

DIMENSIONS: dict[str, str] = {
    "team": "transaction__team__name",
    "project": "transaction__project__name",
    "member": "transaction__user__username",
    "model": "transaction__checkpoint_name",
    "pool": "transaction__pool__name",
    "day": "day",
}


def usage_by(
    dimensions: Sequence[str], *, start: datetime, end: datetime, team_ids: Sequence[int] | None = None
) -> list[dict[str, Any]]:
    """One row per combination of ``dimensions`` (keys of DIMENSIONS), currency always apart.

    ``start`` is included, ``end`` is not. ``team_ids`` None means every team.
    Each row: the dimensions, ``currency``, ``images``, ``gpu_us``, ``amount``.
    """
    lines: QuerySet[Any] = LedgerLine.objects.filter(
        account=Account.TEAM_SPEND, transaction__occurred_at__gte=start, transaction__occurred_at__lt=end
    )
    if team_ids is not None:
        lines = lines.filter(transaction__team_id__in=team_ids)
    if "day" in dimensions:
        lines = lines.annotate(day=TruncDate("transaction__occurred_at"))
    keys = [f"by_{name}" for name in dimensions]
    columns: dict[str, Any] = {key: F(DIMENSIONS[name]) for key, name in zip(keys, dimensions, strict=True)}
    rows = (
        lines.values(**columns, currency=F("transaction__currency"))
        .annotate(images=Count("transaction_id"), gpu_us=Sum("transaction__gpu_us"), amount=Sum("amount"))
        .order_by(*keys, "currency")
    )
    return [{**{name: row.pop(f"by_{name}") for name in dimensions}, **row} for row in map(dict, rows)]
