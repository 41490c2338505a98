"""Renews leases and publishes progress from one thread, bound to real progress: a stalled pass loses its lease.

The renewal is also how a worker learns that its lease passed or its job was cancelled; it then raises the stop flag, which
the denoising loop reads once per step.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection
from typing import Any

from django.conf import settings
from django.db import Error as DatabaseError
from django.db import close_old_connections

from fleet.services import worker_seen
from gpuworker.machine import memory
from renderjobs.claims import lease_renew
from renderjobs.previews import previews_asked

logger = logging.getLogger(__name__)
WORKER_SEEN_SECONDS = 5
WEIGHTS_REPORTED = 50
"""Files in one report; more than these are seldom in memory at once."""
AHEAD_SECONDS = 0.5
"""So long before a pass is expected to end, the next micro-batch is claimed (H1): early enough for the card not to wait for it,
late enough for what is submitted meanwhile to have its turn."""


class Lease:
    """One claim's shared flags between the rendering thread and the heartbeat."""

    def __init__(self, claim_id: int, image_ids: Collection[int] = ()):
        self.claim_id = claim_id
        self.image_ids = image_ids
        self.looked_at: frozenset[int] = frozenset()
        """Images somebody wants to see a preview of."""
        self.step = self.steps = 0
        self.stop = False
        self.last_progress = self._stepped_at = time.monotonic()
        self.waits_for: Lease | None = None
        """The claim that renders meanwhile: its progress is the progress of one that waits for it."""
        self.more_passes = False
        """The pass that runs is not the last one of this claim."""
        self.nearly_done = threading.Event()

    def begin(self) -> None:
        self.waits_for = None
        self.last_progress = self._stepped_at = time.monotonic()

    def on_step(self, step: int, steps: int) -> None:
        """Called from the denoising loop: a few assignments and a comparison, nothing else."""
        now = time.monotonic()
        if (steps - step) * (now - self._stepped_at) < AHEAD_SECONDS and not self.more_passes:
            self.nearly_done.set()
        self.step, self.steps = step, steps
        self.last_progress = self._stepped_at = now

    def should_stop(self) -> bool:
        return self.stop

    @property
    def stalled(self) -> bool:
        if waits_for := self.waits_for:
            return waits_for.stalled
        return time.monotonic() - self.last_progress > settings.STALL_SECONDS


class Heartbeat(threading.Thread):
    def __init__(self, *, worker_id: int, report: Callable[[], dict[str, Any]] | None = None):
        """Args: report: What the renderer says of its memory; asked from this thread."""
        super().__init__(name="heartbeat", daemon=True)
        self._report = report
        self.worker_id = worker_id
        self.loaded_checkpoint_sha256 = ""
        self._leases: dict[int, Lease] = {}
        self._lock = threading.Lock()

    def keep(self, claim_id: int, image_ids: Collection[int] = ()) -> Lease:
        """Begin to renew; end with ``drop``."""
        lease = Lease(claim_id, image_ids)
        with self._lock:
            self._leases[claim_id] = lease
        return lease

    def drop(self, claim_id: int) -> None:
        with self._lock:
            self._leases.pop(claim_id, None)

    def kept(self) -> list[Lease]:
        with self._lock:
            return list(self._leases.values())

    def run(self) -> None:
        beats_per_seen = max(1, WORKER_SEEN_SECONDS // settings.LEASE_RENEWAL_SECONDS)
        beat = 0
        while True:
            time.sleep(settings.LEASE_RENEWAL_SECONDS)
            beat += 1
            try:
                close_old_connections()
                for lease in self.kept():
                    self.renew(lease)
                if beat % beats_per_seen == 0:
                    self.be_seen()
            except DatabaseError:
                # The lease runs on for a while; if the database stays away it passes, and the images go to others.
                logger.exception("A heartbeat could not be written")

    def be_seen(self) -> None:
        worker_seen(
            worker_id=self.worker_id,
            loaded_checkpoint_sha256=self.loaded_checkpoint_sha256,
            report=self.report(),
        )

    def report(self) -> dict[str, Any]:
        """Memory of the machine and the renderer; a renderer that cannot tell is no reason to seem dead."""
        found: dict[str, Any] = memory()
        if self._report:
            try:
                found |= self._report()
            except Exception:
                logger.exception("The renderer cannot tell its memory")
        found["weights"] = found.get("weights", [])[:WEIGHTS_REPORTED]
        return found

    def renew(self, lease: Lease) -> None:
        if lease.stalled or not lease_renew(claim_id=lease.claim_id, step=lease.step, steps=lease.steps):
            lease.stop = True
        lease.looked_at = frozenset(previews_asked(lease.image_ids))
