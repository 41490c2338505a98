"""Writes about pools and workers. A worker's times come from the database's clock."""

from __future__ import annotations

from django.conf import settings
from django.db.models import QuerySet
from django.db.models.functions import Now

from common.database import now_plus
from common.errors import UnavailableError
from fleet.models import Pool, Worker


def pool_for_new_jobs() -> Pool:
    """Raises: UnavailableError: No pool is enabled."""
    pool = Pool.objects.filter(enabled=True).order_by("pk").first()
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
    Worker.objects.filter(pk=worker_id).update(last_seen_at=Now(), loaded_checkpoint_sha256=loaded_checkpoint_sha256)


def worker_stopped(*, worker_id: int) -> None:
    Worker.objects.filter(pk=worker_id).update(stopped_at=Now())


def workers_alive() -> QuerySet[Worker]:
    return Worker.objects.filter(
        stopped_at__isnull=True, last_seen_at__gt=now_plus(-settings.WORKER_DEAD_AFTER_SECONDS)
    )
