"""Who looked at what is somebody else's: one entry per person, object and window of ten minutes, not one per picture.

A reader's request writes one small row at most, once per window; the entry is made of it when the log is sealed, a minute later. So
nothing is lost with the broker, and nobody waits for the log.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Iterable
from datetime import timedelta

from auditlog.models import LogEntry
from django.contrib.contenttypes.models import ContentType
from django.db import transaction
from django.db.models import Model
from django.db.models.functions import Now

from accounts.models import User
from audit.acting import acting
from audit.models import Reading
from common.database import now_plus

WINDOW_SECONDS = 600
AT_ONCE = 500
REMEMBERED = 10_000
"""Readings of this process that need no further row; whoever is forgotten costs one statement that changes nothing."""
KEPT = timedelta(days=1)
_seen: OrderedDict[tuple[int, str, str, int], None] = OrderedDict()
_lock = threading.Lock()


def reading_note(*, reader: User, obj: Model, owner_id: int | None, what: str) -> None:
    """As ``readings_note``, of one."""
    readings_note(reader=reader, shown=[(obj, owner_id)], what=what)


def readings_note(*, reader: User, shown: Iterable[tuple[Model, int | None]], what: str) -> None:
    """The reader is shown pictures of these. Of one's own things nothing is noted; one statement at most.

    Args:
        shown: Each with the user whose it is.
        what: In words, such as "looked at the pictures".
    """
    window = int(time.time()) // WINDOW_SECONDS
    others = {
        (reader.pk, obj._meta.label, str(obj.pk), window): obj for obj, owner_id in shown if owner_id != reader.pk
    }
    new = {key: obj for key, obj in others.items() if not _is_noted(key)}
    if new:
        rows = [_row(reader, obj, what, window) for obj in new.values()]
        Reading.objects.bulk_create(rows, ignore_conflicts=True)
    for key in new:
        _remember(key)


def _row(reader: User, obj: Model, what: str, window: int) -> Reading:
    request = acting.get()
    return Reading(
        reader_id=reader.pk,
        by=reader.get_username(),
        content_type=ContentType.objects.get_for_model(obj),
        object_pk=str(obj.pk),
        object_repr=str(obj)[:200],
        what=what,
        remote_addr=request.META.get("REMOTE_ADDR") or None if request else None,
        window=window,
        read_at=Now(),
    )


def _is_noted(key: tuple[int, str, str, int]) -> bool:
    with _lock:
        return key in _seen


def _remember(key: tuple[int, str, str, int]) -> None:
    with _lock:
        _seen[key] = None
        while len(_seen) > REMEMBERED:
            _seen.popitem(last=False)


def readings_enter() -> int:
    """Make entries of what was noted since, and forget what has long been one; how many. Safe to run twice and beside another."""
    entered = 0
    while some := _enter_some():
        entered += some
    Reading.objects.filter(entry_id__isnull=False, read_at__lt=now_plus(-KEPT.total_seconds())).delete()
    return entered


@transaction.atomic
def _enter_some() -> int:
    rows = list(Reading.objects.select_for_update().filter(entry_id=None).order_by("pk")[:AT_ONCE])
    there = set(User.objects.filter(pk__in={row.reader_id for row in rows}).values_list("pk", flat=True))
    for row in rows:
        entry = LogEntry.objects.create(
            content_type_id=row.content_type_id,
            object_pk=row.object_pk,
            object_repr=row.object_repr,
            action=LogEntry.Action.ACCESS,
            additional_data={"by": row.by, "did": row.what},
            actor_id=row.reader_id if row.reader_id in there else None,
            remote_addr=row.remote_addr,
            timestamp=row.read_at,
        )
        row.entry_id = entry.pk
    Reading.objects.bulk_update(rows, ["entry_id"])
    return len(rows)
