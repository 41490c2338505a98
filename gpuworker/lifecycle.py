"""Start and stop of the process that owns the card: device, renderer, registration, the poll beside the broker, the drain.

Nothing here may import torch when it is imported: the parent process imports this module and must not touch the card (H12).
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import platform
import sys
import threading
from typing import Any

from celery.signals import worker_process_init, worker_process_shutdown, worker_shutting_down
from django.conf import settings
from django.db import close_old_connections
from django.utils.module_loading import import_string

from fleet.models import Pool
from fleet.services import worker_register, worker_stopped
from gpuworker.delivery_process import DeliveryProcess
from gpuworker.heartbeat import Heartbeat
from gpuworker.runner import Runner
from renderjobs.claims import leases_expire

logger = logging.getLogger(__name__)
SWITCH_SECONDS = 0.0005
"""How long a thread may keep the interpreter when the rendering one wants it back, which it does at every operator it launches."""
# Made before the fork, so that the parent, which gets SIGTERM, can tell the child to claim nothing more.
draining = multiprocessing.Event()


class WorkLoop:
    """Runs the runner for one caller at a time; a wake-up during a run makes it look once more."""

    def __init__(self, runner: Runner):
        self.runner = runner
        self._busy = threading.Lock()
        self._pending = threading.Event()

    def wake(self) -> None:
        self._pending.set()
        while self._pending.is_set() and self._busy.acquire(blocking=False):
            try:
                self._pending.clear()
                close_old_connections()
                self.runner.run_until_empty()
            finally:
                self._busy.release()

    def poll(self, stopped: threading.Event) -> None:
        """Look for work without being told: a broker that is down or was wiped delays a start by one interval."""
        while not stopped.wait(settings.WORKER_POLL_SECONDS):
            try:
                leases_expire()  # any worker may be the reaper, so that a dead beat keeps nothing waiting
                self.wake()
            except Exception:
                logger.exception("The poll failed; it is tried again in %s s", settings.WORKER_POLL_SECONDS)

    def finish(self, timeout_seconds: float) -> bool:
        """Wait for the running micro-batch; False when it did not end in time."""
        return self._busy.acquire(timeout=timeout_seconds)


_loop: WorkLoop | None = None
_stopped = threading.Event()


def work_loop() -> WorkLoop:
    assert _loop is not None, "The worker's process has not started."
    return _loop


@worker_process_init.connect
def process_start(**_: Any) -> None:
    """In the child: open the card, register, begin to poll."""
    global _loop
    pool, _ = Pool.objects.get_or_create(name=settings.WORKER_POOL)
    sys.setswitchinterval(SWITCH_SECONDS)
    deliveries = DeliveryProcess()  # before the card is opened: a process that has one never forks (H12)
    renderer = import_string(settings.RENDERER)(**device_options())
    card = str(getattr(renderer, "card", ""))
    worker = worker_register(name=worker_name(), pool=pool, device=device_name(renderer), card=card)
    heartbeat = Heartbeat(worker_id=worker.pk, report=getattr(renderer, "report", None))
    heartbeat.start()
    runner = Runner(
        worker=worker,
        renderer=renderer,
        heartbeat=heartbeat,
        draining=draining,
        deliver_picture=deliveries.deliver,
    )
    _loop = WorkLoop(runner)
    threading.Thread(target=_loop.poll, args=(_stopped,), name="poll", daemon=True).start()
    logger.info("Worker %s serves pool %s on %s", worker.name, pool.name, worker.device)


@worker_shutting_down.connect
def drain(**_: Any) -> None:
    """In the parent, on SIGTERM: no new claims; what runs may finish."""
    draining.set()


@worker_process_shutdown.connect
def process_stop(**_: Any) -> None:
    """In the child, last: give back what did not finish within the grace time."""
    draining.set()
    _stopped.set()
    if _loop is None:
        return
    _loop.finish(settings.SHUTDOWN_GRACE_SECONDS)
    _loop.runner.release_all()
    worker_stopped(worker_id=_loop.runner.worker.pk)


def worker_name() -> str:
    return settings.WORKER_NAME or f"{platform.node()}-{settings.WORKER_POOL}-{os.getpid()}"


def device_options() -> dict[str, Any]:
    return {
        "device": settings.TORCH_DEVICE,
        "dtype": settings.TORCH_DTYPE,
        "compile_shapes": settings.TORCH_COMPILE_SHAPES,
        "max_host_bytes": settings.WORKER_RAM_BYTES,
    }


def device_name(renderer: Any) -> str:
    return str(getattr(renderer, "device_name", "cpu"))
