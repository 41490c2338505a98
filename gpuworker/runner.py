"""One micro-batch from lease to last delivery. Rendering stays on this thread; everything else runs beside it (H1).

While a pass runs, another thread reads the weights of the job that is next in line. Shortly before it ends, one claims the next
micro-batch and brings its files; encode, upload and commit of the last one go on in others. A bounded number of pictures may be on
the way: when storage is slow, rendering waits, and so claiming stops.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from django.db import close_old_connections

from fleet.models import Worker
from fleet.services import worker_may_claim, worker_quarantine
from gpuworker.contract import Failed, ImageOutcome, Picture, Rendered, RenderSpec, Stopped
from gpuworker.delivering import DELIVERY_THREADS, picture_deliver
from gpuworker.encoding import png_of
from gpuworker.engine.errors import EngineError, OutOfMemoryError
from gpuworker.heartbeat import Heartbeat, Lease
from gpuworker.microbatches import Microbatches
from gpuworker.model_files import MissingFileError, WrongHashError, files_kept
from gpuworker.prompt_writing import PromptWriter
from gpuworker.renderer import Renderer
from gpuworker.retrying import retried
from renderjobs.claims import (
    ClaimedBatch,
    ClaimedImage,
    LeaseLost,
    lease_release,
    microbatch_claim,
    next_in_line,
    rendering_begin,
)
from renderjobs.delivery import image_fail, image_waste, load_record
from renderjobs.previews import preview_put
from renderjobs.prompt_expansions import expansion_release

logger = logging.getLogger(__name__)
MAX_ON_THE_WAY = 64
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


@dataclass(slots=True)
class Ready:
    """A claimed micro-batch whose files are here, or why they are not."""

    batch: ClaimedBatch
    lease: Lease
    files: ExitStack = field(default_factory=ExitStack)
    """Keeps them on the disk until it is closed."""
    spec: RenderSpec | None = None
    """Of the whole micro-batch."""
    error: Exception | None = None

    def bring(self) -> None:
        recipes, team_ids = zip(*((image.recipe, image.job.team_id) for image in self.batch.images), strict=True)
        try:
            self.spec = RenderSpec(recipes, *self.files.enter_context(files_kept(recipes, set(team_ids))))
        except Exception as error:
            self.error = error


class Runner:
    def __init__(
        self,
        *,
        worker: Worker,
        renderer: Renderer,
        heartbeat: Heartbeat,
        draining: Flag,
        deliver_picture: Callable[[ClaimedBatch, ClaimedImage, Rendered], None] = picture_deliver,
    ):
        """Args: deliver_picture: Called in one of the threads beside the rendering one."""
        self.worker = worker
        self.renderer = renderer
        self.heartbeat = heartbeat
        self.draining = draining
        self._deliver_picture = deliver_picture
        self.prompts = PromptWriter(worker=worker, renderer=renderer, heartbeat=heartbeat)
        self._deliveries = ThreadPoolExecutor(DELIVERY_THREADS, thread_name_prefix="deliver")
        self._claims = ThreadPoolExecutor(1, thread_name_prefix="claim")
        self._readers = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")
        self._reading: Future[None] | None = None
        self._on_the_way = threading.BoundedSemaphore(MAX_ON_THE_WAY)
        self.microbatches = Microbatches(renderer, device=worker.device)
        self._card_failures = 0
        """Micro-batches in a row that the card itself has ended."""
        self._quarantined = False
        self._load_us = 0
        """What the passes of the running micro-batch spent on loading weights."""

    def run_until_empty(self) -> None:
        """Render until nothing waits and every delivery has ended, the process drains or the worker was told to."""
        futures: list[Future[None]] = []
        self._quarantined = False
        wrote, ready = self._write_prompt(), self._claim()
        while ready or futures or wrote:
            if ready is None:
                # A delivery may put its image back for another try, so look again when all have ended.
                wait(futures)
                futures, wrote, ready = [], self._write_prompt(), self._claim()
            elif self.draining.is_set() or self._quarantined:
                self._give_back(ready)
                ready = None
            elif ready.batch.suspect:
                # If it kills this process, no other picture may be on its way, and no other claim be held.
                wait(futures)
                futures = []
                wait(self.run(ready))
                ready = self._claim()
            else:
                self._begin_reading(ready.batch)
                ahead = self._claims.submit(self._claim_ahead, ready.lease)
                futures = [*(future for future in futures if not future.done()), *self.run(ready)]
                wrote = self._write_prompt()
                ready = ahead.result() or self._claim()

    def _write_prompt(self) -> bool:
        """One has its turn between two micro-batches: somebody waits at the screen, and it takes seconds."""
        return self._may_claim() and self.prompts.write_next()

    def _may_claim(self) -> bool:
        return not self.draining.is_set() and worker_may_claim(self.worker.pk)

    def _claim(self) -> Ready | None:
        if not self._may_claim():
            return None
        batch = microbatch_claim(
            worker_id=self.worker.pk, pool_id=self.worker.pool_id, size_of=self.microbatches.size_of
        )
        if batch is None:
            return None
        ready = Ready(batch, self.heartbeat.keep(batch.claim_id, [image.image_id for image in batch.images]))
        ready.bring()
        return ready

    def _claim_ahead(self, running: Lease) -> Ready | None:
        """In its own thread: the next micro-batch, once the one that renders is nearly done."""
        running.nearly_done.wait()
        try:
            ready = self._claim()
        except Exception:
            # The rendering thread asks again, and meets whatever it is.
            logger.exception("No micro-batch could be claimed ahead")
            close_old_connections()
            return None
        if ready:
            ready.lease.waits_for = running
        return ready

    def _begin_reading(self, running: ClaimedBatch) -> None:
        """Unless the weights of an earlier one are still on their way."""
        if self._reading is None or self._reading.done():
            self._reading = self._readers.submit(self._read_ahead, {image.job.pk for image in running.images})

    def _read_ahead(self, running: set[uuid.UUID]) -> None:
        """In its own thread: the files of the job that is next in line come to the disk, its checkpoint into memory (H8)."""
        try:
            found = next_in_line(pool_id=self.worker.pool_id, after=running)
            if found is None:
                return
            recipe, team_id = found
            with files_kept([recipe], {team_id}) as files:
                self.renderer.read_ahead(RenderSpec((recipe,), *files))
        except Exception as error:
            # Whoever claims it meets whatever it is.
            logger.info("What is next in line could not be read ahead: %s", error)
            close_old_connections()

    def _give_back(self, ready: Ready) -> None:
        ready.files.close()
        self.heartbeat.drop(ready.batch.claim_id)
        lease_release(claim_id=ready.batch.claim_id, cause="the worker stops")

    def run(self, ready: Ready) -> list[Future[None]]:
        """Render one micro-batch; returns its deliveries, which go on in other threads."""
        batch, lease = ready.batch, ready.lease
        lease.begin()
        # Nothing here waits for it: a delivery does, and a lease that is lost stops the pass at its next step.
        begun = self._deliveries.submit(self._begin, batch, lease)
        futures: list[Future[None]] = [begun]
        try:
            self._load_us = 0
            for image, outcome in self._outcomes(ready):
                self._on_the_way.acquire()
                future = self._deliveries.submit(self._deliver, batch, image, outcome, lease, begun)
                future.add_done_callback(lambda _: self._on_the_way.release())
                futures.append(future)
            if self._load_us >= LOAD_WORTH_US:
                futures.append(self._deliveries.submit(self._record_load, batch, self._load_us))
            if self.microbatches.has_news:
                futures.append(self._deliveries.submit(self.microbatches.save))
        except _CardFailed as error:
            wait(futures)  # what was rendered before is delivered; the rest goes back, and no image is blamed
            retried(lambda: lease_release(claim_id=batch.claim_id, cause="the card failed"))
            self._count_failure(str(error))
        else:
            self._card_failures = 0
        finally:
            lease.nearly_done.set()
            self._drop_after(futures, batch.claim_id)
        return futures

    def _count_failure(self, reason: str) -> None:
        self._card_failures += 1
        if self._card_failures >= CARD_FAILURES_ACCEPTED:
            message = f"The card failed {self._card_failures} times in a row: {reason}"
            retried(lambda: worker_quarantine(worker=self.worker, reason=message))
            self._quarantined = True

    def _begin(self, batch: ClaimedBatch, lease: Lease) -> None:
        try:
            retried(lambda: rendering_begin(claim_id=batch.claim_id))
        except LeaseLost:
            logger.info("Claim %s is not ours any more", batch.claim_id)
            lease.stop = True
            raise

    def release_all(self) -> None:
        """Give back every lease this process still keeps."""
        for lease in self.heartbeat.kept():
            lease.stop = True
            lease.nearly_done.set()  # the thread that claims ahead waits for nothing any more
            self.heartbeat.drop(lease.claim_id)
            expansion_release(claim_id=lease.claim_id)
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

    def _outcomes(self, ready: Ready) -> Iterator[tuple[ClaimedImage, ImageOutcome]]:
        """One outcome per image, whatever happens: what fails as a whole fails for each image of the pass."""
        batch, ended = ready.batch, set[int]()
        try:
            with ready.files:
                if ready.spec is None:
                    raise ready.error or AssertionError("unreachable")
                if checkpoint := batch.images[0].checkpoint:
                    self.heartbeat.loaded_checkpoint_sha256 = checkpoint.sha256
                for position, outcome in self._passes(batch, ready.lease, ready.spec):
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

    def _passes(self, batch: ClaimedBatch, lease: Lease, whole: RenderSpec) -> Iterator[tuple[int, ImageOutcome]]:
        """Render in passes that fit: out of memory halves the pass, and what did not fit is remembered."""
        recipe = whole.recipes[0]
        # Nobody sees on the way what the safety filter has not seen.
        looked_at = getattr(batch.images[0].recipe, "safety", None) is not None
        todo = list(range(len(batch.images)))
        while todo:
            part = todo[: self.microbatches.begin(recipe, len(todo))]
            lease.more_passes = len(part) < len(todo)
            spec = whole if len(part) == len(batch.images) else whole.part(part)
            exhausted = False
            try:
                rendered = self.renderer.render(
                    spec,
                    on_step=lease.on_step,
                    should_stop=lease.should_stop,
                    on_preview=None if looked_at else partial(self._preview, image_ids_of(batch, part), lease),
                )
                for outcome in rendered:
                    yield part[outcome.position], outcome
            except OutOfMemoryError:
                if len(part) == 1:
                    raise
                exhausted = True
            self._load_us += self.renderer.load_us
            if exhausted:  # outside the handler, so that the exception's frames have let go of their tensors (R9)
                self.microbatches.too_large(recipe, len(part))
                logger.warning("A pass of %s pictures did not fit; trying %s", len(part), len(part) // 2)
            else:
                if self.renderer.measured:
                    self.microbatches.measured(recipe, len(part), self.renderer.measured)
                todo = todo[len(part) :]

    def _preview(self, image_ids: list[int], lease: Lease, make: Callable[[], Sequence[Picture]]) -> None:
        """Only what somebody looks at is made, and put where they look in another thread."""
        if lease.looked_at.isdisjoint(image_ids):
            return
        for image_id, picture in zip(image_ids, make(), strict=True):
            if image_id in lease.looked_at:
                self._deliveries.submit(_preview_store, image_id, picture)

    def _deliver(
        self, batch: ClaimedBatch, image: ClaimedImage, outcome: ImageOutcome, lease: Lease, begun: Future[None]
    ) -> None:
        try:
            begun.result()
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


def image_ids_of(batch: ClaimedBatch, part: Sequence[int]) -> list[int]:
    return [batch.images[position].image_id for position in part]


def is_of_the_card(error: Exception) -> bool:
    said = str(error)
    return any(text in said for text in CARD_FAILURES) and FULL_MEMORY not in said


def _preview_store(image_id: int, picture: Picture) -> None:
    preview_put(image_id, png_of(picture, {}))
