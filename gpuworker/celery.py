"""`celery -A gpuworker worker`: one process that owns one card. No flag is needed; WORKER_POOL names the pool it serves."""

from __future__ import annotations

from manage import prepare

prepare()

import django  # noqa: E402  the source roots must be on the path first

django.setup()

from django.conf import settings  # noqa: E402
from kombu import Exchange, Queue  # noqa: E402

import gpuworker.lifecycle  # noqa: E402, F401  connects the process's start and stop
import gpuworker.tasks  # noqa: E402, F401  registers render_next
from config.celery import app  # noqa: E402
from renderjobs.dispatch import queue_of  # noqa: E402

queue = queue_of(settings.WORKER_POOL)
app.conf.update(
    # An exchange of its own: bound to the default one, this queue would get every chore as well.
    task_queues=[Queue(queue, Exchange(queue), routing_key=queue)],
    # One card, one process. Prefork, so that the parent goes on talking to the broker while the child renders.
    worker_pool="prefork",
    worker_concurrency=1,
    # A wake-up is worth nothing to a worker that is busy: leave the others to other workers.
    worker_prefetch_multiplier=1,
    # A worker killed while rendering wakes another one; running a wake-up twice is harmless.
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    # Importing torch takes longer than the four seconds Celery grants by default.
    worker_proc_alive_timeout=180,
)

__all__ = ["app"]
