"""Sums of the book by any of its dimensions. The admin, the API and the command line print the same numbers.

Charges and settled deployments come by the dimensions asked for. What is on no team's bill comes beside them, placed as the rate
card said when it arose. Every report is a constant number of statements, whatever the number of lines.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any

from django.db.models import Count, F, Q, QuerySet, Sum

from billing.allocation import spread
from billing.models import UNALLOCATED, Account, LedgerLine, Placement, TransactionKind
from billing.pricing import rounded
from common.database import UtcDay, ValueOfKey

DIMENSIONS: dict[str, str] = {
    "team": "transaction__team__name",
    "project": "transaction__project__name",
    "member": "transaction__user__username",
    "token": "transaction__token_id",
    "model": "transaction__checkpoint_name",
    "service": "transaction__service",
    "pool": "transaction__pool__name",
    "lane": "transaction__lane",
    "job": "transaction__job_id",
    "image": "transaction__image_id",
    "day": "day",
}
TAG = "tag:"
"""``tag:shot`` is the dimension of the values of the tag ``shot``."""
TEXTS = ("project", "member", "model", "service", "pool")
TREE = ("team", "project", "member", "model", "job", "image")
"""From the whole to its smallest part."""
DEPLOYMENT = Q(transaction__kind=TransactionKind.DEPLOYMENT)
CHARGE = Q(transaction__kind=TransactionKind.CHARGE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Period:
    """``start`` is included, ``end`` is not. ``team_ids`` None means every team.

    ``of`` narrows it to charges of one value by dimension (not ``day``); the empty text asks for those without one.
    """

    start: datetime
    end: datetime
    team_ids: Sequence[int] | None = None
    of: Mapping[str, str] = field(default_factory=dict)

    def lines(self, *accounts: str) -> QuerySet[Any]:
        found = LedgerLine.objects.filter(
            account__in=accounts, transaction__occurred_at__gte=self.start, transaction__occurred_at__lt=self.end
        )
        if self.team_ids is not None:
            found = found.filter(transaction__team_id__in=self.team_ids)
        for number, (name, value) in enumerate(self.of.items()):
            column = f"of_{number}"
            without = Q(**{f"{column}__isnull": True}) | (Q(**{column: ""}) if name in TEXTS else Q())
            found = found.alias(**{column: column_of(name)}).filter(Q(**{column: value}) if value else without)
        return found


def is_dimension(name: str) -> bool:
    return name in DIMENSIONS or (name.startswith(TAG) and 0 < len(name) - len(TAG) <= 64 and "\x00" not in name)


def usage_by(
    dimensions: Sequence[str],
    *,
    start: datetime,
    end: datetime,
    team_ids: Sequence[int] | None = None,
) -> list[dict[str, Any]]:
    """One row per combination of ``dimensions``, currency always apart.

    Each row: the dimensions, ``currency``, ``images`` and their ``gpu_us``, ``amount``, and what of it is for deployed
    instances, ``deployment``. What no job used of those has no job, image, member and so on.
    """
    return list(usage_rows(dimensions, Period(start=start, end=end, team_ids=team_ids)))


def usage_rows(
    dimensions: Sequence[str],
    period: Period,
    *,
    offset: int = 0,
    limit: int | None = None,
    dearest_first: bool = False,
) -> Iterator[dict[str, Any]]:
    """As ``usage_by``, a part of it, row by row."""
    lines = period.lines(Account.TEAM_SPEND)
    if "day" in dimensions:
        lines = lines.annotate(day=UtcDay("transaction__occurred_at"))
    keys = [f"by_{number}" for number in range(len(dimensions))]
    columns: dict[str, Any] = {key: column_of(name) for key, name in zip(keys, dimensions, strict=True)}
    rows = (
        lines.values(**columns, currency=F("transaction__currency"))
        .annotate(
            images=Count("transaction_id", filter=CHARGE),
            gpu_us=Sum("transaction__gpu_us", filter=CHARGE, default=0),
            deployed=Sum("amount", filter=DEPLOYMENT, default=0),
            total=Sum("amount"),
        )
        .order_by(*(("currency", "-total") if dearest_first else ()), *keys, "currency")
    )
    for row in rows[offset : None if limit is None else offset + limit].iterator(chunk_size=2000):
        yield {
            **{name: row[key] for key, name in zip(keys, dimensions, strict=True)},
            "currency": row["currency"],
            "images": row["images"],
            "gpu_us": row["gpu_us"],
            # Six places as everywhere: SQLite adds in floating point and hands out more digits than the book has.
            "amount": rounded(row["total"]),
            "deployment": rounded(Decimal(row["deployed"])),
        }


def gpu_hours(row: Mapping[str, Any]) -> float:
    """Of a report's row, for people to read; the book counts microseconds."""
    return float(row["gpu_us"]) / 3_600_000_000


