"""How many requests a token, a member, a team or everybody may send in a minute: asked where a token is let in, at whatever door.

A token that no such quota concerns costs nothing: that is a part of the one statement which finds the token.
"""

from __future__ import annotations

import uuid
from datetime import datetime

from django.db import transaction
from django.db.models import Case, Exists, F, OuterRef, Q, Value, When

from accounts.authentication import Caller, token_gate_register
from billing.errors import QuotaExceededError
from billing.models import Measure, Quota, RequestCount
from billing.quotas import period_of, quotas_of, requests_made
from billing.subjects import Subject
from common.database import database_now


def is_limited() -> Exists:
    """Of a token's row."""
    return Exists(
        Quota.objects.filter(
            Q(team=None) | Q(team=OuterRef("team")),
            Q(user=None) | Q(user=OuterRef("user")),
            Q(token=None) | Q(token=OuterRef("pk")),
            measure=Measure.REQUESTS_PER_MINUTE,
            enabled=True,
        )
    )


def request_count(caller: Caller) -> None:
    """Count one request on every quota that concerns the caller, or on none.

    Raises:
        QuotaExceededError: The minute's requests are used up.
    """
    assert caller.token is not None
    subject = Subject(job_id=uuid.UUID(int=0), team_id=caller.team.pk, user_id=caller.user.pk, token_id=caller.token.pk)
    with transaction.atomic():
        now = database_now()
        minute, resets_at = period_of(Measure.REQUESTS_PER_MINUTE, now)
        for quota in quotas_of(subject).filter(measure=Measure.REQUESTS_PER_MINUTE).order_by("pk"):
            if not _counted(quota, minute):
                used = requests_made([quota], minute)[quota.pk]
                raise QuotaExceededError(quota, used=used, asked=1, now=now, resets_at=resets_at)


def _counted(quota: Quota, minute: datetime) -> bool:
    """Whether one more fits into the minute; the row's lock makes two requests take turns."""
    if quota.limit == 0:
        return False
    rows = RequestCount.objects.filter(quota=quota)
    # A request that waited for its turn may belong to the minute before.
    fits = Q(minute__lt=minute) | Q(requests__lt=quota.limit)
    same = Case(When(minute__gte=minute, then=F("requests") + 1), default=Value(1))
    for _ in range(2):
        if rows.filter(fits).update(
            requests=same, minute=Case(When(minute__gt=minute, then=F("minute")), default=minute)
        ):
            return True
        if rows.exists():
            return False
        RequestCount.objects.bulk_create([RequestCount(quota=quota, minute=minute, requests=0)], ignore_conflicts=True)
    return False


def register() -> None:
    token_gate_register("has_a_request_quota", is_limited, request_count)
