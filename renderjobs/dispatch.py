"""Wakes a pool by Celery task name; never imports the worker. A lost wake-up costs at most the workers' poll interval."""

from __future__ import annotations

import logging

from django.conf import settings
from django.db import transaction
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from config import celery_app

logger = logging.getLogger(__name__)
RENDER_TASK = "gpuworker.render_next"


def queue_of(pool_name: str) -> str:
    return f"gpu.{pool_name}"


def wake_on_commit(pool_name: str) -> None:
    """Tell the pool's workers that there is work, once the rows are there to be found."""
    transaction.on_commit(lambda: wake(pool_name), robust=True)


def wake(pool_name: str) -> None:
    try:
        celery_app.send_task(
            RENDER_TASK, queue=queue_of(pool_name), expires=settings.WORKER_POLL_SECONDS * 12, ignore_result=True
        )
    except (OperationalError, RedisError, OSError) as error:
        # The job is accepted all the same: the database is the queue.
        logger.warning("The broker did not take a wake-up for pool %s: %s", pool_name, error)
