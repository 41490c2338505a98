"""Deployed instances on the bill: each service's day is settled once it is over, as lines of the ledger.

A day's cost is spread over the jobs that used it, by the time that their pictures took of it; what no job used is a line of the
service itself, nobody's job. Pictures of such a service cost nothing beside it. Why so: docs/decisions/billing-by-edition.md.
"""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal
from itertools import groupby
from typing import Any

from django.db import IntegrityError, transaction
from django.db.models import Max, Q, Sum
from django.db.models.functions import Now

from billing.allocation import spread
from billing.deployment_clock import DAY, ServiceDay, counted, midnight, service_days, spans_between
from billing.holds import accounts_locked, concerns, note_what_is_passed
from billing.ledger import deployment_append
from billing.models import (
    Account,
    Budget,
    BudgetPeriod,
    BudgetScope,
    DeploymentDay,
    DeploymentSpan,
    LedgerTransaction,
    TransactionKind,
)
from billing.pricing import Price, rounded
from billing.ratecards import InstancePrices
from billing.reports import Period
from billing.subjects import Subject
from common.database import UtcDay, database_now

WHOSE = (
    "job_id", "user_id", "project_id", "token_id", "lane", "checkpoint_sha256", "checkpoint_name", "tags",
)  # fmt: skip
"""What a part of a day's cost has of the pictures it stands for."""
NOBODYS = {**dict.fromkeys(WHOSE), "checkpoint_sha256": "", "checkpoint_name": "", "tags": {}}
ACCRUED, UNBILLED = "accrued_deployment", "unbilled_deployment"


@dataclass(frozen=True, slots=True)
class Booked:
    """A part of a day's cost that stands in the ledger."""

    entry: LedgerTransaction
    amount: Decimal

    @property
    def subject(self) -> Subject | None:
        """None for what no job used."""
        entry = self.entry
        if entry.job_id is None or entry.user_id is None or entry.team_id is None:
            return None
        return Subject(
            job_id=entry.job_id,
            team_id=entry.team_id,
            user_id=entry.user_id,
            project_id=entry.project_id,
            tags=entry.tags,
        )


def deployments_settle() -> int:
    """Settle every day of every service that is over; returns how many. Running it twice changes nothing."""
    return sum(_settle(day) for day in sorted(_due(), key=lambda day: (day.day, day.service_id)))


def _due() -> list[ServiceDay]:
    """Days are settled in their order, so of each service those after its newest settled one."""
    today, prices = midnight(database_now().date()), InstancePrices()
    newest = DeploymentDay.objects.order_by().values_list("service_id").annotate(Max("day"))
    settled = {service_id: midnight(day + DAY) for service_id, day in newest}
    start = min(settled.values(), default=today)
    old = Q(ended_at=None) | Q(ended_at__gt=start) | ~Q(service_id__in=settled)
    spans = counted(DeploymentSpan.objects.filter(old, started_at__lt=today)).order_by("service_id", "started_at")
    due: list[ServiceDay] = []
    for service_id, of_service in groupby(spans, key=lambda span: span.service_id):
        mine = list(of_service)
        due += service_days(mine, prices, settled.get(service_id, mine[0].started_at), today).values()
    return due


def _settle(day: ServiceDay) -> bool:
    try:
        with transaction.atomic():
            DeploymentDay.objects.create(
                service_id=day.service_id,
                service=day.service,
                team_id=day.team_id,
                day=day.day,
                billed_us=day.billed_us,
                unbilled_us=day.unbilled_us,
                settled_at=Now(),
            )
            jobs = _jobs_of(day) if day.billed else []
            booked = [
                part
                for (pool_id, _), (price, us) in sorted(day.billed.items(), key=lambda item: item[0])
                for part in _book(day, pool_id, price, us, jobs)
            ]
            _count_in_budgets(day, booked)
    except IntegrityError:
        if not DeploymentDay.objects.filter(service_id=day.service_id, day=day.day).exists():
            raise  # or the next day would be settled and this one never
        return False  # another worker of the chores was faster
    return True