def column_of(dimension: str) -> Any:
    if dimension.startswith(TAG):
        return ValueOfKey("transaction__tags", dimension.removeprefix(TAG))
    return F(DIMENSIONS[dimension])


def unallocated(period: Period) -> list[dict[str, Any]]:
    """What is on no team's bill, by kind and place.

    Each row: ``cost``, ``team`` (None where it stays with the pool), ``pool``, ``currency``, ``events``, ``gpu_us``, ``amount``.
    For a choice of teams these are the parts placed beside them; a pool's overhead is nobody's part. It has no project, member,
    model or job, so that a part of the charges (``of``) has none of it beside it.
    """
    if period.of:
        return []
    everything = Period(start=period.start, end=period.end)
    rows = (
        everything.lines(*UNALLOCATED)
        .values(
            "account",
            placement=F("transaction__placement"),
            pool=F("transaction__pool__name"),
            team_id=F("transaction__team"),
            team=F("transaction__team__name"),
            currency=F("transaction__currency"),
        )
        .annotate(events=Count("transaction_id"), gpu_us=Sum("transaction__gpu_us"), total=Sum("amount"))
        .order_by("account", "pool", "team", "currency")
    )
    spent = None
    merged: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        if row["placement"] == Placement.PROPORTIONAL:
            spent = spending(everything) if spent is None else spent
            places = shared(row, spent.get(row["currency"], []))
        elif row["placement"] == Placement.CAUSER:
            places = [(row["team_id"], row["team"], row["gpu_us"], rounded(row["total"]))]
        else:
            places = [(None, None, row["gpu_us"], rounded(row["total"]))]
        for team_id, team, gpu_us, amount in places:
            if period.team_ids is not None and team_id not in period.team_ids:
                continue
            key = (row["account"], team, row["pool"], row["currency"])
            place = merged.setdefault(key, dict(zip(("cost", "team", "pool", "currency"), key, strict=True)))
            for name, value in (("events", row["events"]), ("gpu_us", gpu_us), ("amount", amount)):
                place[name] = place.get(name, 0) + value
    return list(merged.values())


Spent = dict[str, list[tuple[int, str, Decimal]]]
"""Currency → (id, name, amount) of every team that spent."""


def spending(period: Period) -> Spent:
    found: Spent = {}
    rows = period.lines(Account.TEAM_SPEND).values(
        "transaction__team", "transaction__team__name", "transaction__currency"
    )
    for team_id, team, currency, total in (
        rows.annotate(total=Sum("amount"))
        .order_by("transaction__team__name")
        .values_list("transaction__team", "transaction__team__name", "transaction__currency", "total")
    ):
        found.setdefault(currency, []).append((team_id, team, total))
    return found


def shared(row: dict[str, Any], spent: list[tuple[int, str, Decimal]]) -> list[tuple[Any, Any, int, Decimal]]:
    """A cost spread over the teams by what they spent; with nothing spent it stays with the pool."""
    amount = rounded(row["total"])
    weights = [max(total, Decimal(0)) for _, _, total in spent]  # of a month in which more was taken back than spent
    parts = spread(amount, weights)
    if not parts:
        return [(None, None, row["gpu_us"], amount)]
    times = spread(Decimal(row["gpu_us"]), weights, unit=Decimal(1))
    return [
        (team_id, team, int(gpu_us), part) for (team_id, team, _), part, gpu_us in zip(spent, parts, times, strict=True)
    ]
