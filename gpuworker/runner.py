"""One micro-batch from lease to last delivery. Rendering stays on this thread; encode, upload and commit run beside it.

The next micro-batch is claimed while the pictures of the last one are still on their way (H1). A bounded number may be on
the way: when storage is slow, claiming stops.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from typing import Any, Protocol

from django.core.files.storage import default_storage
from django.db import InterfaceError, OperationalError, close_old_connections

from fleet.models import Worker
from fleet.services import worker_may_claim, worker_quarantine
from gpuworker.contract import Failed, ImageOutcome, Picture, Rendered, RenderSpec, Stopped
from gpuworker.encoding import png_of
from gpuworker.engine.errors import EngineError, OutOfMemoryError
from gpuworker.heartbeat import Heartbeat, Lease
from gpuworker.model_files import MissingFileError, WrongHashError, files_kept
from gpuworker.output import picture_store
from gpuworker.renderer import Renderer
from renderjobs.claims import (
    ClaimedBatch,
    ClaimedImage,
    LeaseLost,
    lease_release,
    microbatch_claim,
    rendering_begin,
)
from renderjobs.delivery import StoredPicture, image_deliver, image_fail, image_waste, load_record
from renderjobs.previews import preview_put

logger = logging.getLogger(__name__)
DELIVERY_THREADS = 4
MAX_ON_THE_WAY = 64
DELIVERY_TRIES = 5
CARD_FAILURES = ("CUDA error", "CUDA driver error", "cuDNN error", "CUBLAS_STATUS", "uncorrectable ECC")
"""What torch says when the card, not the picture, is at fault."""
FULL_MEMORY = "out of memory"
CARD_FAILURES_ACCEPTED = 2
"""In a row; then the card is quarantined until somebody releases it."""
LOAD_WORTH_US = 10_000
"""Less than this was no loading: the weights were found where they were left."""


class _CardFailed(Exception):
    """The card ended the pass; trying its images elsewhere helps, trying them here may not."""


class Flag(Protocol):
    def is_set(self) -> bool: ...


class Runner:
    def __init__(self, *, worker: Worker, renderer: Renderer, heartbeat: Heartbeat, draining: Flag):
        self.worker = worker
        self.renderer = renderer
        self.heartbeat = heartbeat
        self.draining = draining
        self._deliveries = ThreadPoolExecutor(DELIVERY_THREADS, thread_name_prefix="deliver")
        self._on_the_way = threading.BoundedSemaphore(MAX_ON_THE_WAY)
        self._limits: dict[str, int] = {}
        """Pass key → the largest micro-batch that fitted after one did not."""
        self._card_failures = 0
        """Micro-batches in a row that the card itself has ended."""
        self._load_us = 0
        """What the passes of the running micro-batch spent on loading weights."""

    def run_until_empty(self) -> None:
        """Render until nothing waits and every delivery has ended, the process drains or the worker was told to."""
        futures: list[Future[None]] = []
        while not self.draining.is_set() and worker_may_claim(self.worker.pk):
            batch = microbatch_claim(worker_id=self.worker.pk, pool_id=self.worker.pool_id)
            if batch is not None and batch.suspect:
                # If it kills this process, no other picture may be on its way.
                wait(futures)
                futures = self.run(batch)
                wait(futures)
            elif batch is not None:
                futures = [*(future for future in futures if not future.done()), *self.run(batch)]
            elif futures:
                # A delivery may put its image back for another try, so look again when all have ended.
                wait(futures)
                futures = []
            else:
                break
        wait(futures)

    def run(self, batch: ClaimedBatch) -> list[Future[None]]:
        """Render one micro-batch; returns its deliveries, which go on in other threads."""
        lease = self.heartbeat.keep(batch.claim_id, [image.image_id for image in batch.images])
        futures: list[Future[None]] = []
        try:
            rendering_begin(claim_id=batch.claim_id)
            self._load_us = 0
            for image, outcome in self._outcomes(batch, lease):
                self._on_the_way.acquire()
                future = self._deliveries.submit(self._deliver, batch, image, outcome, lease)
                future.add_done_callback(lambda _: self._on_the_way.release())
                futures.append(future)
            if self._load_us >= LOAD_WORTH_US:
                futures.append(self._deliveries.submit(self._record_load, batch, self._load_us))
        except LeaseLost:
            logger.info("Claim %s is not ours any more", batch.claim_id)
        except _CardFailed as error:
            wait(futures)  # what was rendered before is delivered; the rest goes back, and no image is blamed
            retried(lambda: lease_release(claim_id=batch.claim_id, cause="the card failed"))
            self._count_failure(str(error))
        else:
            self._card_failures = 0
        finally:
            self._drop_after(futures, batch.claim_id)
        return futures

    def _count_failure(self, reason: str) -> None:
        self._card_failures += 1
        if self._card_failures >= CARD_FAILURES_ACCEPTED:
            message = f"The card failed {self._card_failures} times in a row: {reason}"
            retried(lambda: worker_quarantine(worker=self.worker, reason=message))

    def release_all(self) -> None:
        """Give back every lease this process still keeps."""
        for lease in self.heartbeat.kept():
            lease.stop = True
            self.heartbeat.drop(lease.claim_id)
            lease_release(claim_id=lease.claim_id, cause="the worker stops")

    def _drop_after(self, futures: list[Future[None]], claim_id: int) -> None:
        """Keep the lease until the last picture of the micro-batch is delivered."""
        if not futures:
            self.heartbeat.drop(claim_id)
            return
        left = len(futures)
        lock = threading.Lock()

        def one_done(_: Future[None]) -> None:
            nonlocal left
            with lock:
                left -= 1
                if left == 0:
                    self.heartbeat.drop(claim_id)

        for future in futures:
            future.add_done_callback(one_done)

    def _outcomes(self, batch: ClaimedBatch, lease: Lease) -> Iterator[tuple[ClaimedImage, ImageOutcome]]:
        """One outcome per image, whatever happens: what fails as a whole fails for each image of the pass."""
        ended: set[int] = set()
        try:
            recipes, team_ids = zip(*((image.recipe, image.job.team_id) for image in batch.images), strict=True)
            with files_kept(recipes, set(team_ids)) as (weights, inputs):
                lease.last_progress = time.monotonic()
                if checkpoint := batch.images[0].checkpoint:
                    self.heartbeat.loaded_checkpoint_sha256 = checkpoint.sha256
                for position, outcome in self._passes(batch, lease, lambda part: RenderSpec(part, weights, inputs)):
                    ended.add(position)
                    yield batch.images[position], outcome
            return
        except (EngineError, MissingFileError, WrongHashError, OSError) as error:
            code = getattr(error, "code", "weights_unavailable")
            retryable = getattr(error, "retryable", isinstance(error, OSError))
            reason = str(error)
            logger.warning("Claim %s failed: %s", batch.claim_id, error)
        except Exception as error:
            logger.exception("Claim %s failed", batch.claim_id)
            if is_of_the_card(error):
                raise _CardFailed(str(error).splitlines()[0]) from error
            code, reason, retryable = "internal", "The renderer stopped unexpectedly.", True
        for position, image in enumerate(batch.images):
            if position not in ended:
                yield image, Failed(position, code, reason, retryable)

    def _passes(
        self, batch: ClaimedBatch, lease: Lease, spec_of: Callable[[tuple], RenderSpec]
    ) -> Iterator[tuple[int, ImageOutcome]]:
        """Render in passes that fit: out of memory halves the pass, and the smaller size is remembered."""
        key = batch.images[0].recipe.pass_key
        todo = list(range(len(batch.images)))
        while todo:
            part = todo[: self._limits.get(key, len(todo))]
            spec = spec_of(tuple(batch.images[position].recipe for position in part))
            exhausted = False
            try:
                rendered = self.renderer.render(
                    spec,
                    on_step=lease.on_step,
                    should_stop=lease.should_stop,
                    on_preview=partial(self._preview, [batch.images[position].image_id for position in part], lease),
                )
                for outcome in rendered:
                    yield part[outcome.position], outcome
            except OutOfMemoryError:
                if len(part) == 1:
                    raise
                exhausted = True
            self._load_us += self.renderer.load_us
            if exhausted:  # outside the handler, so that the exception's frames have let go of their tensors (R9)
                self._limits[key] = len(part) // 2
                logger.warning("A pass of %s pictures did not fit; trying %s", len(part), len(part) // 2)
            else:
                todo = todo[len(part) :]

    def _preview(self, image_ids: list[int], lease: Lease, make: Callable[[], Sequence[Picture]]) -> None:
        """Only what somebody looks at is made, and put where they look in another thread."""
        if lease.looked_at.isdisjoint(image_ids):
            return
        for image_id, picture in zip(image_ids, make(), strict=True):
            if image_id in lease.looked_at:
                self._deliveries.submit(_preview_store, image_id, picture)

    def _deliver(self, batch: ClaimedBatch, image: ClaimedImage, outcome: ImageOutcome, lease: Lease) -> None:
        try:
            match outcome:
                case Rendered():
                    self._deliver_picture(batch, image, outcome)
                case Failed():
                    retried(
                        lambda: image_fail(
                            batch=batch,
                            image=image,
                            code=outcome.code,
                            message=outcome.message,
                            retryable=outcome.retryable,
                            gpu_us=outcome.gpu_us,
                        )
                    )
                case Stopped():
                    raise LeaseLost
        except LeaseLost:
            # Cancelled, or taken away: an expected end. The card's time is kept as waste.
            retried(lambda: image_waste(batch=batch, image=image, gpu_us=outcome.gpu_us))
        except Exception:
            # The image stays under the lease; when that passes, it is tried again elsewhere.
            logger.exception("Image %s of claim %s could not be delivered", image.image_id, batch.claim_id)
        finally:
            lease.last_progress = time.monotonic()

    def _record_load(self, batch: ClaimedBatch, load_us: int) -> None:
        try:
            retried(lambda: load_record(batch=batch, load_us=load_us))
        except Exception:
            # The time then counts as idle: no picture depends on it.
            logger.exception("The loading time of claim %s could not be recorded", batch.claim_id)

    def _deliver_picture(self, batch: ClaimedBatch, image: ClaimedImage, rendered: Rendered) -> None:
        # Each storage backend raises errors of its own, so any of them is tried again.
        picture: StoredPicture = retried(lambda: picture_store(image, rendered), errors=(Exception,))
        try:
            retried(lambda: image_deliver(batch=batch, image=image, picture=picture, gpu_us=rendered.gpu_us))
        except LeaseLost:
            for key in (picture.key, *(attachment.key for attachment in picture.attachments)):
                default_storage.delete(key)
            raise


def is_of_the_card(error: Exception) -> bool:
    said = str(error)
    return any(text in said for text in CARD_FAILURES) and FULL_MEMORY not in said


def _preview_store(image_id: int, picture: Picture) -> None:
    preview_put(image_id, png_of(picture, {}))


def retried(
    work: Callable[[], Any], *, errors: tuple[type[Exception], ...] = (OperationalError, InterfaceError)
) -> Any:
    """Run ``work`` again, a few times with growing pauses, after an error that may pass."""
    for attempt in pauses():
        try:
            return work()
        except errors:
            if attempt is None:
                raise
            time.sleep(attempt)
            close_old_connections()
    raise AssertionError("unreachable")


def pauses() -> Iterable[float | None]:
    """0.2, 0.4, 0.8 … seconds, then None for the last try."""
    return [*(0.2 * 2**exponent for exponent in range(DELIVERY_TRIES - 1)), None]
