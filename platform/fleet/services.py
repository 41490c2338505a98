"""Writes about pools and workers. A worker's times come from the database's clock."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, time, timedelta
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import Exists, F, OuterRef, Q, QuerySet
from django.db.models.functions import Now

from accounts.models import User
from audit.recording import record
from common.database import database_now, now_plus
from common.errors import ConflictError, FieldError, InvalidRequestError, UnavailableError
from fleet.models import Pool, Worker, WorkerDay


def pools_for_new_jobs(wanted: Pool | None = None) -> list[Pool]:
    """Those that are enabled, the best first; the wanted one alone while it is among them.

    Raises:
        UnavailableError: No pool is enabled.
    """
    enabled = list(Pool.objects.filter(enabled=True).order_by("pk"))
    if not enabled:
        raise UnavailableError("No pool is enabled, so nothing could render this job.")
    return [pool for pool in enabled if wanted and pool.pk == wanted.pk] or enabled


def worker_register(*, name: str, pool: Pool, device: str, card: str = "") -> Worker:
    """A process has started. What was said of its name or its card before, such as a quarantine, still holds."""
    worker, _ = Worker.objects.update_or_create(
        name=name,
        defaults={
            "pool": pool,
            "device": device,
            "card": card,
            "report": {},
            "started_at": Now(),
            "last_seen_at": Now(),
            "stopped_at": None,
        },
    )
    return Worker.objects.get(pk=worker.pk)


def worker_seen(*, worker_id: int, loaded_checkpoint_sha256: str, report: Mapping[str, Any] | None = None) -> None:
    """A sign of life; the time since the one before counts as lived.

    Args:
        report: Memory and kept weights, a few kilobytes at most; None leaves the last one.
    """
    told = {} if report is None else {"report": dict(report)}
    with transaction.atomic():
        _live(worker_id)
        Worker.objects.filter(pk=worker_id).update(
            last_seen_at=Now(), loaded_checkpoint_sha256=loaded_checkpoint_sha256, **told
        )


def worker_may_claim(worker_id: int) -> bool:
    """Whether nobody has told it, or the card it is on, to stand back."""
    worker = Worker.objects.filter(pk=worker_id).values("draining", "card", "quarantined_at").first()
    if worker is None or worker["draining"] or worker["quarantined_at"]:
        return False
    return not (worker["card"] and Worker.objects.filter(card=worker["card"], quarantined_at__isnull=False).exists())


def worker_quarantine(*, worker: Worker, reason: str, by: User | None = None) -> None:
    """It finishes what it has and claims nothing more until it is released; neither does another process on its card.

    One that is quarantined already keeps its first reason.

    Raises:
        InvalidRequestError: No reason is given.
    """
    if not reason.strip():
        raise InvalidRequestError([FieldError("reason", "Say why, for whoever releases it.", reason)])
    changes = {"quarantined_at": Now(), "quarantine_reason": reason.strip()[:300]}
    changes["quarantined_by"] = by.get_username() if by else ""
    if Worker.objects.filter(pk=worker.pk, quarantined_at=None).update(**changes):
        record(worker, f"is quarantined: {reason.strip()[:300]}")


def worker_release(*, worker: Worker) -> None:
    """End its quarantine, and that of every process that was on its card.

    Raises:
        ConflictError: It is not quarantined.
    """
    same = Q(pk=worker.pk) | (Q(card=worker.card) if worker.card else Q())
    empty: dict[str, Any] = {"quarantined_at": None, "quarantine_reason": "", "quarantined_by": ""}
    if not Worker.objects.filter(same, quarantined_at__isnull=False).update(**empty):
        raise ConflictError(f"{worker} is not quarantined.")
    record(worker, "is released from quarantine")


def worker_stopped(*, worker_id: int) -> None:
    with transaction.atomic():
        _live(worker_id)
        Worker.objects.filter(pk=worker_id).update(stopped_at=Now(), last_seen_at=Now())


def _live(worker_id: int) -> None:
    """Add the time since the last sign of life to the worker's days. A silence longer than it takes to be lost was no life."""
    worker = Worker.objects.select_for_update().filter(pk=worker_id, stopped_at=None).first()
    if worker is None:
        return
    now = database_now()
    begin = worker.last_seen_at
    if now - begin > timedelta(seconds=settings.WORKER_DEAD_AFTER_SECONDS):
        return
    while begin < now:
        midnight = datetime.combine(begin.date() + timedelta(days=1), time(0), UTC)
        end = min(now, midnight)
        lived_us = (end - begin) // timedelta(microseconds=1)
        row, _ = WorkerDay.objects.get_or_create(worker=worker, pool_id=worker.pool_id, day=begin.date())
        WorkerDay.objects.filter(pk=row.pk).update(alive_us=F("alive_us") + lived_us)
        begin = end


def workers_claiming() -> QuerySet[Worker]:
    """Those of whom work can be expected: alive, not standing back, in a pool that is in use."""
    quarantined = Worker.objects.filter(card=OuterRef("card"), quarantined_at__isnull=False).exclude(card="")
    ready = workers_alive().filter(draining=False, quarantined_at=None, pool__enabled=True)
    return ready.filter(~Exists(quarantined))


def workers_alive() -> QuerySet[Worker]:
    return Worker.objects.filter(
        stopped_at__isnull=True, last_seen_at__gt=now_plus(-settings.WORKER_DEAD_AFTER_SECONDS)
    )
