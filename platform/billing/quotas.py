"""How much may be asked for at a time or in a day. A refusal names the quota, its limit, what is used and when it is reset.

Jobs are counted by whoever has them: ``renderjobs`` registers its counters, for this app must not know of jobs.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

from django.db.models import Q, QuerySet, Sum

from billing.errors import QuotaExceededError
from billing.models import Measure, Quota, UsageRecord
from billing.subjects import Subject
from common.database import database_now

Counter = Callable[[Quota, datetime], int]
"""(quota, beginning of the day) → how much of it is used."""
_counters: dict[str, Counter] = {}
PER_DAY = (Measure.IMAGES_PER_DAY, Measure.GPU_SECONDS_PER_DAY)


def counter_register(measure: str, counter: Counter) -> None:
    _counters[measure] = counter


def quotas_check(*, subject: Subject, images: int) -> None:
    """Refuse a submission that does not fit. Inside the caller's transaction; two submitters of one quota take turns.

    Raises:
        QuotaExceededError: Naming the quota, its limit, what is used and when it is reset.
    """
    quotas = list(quotas_of(subject).select_for_update(of=("self",)).order_by("pk"))
    if not quotas:
        return
    now = database_now()
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    for quota in quotas:
        asked = asked_of(quota, images)
        used = _counters[quota.measure](quota, midnight)
        if used + asked > quota.limit:
            resets_at = midnight + timedelta(days=1) if quota.measure in PER_DAY else None
            raise QuotaExceededError(quota, used=used, asked=asked, now=now, resets_at=resets_at)


def quotas_of(subject: Subject) -> QuerySet[Quota]:
    return Quota.objects.filter(
        Q(team=None) | Q(team_id=subject.team_id),
        Q(user=None) | Q(user_id=subject.user_id),
        Q(token=None) | Q(token_id=subject.token_id),
        enabled=True,
    ).select_related("team", "user", "token__team", "token__user")


def asked_of(quota: Quota, images: int) -> int:
    """Nobody knows beforehand how long a job will take: of GPU-seconds, one has to be left."""
    return images if quota.measure == Measure.IMAGES_PER_DAY else 1


def whose_rows(quota: Quota) -> Q:
    """The rows that count: those with team, user and token as far as the quota names them."""
    named = {"team_id": quota.team_id, "user_id": quota.user_id, "token_id": quota.token_id}
    return Q(**{column: value for column, value in named.items() if value is not None})


def gpu_seconds_used(quota: Quota, midnight: datetime) -> int:
    rows = UsageRecord.objects.filter(whose_rows(quota), ended_at__gte=midnight, charged=True)
    return int((rows.aggregate(total=Sum("gpu_us"))["total"] or 0) // 1_000_000)


counter_register(Measure.GPU_SECONDS_PER_DAY, gpu_seconds_used)
