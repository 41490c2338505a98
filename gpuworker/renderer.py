"""The one interface between a claimed micro-batch and pixels. The product has one implementation: ``gpuworker.engine``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from gpuworker.contract import ImageOutcome, RenderSpec

StepCallback = Callable[[int, int], None]
"""Called once per denoiser step with (finished steps, all steps of the pass); must return at once."""


class Renderer(Protocol):
    """Turns one micro-batch into outcomes."""

    def render(
        self, spec: RenderSpec, *, on_step: StepCallback, should_stop: Callable[[], bool]
    ) -> Iterator[ImageOutcome]:
        """Yield exactly one outcome per recipe, each as soon as it is ready.

        Raises:
            OutOfMemoryError: The pass did not fit; nothing was yielded, the caller splits it.
            EngineError: The pass as a whole could not start (a broken checkpoint, say).
        """
        ...
