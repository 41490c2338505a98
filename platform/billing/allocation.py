"""The cards' time that stands for no delivered image: what it cost, and where the reports show it. No team is charged for it.

Failed attempts and loads are written as they happen. Idle time is what is left of a worker's day when everything else is
taken off; it is written once a day is over. What deployed instances kept waiting for their services is apart: a team pays for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal

from django.db import IntegrityError, transaction
from django.db.models import Sum

from billing.deployment_clock import DAY, reserved_us
from billing.ledger import idle_append
from billing.models import LedgerTransaction, TransactionKind, UsageRecord
from billing.pricing import SIX_PLACES
from billing.ratecards import price_in_force
from common.database import database_now
from common.errors import UnavailableError
from fleet.models import WorkerDay

DAYS_LOOKED_BACK = 35
"""A day that could not be settled, because no card was in force say, is tried again for so long."""


def idle_settle() -> int:
    """Write the idle time of every pool's days that are over; returns how many lines. Running it twice changes nothing."""
    today = database_now().date()
    days = WorkerDay.objects.filter(day__lt=today, day__gte=today - DAYS_LOOKED_BACK * DAY)
    lived = days.values("pool_id", "day").annotate(total=Sum("alive_us")).order_by("day", "pool_id")
    written = set(LedgerTransaction.objects.filter(event_id__startswith="idle:").values_list("event_id", flat=True))
    return sum(
        _settle(row["pool_id"], row["day"], row["total"])
        for row in lived
        if f"idle:{row['pool_id']}:{row['day']}" not in written
    )


def _settle(pool_id: int, day: date, alive_us: int) -> bool:
    start = datetime.combine(day, time(0), UTC)
    try:
        price = price_in_force(pool_id=pool_id, at=start)
    except UnavailableError:
        return False
    free_us = max(0, alive_us - busy_us(pool_id, start, start + DAY))
    kept_us = min(free_us, reserved_us(pool_id, start, start + DAY))
    last_moment = start + DAY - timedelta(microseconds=1)
    try:
        with transaction.atomic():
            idle_append(
                pool_id=pool_id,
                day=str(day),
                occurred_at=last_moment,
                idle_us=free_us - kept_us,
                reserved_us=kept_us,
                price=price,
            )
    except IntegrityError:
        return False  # another worker of the chores was faster
    return True


def busy_us(pool_id: int, start: datetime, end: datetime) -> int:
    """Attempts and loads of the period, microseconds."""
    attempts = UsageRecord.objects.filter(pool_id=pool_id, ended_at__gte=start, ended_at__lt=end)
    # Of a load, whoever pays for it: it has a job and no image.
    loads = LedgerTransaction.objects.filter(
        kind=TransactionKind.OVERHEAD,
        job_id__isnull=False,
        image_id=None,
        pool_id=pool_id,
        occurred_at__gte=start,
        occurred_at__lt=end,
    )
    return sum(rows.aggregate(total=Sum("gpu_us", default=0))["total"] for rows in (attempts, loads))


def spread(amount: Decimal, weights: Sequence[Decimal], unit: Decimal = SIX_PLACES) -> list[Decimal]:
    """Parts of ``amount`` in proportion to the weights, in whole units; they sum to it to the last digit."""
    total = sum(weights, Decimal(0))
    if not total:
        return []
    exact = [amount * weight / total for weight in weights]
    parts = [part.quantize(unit, rounding="ROUND_FLOOR") for part in exact]
    left = int((amount - sum(parts, Decimal(0))) / unit)
    # The largest remainders get one unit each.
    order = sorted(range(len(parts)), key=lambda place: (parts[place] - exact[place], place))
    for place in order[:left]:
        parts[place] += unit
    return parts
