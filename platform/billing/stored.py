"""How much is stored for whom: a counter that moves with the rows of the files, so that asking costs the same for any number.

Whoever writes or removes a row of a team's file says so here, in the same transaction and after every other lock: these rows are
always the last. What may still be stored is asked of the quotas, before anything is.
"""

from __future__ import annotations

import uuid

from django.db.models import F

from billing.models import Measure, StoredBytes
from billing.quotas import quotas_check
from billing.subjects import Subject


def stored_change(*, team_id: int, user_id: int | None = None, token_id: int | None = None, by: int) -> None:
    """Count files that came, or with a negative number files that went."""
    if not by:
        return
    origin = {"team_id": team_id, "user_id": user_id or 0, "token_id": token_id or 0}
    counts = StoredBytes.objects.filter(**origin)
    if not counts.update(size_bytes=F("size_bytes") + by):
        StoredBytes.objects.bulk_create([StoredBytes(**origin)], ignore_conflicts=True)  # another may be as fast
        counts.update(size_bytes=F("size_bytes") + by)


def stored_check(*, team_id: int, user_id: int | None = None, size_bytes: int) -> None:
    """Refuse a file that does not fit. Inside the caller's transaction; two that bring files take turns.

    Raises:
        QuotaExceededError: Naming the quota, its limit and what is used.
    """
    subject = Subject(job_id=uuid.UUID(int=0), team_id=team_id, user_id=user_id or 0)
    quotas_check(subject=subject, asked={Measure.STORED_BYTES: size_bytes})
