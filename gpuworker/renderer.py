"""The one interface between a claimed micro-batch and pixels. The product has one implementation: ``gpuworker.engine``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from gpuworker.contract import ImageOutcome, Picture, RenderSpec
from gpuworker.contract.texts import TextSpec, Written

StepCallback = Callable[[int, int], None]
"""Called once per denoiser step with (finished steps, all steps of the pass); must return at once."""
PreviewCallback = Callable[[Callable[[], Sequence[Picture]]], None]
"""Called every few steps with what makes a small picture of what each image of the pass is becoming, which takes time."""


@dataclass(frozen=True, slots=True)
class PassMeasure:
    """What a pass showed of passes like it."""

    image_call_ns: int
    """Time on the device per image and call of the denoiser, without loading and decoding, which no company changes."""
    peak_bytes: int = 0
    """What it took beside the weights; 0 where that cannot be told."""


class Renderer(Protocol):
    """Turns one micro-batch into outcomes, and a short prompt into long ones."""

    load_us: int
    """What the last pass spent on loading weights; of no image, so it is in none of their times."""
    measured: PassMeasure | None
    """Of the last pass; None where it is no example for others: stopped, failed in part, or a network was compiled in it."""

    def render(
        self,
        spec: RenderSpec,
        *,
        on_step: StepCallback,
        should_stop: Callable[[], bool],
        on_preview: PreviewCallback | None = None,
    ) -> Iterator[ImageOutcome]:
        """Yield exactly one outcome per recipe, each as soon as it is ready.

        Raises:
            OutOfMemoryError: The pass did not fit; nothing was yielded, the caller splits it.
            EngineError: The pass as a whole could not start (a broken checkpoint, say).
        """
        ...

    def read_ahead(self, spec: RenderSpec) -> None:
        """Read the weights of a pass to come into memory; called in another thread while one runs, and again for the same."""
        ...

    def write(self, spec: TextSpec, *, on_step: StepCallback, should_stop: Callable[[], bool]) -> Written | None:
        """The prompts in the order of their seeds; None when stopped.

        Raises:
            EngineError: They could not be written.
        """
        ...
