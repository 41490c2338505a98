"""One prompt from lease to what was written. Renders nothing; runs on the rendering thread, which owns the device."""

from __future__ import annotations

import logging
import time

from fleet.models import Worker
from gpuworker.contract.texts import TextSpec, Written
from gpuworker.engine.errors import EngineError
from gpuworker.heartbeat import Heartbeat, Lease
from gpuworker.model_files import MissingFileError, WrongHashError, files_kept
from gpuworker.renderer import Renderer
from gpuworker.retrying import retried
from renderjobs.claims import LeaseLost
from renderjobs.prompt_expansions import ClaimedExpansion, expansion_claim, expansion_fail, expansion_finish

logger = logging.getLogger(__name__)


class PromptWriter:
    def __init__(self, *, worker: Worker, renderer: Renderer, heartbeat: Heartbeat):
        self.worker = worker
        self.renderer = renderer
        self.heartbeat = heartbeat

    def write_next(self) -> bool:
        """Write for the first prompt that waits; False when none does."""
        claimed = expansion_claim(worker_id=self.worker.pk, pool_id=self.worker.pool_id)
        if claimed is None:
            return False
        lease = self.heartbeat.keep(claimed.claim_id)
        try:
            self._end(claimed, lease)
        except LeaseLost:
            logger.info("Prompt %s is not ours any more", claimed.expansion_id)
        except Exception:
            # It stays under the lease; when that passes, it is tried again.
            logger.exception("What became of prompt %s could not be kept", claimed.expansion_id)
        finally:
            self.heartbeat.drop(claimed.claim_id)
        return True

    def _end(self, claimed: ClaimedExpansion, lease: Lease) -> None:
        try:
            written = self._written(claimed, lease)
        except (EngineError, MissingFileError, WrongHashError, OSError) as error:
            code, message = getattr(error, "code", "weights_unavailable"), str(error)
            retryable = getattr(error, "retryable", isinstance(error, OSError))
            logger.warning("Prompt %s failed: %s", claimed.expansion_id, error)
        except Exception:
            logger.exception("Prompt %s failed", claimed.expansion_id)
            code, message, retryable = "internal", "The language model stopped unexpectedly.", True
        else:
            if written is None:
                raise LeaseLost
            retried(lambda: expansion_finish(claimed=claimed, prompts=written.prompts, gpu_us=written.gpu_us))
            return
        retried(lambda: expansion_fail(claimed=claimed, code=code, message=message, retryable=retryable))

    def _written(self, claimed: ClaimedExpansion, lease: Lease) -> Written | None:
        with files_kept([claimed.recipe], {claimed.team_id}) as (weights, _):
            lease.last_progress = time.monotonic()
            spec = TextSpec(claimed.recipe, weights)
            return self.renderer.write(spec, on_step=lease.on_step, should_stop=lease.should_stop)
