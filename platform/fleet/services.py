"""Writes about pools and workers. A worker's times come from the database's clock."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta

from django.conf import settings
from django.db import transaction
from django.db.models import F, QuerySet
from django.db.models.functions import Now

from common.database import database_now, now_plus
from common.errors import UnavailableError
from fleet.models import Pool, Worker, WorkerDay


def pool_for_new_jobs(wanted: Pool | None = None) -> Pool:
    """The wanted pool while it is enabled, else the first that is.

    Raises:
        UnavailableError: No pool is enabled.
    """
    enabled = Pool.objects.filter(enabled=True).order_by("pk")
    pool = (enabled.filter(pk=wanted.pk).first() if wanted else None) or enabled.first()
    if pool is None:
        raise UnavailableError("No pool is enabled, so nothing could render this job.")
    return pool


def worker_register(*, name: str, pool: Pool, device: str) -> Worker:
    worker, _ = Worker.objects.update_or_create(
        name=name,
        defaults={"pool": pool, "device": device, "started_at": Now(), "last_seen_at": Now(), "stopped_at": None},
    )
    return Worker.objects.get(pk=worker.pk)


def worker_seen(*, worker_id: int, loaded_checkpoint_sha256: str) -> None:
    """A sign of life; the time since the one before counts as lived."""
    with transaction.atomic():
        _live(worker_id)
        Worker.objects.filter(pk=worker_id).update(
            last_seen_at=Now(), loaded_checkpoint_sha256=loaded_checkpoint_sha256
        )


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


def workers_alive() -> QuerySet[Worker]:
    return Worker.objects.filter(
        stopped_at__isnull=True, last_seen_at__gt=now_plus(-settings.WORKER_DEAD_AFTER_SECONDS)
    )