def _jobs_of(day: ServiceDay) -> list[dict[str, Any]]:
    """Whose pictures the service made that day, and their time, ``us``. One that was paid for by itself is not among them."""
    pictures = LedgerTransaction.objects.filter(
        kind=TransactionKind.CHARGE,
        service=day.service,
        occurred_at__gte=day.start,
        occurred_at__lt=day.start + DAY,
        lines__account=Account.DEPLOYED,
    )
    return list(pictures.values(*WHOSE).annotate(us=Sum("gpu_us")).order_by("job_id", "checkpoint_sha256", "token_id"))


def _book(
    day: ServiceDay, pool_id: int, price: Price, instance_us: int, jobs: Sequence[dict[str, Any]]
) -> Iterator[Booked]:
    """The cost at one price: first what no job used, then each job's part. A day of several prices is used evenly."""
    whole_day = day.billed_us + day.unbilled_us
    used = [Decimal(job["us"]) * instance_us / whole_day for job in jobs]
    weights = [max(Decimal(0), instance_us - sum(used, Decimal(0))), *used]
    amounts = spread(price.of_instances(instance_us), weights)
    times = spread(Decimal(instance_us), weights, unit=Decimal(1))
    parts = [
        ({name: job[name] for name in WHOSE}, amount, int(time))
        for job, amount, time in zip([NOBODYS, *jobs], amounts, times, strict=True)
    ]
    entries = deployment_append(
        event_id=f"deployed:{day.service_id}:{day.day}:{pool_id}.{price.price_id}",
        price=price,
        occurred_at=day.start + DAY - timedelta(microseconds=1),
        parts=parts,
        service=day.service,
        team_id=day.team_id,
        pool_id=pool_id,
    )
    return (Booked(entry, amount) for entry, (_, amount, _) in zip(entries, parts, strict=True))


def _count_in_budgets(day: ServiceDay, booked: Sequence[Booked]) -> None:
    """A part is spent on every budget that a picture of the same job would be; nobody's on those of team and organisation.

    Time cannot be refused, so what passes a limit is spent all the same: jobs that cost something are refused then.
    """
    spent = [part for part in booked if part.amount]
    currencies = {part.entry.currency for part in spent}
    budgets = Budget.objects.filter(Q(team=None) | Q(team_id=day.team_id), enabled=True, currency__in=currencies)
    mine = {
        budget: [part for part in spent if part.entry.currency == budget.currency and _is_of(budget, part)]
        for budget in budgets.order_by("pk").prefetch_related("thresholds")
    }
    accounts = accounts_locked([budget for budget, parts in mine.items() if parts], at=day.start)
    for account in accounts:
        account.spent += sum((part.amount for part in mine[account.budget]), Decimal(0))
        if account.most is not None:
            account.most = max(account.most, account.spent + account.held)
    if accounts:
        BudgetPeriod.objects.bulk_update(accounts, ["spent", "most"])
        through = BudgetPeriod.deployments.through
        through.objects.bulk_create(
            through(budgetperiod_id=account.pk, ledgertransaction_id=part.entry.pk)
            for account in accounts
            for part in mine[account.budget]
        )
        note_what_is_passed(accounts, None)


def _is_of(budget: Budget, part: Booked) -> bool:
    subject = part.subject
    return concerns(budget, subject) if subject else budget.scope in (BudgetScope.ORGANISATION, BudgetScope.TEAM)


# --- what is not on a bill ----------------------------------------------------------------------------------------------


def unsettled(period: Period) -> list[dict[str, Any]]:
    """What instances have cost since their last settled day, and their time that nobody is billed for.

    Each row: ``cost`` (``ACCRUED`` or ``UNBILLED``), ``team``, ``service``, ``pool``, ``currency``, ``gpu_us`` (instances times
    time), ``amount``. A part by job, member and the like has none of it.
    """
    if set(period.of) - {"service", "pool"}:
        return []
    spans = spans_between(period.start, period.end).select_related("team", "pool")
    if period.team_ids is not None:
        spans = spans.filter(team_id__in=period.team_ids)
    for name, column in (("service", "service"), ("pool", "pool__name")):
        if name in period.of:
            spans = spans.filter(**{column: period.of[name]})
    if not (found := list(spans)):
        return []
    end = min(period.end, database_now())
    days = service_days(found, InstancePrices(), period.start, end)
    settled = _settled(period, {span.service_id for span in found})
    names = {span.service_id: (span.team.name, span.service) for span in found}
    pools = {span.pool_id: span.pool.name for span in found if span.pool}
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for key, day in sorted(days.items()):
        team, service = names[day.service_id]
        for (pool_id, _), (price, us) in () if key in settled else day.billed.items():
            _add(rows, (ACCRUED, team, service, pools[pool_id], price.currency), us, price.of_instances(us))
        if unbilled_us := settled.get(key, day.unbilled_us):
            _add(rows, (UNBILLED, team, service, pools.get(day.pool_id, ""), ""), unbilled_us, Decimal(0))
    return [rows[key] for key in sorted(rows)]


