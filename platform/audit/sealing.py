"""Seals entries of the audit log in the order in which they were found, and finds those that were changed or removed since.

A seal is SHA-256 over the seal before and the entry's content. It is made within a minute by a task and not by whoever writes an
entry: a chain has one end, and writers must not wait for one another there. Until then an entry is as safe as any other row.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

from auditlog.models import LogEntry
from django.db import IntegrityError, transaction
from django.db.models import Exists, OuterRef

from audit.models import Seal

AT_ONCE = 1000
CONTENT = (
    "pk", "content_type_id", "object_pk", "object_repr", "action", "changes", "additional_data", "remote_addr", "timestamp",
)  # fmt: skip
"""Not ``actor``: the database empties it when the account goes; the name is in ``additional_data``."""


def seal_entries() -> int:
    """Seal what has no seal yet, oldest first; how many. Two at once: one of them seals nothing."""
    sealed = 0
    while some := _seal_some():
        sealed += some
    return sealed


def _seal_some() -> int:
    try:
        with transaction.atomic():
            last = Seal.objects.order_by("number").last()
            number, digest = (last.number, last.digest) if last else (0, "")
            done = Seal.objects.filter(entry_id=OuterRef("pk"))
            seals = []
            for row in LogEntry.objects.filter(~Exists(done)).order_by("pk").values(*CONTENT)[:AT_ONCE]:
                number, digest = number + 1, digest_of(digest, row)
                seals.append(Seal(number=number, entry_id=row["pk"], digest=digest))
            Seal.objects.bulk_create(seals)
            return len(seals)
    except IntegrityError:
        return 0  # another task was faster; its seals are as good


def digest_of(before: str, row: dict[str, Any]) -> str:
    moment = row["timestamp"].isoformat(timespec="microseconds")
    text = json.dumps([before, {**row, "timestamp": moment}], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def broken_seals() -> Iterator[str]:
    """A line for each entry that is not what was sealed. Reads the whole log, some rows at a time."""
    before, expected = "", 1
    for seals in _batches():
        entries = {
            row["pk"]: row for row in LogEntry.objects.filter(pk__in=[seal.entry_id for seal in seals]).values(*CONTENT)
        }
        for seal in seals:
            if seal.number != expected:
                yield f"seals {expected} to {seal.number - 1} of the audit log are gone."
                expected = seal.number
            row = entries.get(seal.entry_id)
            if row is None:
                yield f"entry {seal.entry_id} of the audit log was removed."
            elif digest_of(before, row) != seal.digest:
                yield f"entry {seal.entry_id} of the audit log is not what was sealed."
            before, expected = seal.digest, expected + 1


def _batches() -> Iterator[list[Seal]]:
    number = 0
    while some := list(Seal.objects.filter(number__gt=number).order_by("number")[:500]):
        yield some
        number = some[-1].number
