"""What is deployed for services, as a log and as a clock: instances times time, day by day, at the prices that were in force.

No money is moved here; that is ``deployments``. Times of the log are the database's. Services are names and ids: what they are
besides stands right of this app.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta

from django.db import transaction
from django.db.models import Q, QuerySet, Sum
from django.db.models.functions import Now

from billing.models import Account, DeploymentSpan, LedgerTransaction, TransactionKind
from billing.pricing import Price
from billing.ratecards import InstancePrices
from common.database import database_now

DAY = timedelta(days=1)


@dataclass(slots=True, kw_only=True)
class ServiceDay:
    """The clock of one service's instances on one day, or on a part of it."""

    service_id: int
    service: str
    team_id: int
    day: date
    billed: dict[tuple[int, int], tuple[Price, int]] = field(default_factory=dict)
    """(pool, price) → the price and microseconds."""
    unbilled_us: int = 0
    """While no price was in force."""
    pool_id: int | None = None
    """Where it was last."""

    @property
    def billed_us(self) -> int:
        return sum(us for _, us in self.billed.values())

    @property
    def start(self) -> datetime:
        return midnight(self.day)

    def add(self, pool_id: int | None, price: Price | None, us: int) -> None:
        self.pool_id = pool_id
        if price is None or pool_id is None:
            self.unbilled_us += us
        else:
            _, before = self.billed.get((pool_id, price.price_id), (price, 0))
            self.billed[pool_id, price.price_id] = (price, before + us)


@transaction.atomic
def deployment_log(
    *, service_id: int, service: str, team_id: int, pool_id: int | None, edition: str, by_time: bool, replicas: int
) -> None:
    """Write what a service is from now on; the same again changes nothing. The caller has the service's row locked.

    Args:
        by_time: Whether its edition is billed by instances, not by pictures alone.
        replicas: 0 for a stopped service.
    """
    state = {
        "service": service,
        "team_id": team_id,
        "pool_id": pool_id,
        "edition": edition,
        "by_time": by_time,
        "replicas": replicas,
    }
    spans = DeploymentSpan.objects.filter(service_id=service_id, ended_at=None)
    if spans.filter(**state).exists():
        return
    # The clock of a statement of its own: a transaction that waited for the row began before what it now follows.
    found = spans.annotate(clock=Now()).values_list("pk", "started_at", "clock").first()
    if found is None:
        DeploymentSpan.objects.create(service_id=service_id, started_at=Now(), **state)
        return
    pk, started_at, now = found
    if now <= started_at:
        spans.filter(pk=pk).update(**state)  # nothing lasted no time
        return
    spans.filter(pk=pk).update(ended_at=now)
    DeploymentSpan.objects.create(service_id=service_id, started_at=now, **state)


def billed_services(service_ids: Collection[int]) -> set[int]:
    """Those whose instances are on a bill at this moment, so that their pictures must not be."""
    running = counted(DeploymentSpan.objects.filter(service_id__in=service_ids, ended_at=None))
    spans = list(running.values_list("service_id", "pool_id"))
    if not spans:
        return set()
    prices, now = InstancePrices(), database_now()
    return {service_id for service_id, pool_id in spans if pool_id and prices.at(now, pool_id)}


def counted(spans: QuerySet[DeploymentSpan]) -> QuerySet[DeploymentSpan]:
    """Those whose clock runs."""
    return spans.filter(by_time=True, replicas__gt=0)


def spans_between(start: datetime, end: datetime) -> QuerySet[DeploymentSpan]:
    """Those whose clock ran within, in order."""
    spans = DeploymentSpan.objects.filter(Q(ended_at=None) | Q(ended_at__gt=start), started_at__lt=end)
    return counted(spans).order_by("service_id", "started_at")


def service_days(
    spans: Iterable[DeploymentSpan], prices: InstancePrices, start: datetime, end: datetime
) -> dict[tuple[int, date], ServiceDay]:
    """The clock of the spans from ``start`` to ``end``, cut at midnights and where another rate card came into force."""
    days: dict[tuple[int, date], ServiceDay] = {}
    for span in spans:
        begin, finish = max(span.started_at, start), min(span.ended_at or end, end)
        cuts = [begin, *sorted(_cuts(begin, finish, prices)), finish]
        for since, until in zip(cuts, cuts[1:], strict=False):
            if since >= until:
                continue
            key = (span.service_id, since.date())
            if key not in days:
                days[key] = ServiceDay(
                    service_id=span.service_id, service=span.service, team_id=span.team_id, day=since.date()
                )
            us = span.replicas * ((until - since) // timedelta(microseconds=1))
            days[key].add(span.pool_id, prices.at(since, span.pool_id), us)
    return days


def _cuts(begin: datetime, finish: datetime, prices: InstancePrices) -> set[datetime]:
    if begin >= finish:
        return set()
    return {*_midnights(begin, finish), *prices.changes(begin, finish)}


def _midnights(begin: datetime, finish: datetime) -> Iterator[datetime]:
    moment = midnight(begin.date() + DAY)
    while moment < finish:
        yield moment
        moment += DAY


def midnight(day: date) -> datetime:
    return datetime.combine(day, time(0), UTC)


def reserved_us(pool_id: int, start: datetime, end: datetime) -> int:
    """How long instances on the bill waited in the pool: their clock without what their services' work took of the cards."""
    clock: dict[str, int] = defaultdict(int)
    spans = list(spans_between(start, end).filter(pool_id=pool_id))
    if not spans:
        return 0
    for day in service_days(spans, InstancePrices(), start, end).values():
        clock[day.service] += day.billed_us
    work = LedgerTransaction.objects.filter(
        lines__account=Account.DEPLOYED,
        kind__in=(TransactionKind.CHARGE, TransactionKind.OVERHEAD),
        pool_id=pool_id,
        service__in=clock,
        occurred_at__gte=start,
        occurred_at__lt=end,
    )
    busy = dict(work.order_by().values_list("service").annotate(Sum("gpu_us")))
    return sum(max(0, us - busy.get(service, 0)) for service, us in clock.items())