def _settled(period: Period, service_ids: set[int]) -> dict[tuple[int, date], int]:
    """(service, day) → what of it was not billed."""
    days = DeploymentDay.objects.filter(day__gte=period.start.date(), day__lte=period.end.date())
    rows = days.filter(service_id__in=service_ids).values_list("service_id", "day", "unbilled_us")
    return {(service_id, day): unbilled_us for service_id, day, unbilled_us in rows}


def _add(rows: dict[tuple[Any, ...], dict[str, Any]], key: tuple[Any, ...], us: int, amount: Decimal) -> None:
    names = ("cost", "team", "service", "pool", "currency")
    row = rows.setdefault(key, {**dict(zip(names, key, strict=True)), "gpu_us": 0, "amount": Decimal(0)})
    row["gpu_us"] += us
    row["amount"] += amount


def share_of(job_id: uuid.UUID) -> dict[str, Decimal]:
    """Currency → what the job has of its service's settled days."""
    lines = LedgerTransaction.objects.filter(
        job_id=job_id, kind=TransactionKind.DEPLOYMENT, lines__account=Account.TEAM_SPEND
    )
    return dict(lines.order_by("currency").values_list("currency").annotate(Sum("lines__amount")))


# --- what must be so ----------------------------------------------------------------------------------------------------


def wrong_days() -> Iterator[str]:
    """One sentence per settled day that is not what the log, the rate cards and the ledger say."""
    prices, now = InstancePrices(), database_now()
    spans = list(counted(DeploymentSpan.objects.order_by("started_at")))
    clock = service_days(spans, prices, min((span.started_at for span in spans), default=now), now)
    booked = _booked(prices)
    for settled in DeploymentDay.objects.all():
        said, day = settled.billed_us + settled.unbilled_us, clock.get((settled.service_id, settled.day))
        ran = day.billed_us + day.unbilled_us if day else 0
        if said != ran:
            yield f"{settled} is settled for {said} µs; by the log it ran {ran}."
        us, amount, cost = booked.pop((settled.service, settled.day), (0, Decimal(0), Decimal(0)))
        if us != settled.billed_us or amount != cost:
            yield f"{settled} has {settled.billed_us} µs on the bill, which cost {cost}; its lines have {us} and {amount}."
    yield from (f"{service} on {day} has lines and is not settled." for service, day in booked)


def _booked(prices: InstancePrices) -> dict[tuple[str, date], tuple[int, Decimal, Decimal]]:
    """(service, day) → time and amount of its lines, and what that time costs by their cards."""
    lines = LedgerTransaction.objects.filter(kind=TransactionKind.DEPLOYMENT, lines__account=Account.TEAM_SPEND)
    rows = lines.order_by().values("service", "pool_id", "rate_card_id", day=UtcDay("occurred_at"))
    booked: dict[tuple[str, date], tuple[int, Decimal, Decimal]] = defaultdict(lambda: (0, Decimal(0), Decimal(0)))
    for row in rows.annotate(us=Sum("gpu_us"), total=Sum("lines__amount")):
        price = prices.on_card(row["rate_card_id"], row["pool_id"])
        us, amount, cost = booked[row["service"], row["day"]]
        due = price.of_instances(row["us"]) if price else Decimal(0)
        booked[row["service"], row["day"]] = (us + row["us"], amount + rounded(row["total"]), cost + due)
    return booked
