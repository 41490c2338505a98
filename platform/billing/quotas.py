"""How much may be asked for at a time, in a minute, a day or a month. A refusal names the quota, its limit, what is used and when
it is reset.

What stands right of this app is counted by whoever has it: ``renderjobs`` registers its counters, for this app knows of no jobs.
A counter answers for all quotas of its measure in one statement, however many there are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import reduce
from operator import or_
from typing import Any

from django.db.models import F, Q, QuerySet, Sum, Value
from django.db.models.functions import Coalesce

from billing.errors import QuotaExceededError
from billing.models import Measure, Quota, RequestCount, UsageRecord
from billing.subjects import Subject
from common.database import database_now

Counter = Callable[[Sequence[Quota], datetime], dict[int, int]]
"""(quotas of its measure, beginning of the period) → how much of each is used, by the quota's id."""
_counters: dict[str, Counter] = {}
WAITING_ITS_TURN = (Measure.RUNNING_IMAGES,)
"""What is beyond these waits until others have ended. It is refused only where nothing at all may run: it would wait for ever."""


@dataclass(frozen=True, slots=True)
class Use:
    """How much of a quota is used, and when it begins anew; None where that is no matter of time."""

    quota: Quota
    used: int
    resets_at: datetime | None


def counter_register(measure: str, counter: Counter) -> None:
    _counters[measure] = counter


def quotas_check(*, subject: Subject, asked: Mapping[str, int]) -> None:
    """Refuse what does not fit. Inside the caller's transaction; two that ask for parts of one quota take turns.

    Args:
        asked: Measure → how much more of it there will be.
    Raises:
        QuotaExceededError: Naming the quota, its limit, what is used and when it is reset.
    """
    quotas = list(quotas_of(subject).filter(measure__in=asked).select_for_update(of=("self",)).order_by("pk"))
    if not quotas:
        return
    now = database_now()
    for use in uses_of(quotas, now):
        more = asked[use.quota.measure]
        if more + (0 if use.quota.measure in WAITING_ITS_TURN else use.used) > use.quota.limit:
            raise QuotaExceededError(use.quota, used=use.used, asked=more, now=now, resets_at=use.resets_at)


def asked_by_a_job(*, images: int, image_bytes: int) -> dict[str, int]:
    """Nobody knows beforehand how long a job will take: of GPU-seconds, one has to be left.

    Args:
        image_bytes: The most that one image may take in the storage.
    """
    return {
        Measure.IMAGES_PER_DAY: images,
        Measure.GPU_SECONDS_PER_DAY: 1,
        Measure.GPU_SECONDS_PER_MONTH: 1,
        Measure.WAITING_JOBS: 1,
        Measure.OPEN_JOBS: 1,
        Measure.QUEUED_IMAGES: images,
        Measure.RUNNING_IMAGES: 1,
        Measure.STORED_BYTES: images * image_bytes,
    }


def quotas_of(subject: Subject) -> QuerySet[Quota]:
    return Quota.objects.filter(
        Q(team=None) | Q(team_id=subject.team_id),
        Q(user=None) | Q(user_id=subject.user_id),
        Q(token=None) | Q(token_id=subject.token_id),
        enabled=True,
    ).select_related("team", "user", "token__team", "token__user")


def uses_of(quotas: Iterable[Quota], now: datetime | None = None) -> list[Use]:
    """What is used of each, in their order; one statement per measure."""
    quotas, now = list(quotas), now or database_now()
    by_measure: dict[str, list[Quota]] = defaultdict(list)
    for quota in quotas:
        by_measure[quota.measure].append(quota)
    used: dict[int, int] = {}
    for measure, same in by_measure.items():
        used |= _counters[measure](same, period_of(measure, now)[0])
    return [Use(quota, used[quota.pk], period_of(quota.measure, now)[1]) for quota in quotas]


def period_of(measure: str, now: datetime) -> tuple[datetime, datetime | None]:
    """When the period of a measure began and when the next one begins, UTC."""
    minute = now.replace(second=0, microsecond=0)
    midnight = minute.replace(hour=0, minute=0)
    first = midnight.replace(day=1)
    match measure:
        case Measure.REQUESTS_PER_MINUTE:
            return minute, minute + timedelta(minutes=1)
        case Measure.IMAGES_PER_DAY | Measure.GPU_SECONDS_PER_DAY:
            return midnight, midnight + timedelta(days=1)
        case Measure.GPU_SECONDS_PER_MONTH:
            return first, first.replace(year=first.year + first.month // 12, month=first.month % 12 + 1)
    return midnight, None


def whose_rows(quota: Quota, of: str = "") -> Q:
    """The rows that count: those with team, user and token as far as the quota names them.

    Args:
        of: The way from the rows to those columns, such as ``job__``.
    """
    named = {"team_id": quota.team_id, "user_id": quota.user_id, "token_id": quota.token_id}
    return Q(**{f"{of}{column}": value for column, value in named.items() if value is not None})


def summed(rows: QuerySet[Any], amount: Any, quotas: Sequence[Quota], *, of: str = "") -> dict[int, int]:
    """The sum of ``amount`` over each quota's rows, by the quota's id."""
    wanted = {f"of_{quota.pk}": whose_rows(quota, of) for quota in quotas}
    found = rows.filter(reduce(or_, wanted.values())) if all(wanted.values()) else rows
    sums = {name: Coalesce(Sum(amount, filter=own or None), Value(0)) for name, own in wanted.items()}
    totals = found.order_by().aggregate(**sums)
    return {quota.pk: int(totals[f"of_{quota.pk}"]) for quota in quotas}


def gpu_seconds_used(quotas: Sequence[Quota], since: datetime) -> dict[int, int]:
    rows = UsageRecord.objects.filter(ended_at__gte=since, charged=True)
    return {pk: us // 1_000_000 for pk, us in summed(rows, F("gpu_us"), quotas).items()}


def requests_made(quotas: Sequence[Quota], minute: datetime) -> dict[int, int]:
    counts = RequestCount.objects.filter(quota__in=quotas, minute=minute)
    return {quota.pk: 0 for quota in quotas} | dict(counts.values_list("quota", "requests"))


for _measure in (Measure.GPU_SECONDS_PER_DAY, Measure.GPU_SECONDS_PER_MONTH):
    counter_register(_measure, gpu_seconds_used)
counter_register(Measure.REQUESTS_PER_MINUTE, requests_made)
