"""Stand-ins with the real interface, for tests where time or failure must be dictated."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence

from gpuworker.contract import (
    AnyRecipe,
    Attachment,
    Failed,
    ImageOutcome,
    Picture,
    Recipe,
    Rendered,
    RenderSpec,
    Stopped,
)
from gpuworker.contract.outcome import CONTROL_MAP
from gpuworker.contract.safety import PASSED, VERDICT_OF_MODE
from gpuworker.contract.texts import TextSpec, Written
from gpuworker.engine.errors import InvalidSpecError, OutOfMemoryError
from gpuworker.renderer import PassMeasure, PreviewCallback, StepCallback

POISON_SEED = 666
"""An image with this seed kills the process that renders it."""
LAUNCH_SECONDS = 0.001
IMAGE_BYTES = 1000


class PatternRenderer:
    """Pixels that depend on the seed alone, a chosen time per step, chosen faults.

    Environment: PATTERN_STEP_SECONDS, the sleep per step; PATTERN_IMAGE_STEP_SECONDS, what each image of the pass adds to it.
    What it says of its passes is dictated, too: a step costs as much as that, and a millisecond for the launch.
    """

    device_name = "pattern"
    load_us = 0
    measured: PassMeasure | None = None
    most_images = 256
    """A pass of more does not fit."""

    def __init__(
        self,
        *,
        device: str = "cpu",
        dtype: str = "float32",
        compile_shapes: Sequence[str] = (),
        max_host_bytes: int = 0,
    ):
        self.read: list[RenderSpec] = []
        """What was read ahead."""
        self.step_seconds = float(os.environ.get("PATTERN_STEP_SECONDS", "0"))
        self.image_step_seconds = float(os.environ.get("PATTERN_IMAGE_STEP_SECONDS", "0"))

    def render(
        self,
        spec: RenderSpec,
        *,
        on_step: StepCallback,
        should_stop: Callable[[], bool],
        on_preview: PreviewCallback | None = None,
    ) -> Iterator[ImageOutcome]:
        started, images, self.measured = time.monotonic(), len(spec.recipes), None
        if images > self.most_images:
            raise OutOfMemoryError(f"{images} images are too many.")
        steps = spec.recipes[0].steps
        for step in range(steps):
            if should_stop():
                yield from (Stopped(position) for position in range(len(spec.recipes)))
                return
            time.sleep(self.step_seconds + self.image_step_seconds * len(spec.recipes))
            if any(recipe.seed == POISON_SEED for recipe in spec.recipes):
                os.kill(os.getpid(), 9)
            on_step(step + 1, steps)
        step_seconds = LAUNCH_SECONDS + self.step_seconds + self.image_step_seconds * images
        self.measured = PassMeasure(image_call_ns=int(step_seconds / images * 1e9), peak_bytes=IMAGE_BYTES * images)
        share_us = int((time.monotonic() - started) * 1e6 / len(spec.recipes)) + 1
        for position, recipe in enumerate(spec.recipes):
            if "please fail" in recipe.prompt:
                yield Failed(position, "asked_to_fail", "The prompt asked for a failure.", retryable=False)
                continue
            pixel = bytes([recipe.seed % 251, recipe.seed % 13 * 19, position % 7])
            picture = Picture(recipe.width, recipe.height, pixel * (recipe.width * recipe.height))
            units = recipe.control if isinstance(recipe, Recipe) else ()
            maps = tuple(Attachment(CONTROL_MAP, picture) for unit in units if unit.save_detected_map)
            yield Rendered(position, picture, gpu_us=share_us, attachments=maps, verdict=verdict_of(recipe))

    def read_ahead(self, spec: RenderSpec) -> None:
        self.read.append(spec)

    def write(self, spec: TextSpec, *, on_step: StepCallback, should_stop: Callable[[], bool]) -> Written | None:
        recipe = spec.recipe
        if should_stop():
            return None
        if "please fail" in recipe.prompt:
            raise InvalidSpecError("The prompt asked for a failure.", field="prompt", value=recipe.prompt)
        if recipe.seed == POISON_SEED:
            os.kill(os.getpid(), 9)
        time.sleep(self.step_seconds)
        on_step(1, 1)
        return Written(tuple(f"{recipe.prompt}, {recipe.seed + index}" for index in range(recipe.count)), gpu_us=1000)


def verdict_of(recipe: AnyRecipe) -> str:
    """Of a safety filter that goes by the prompt."""
    check = getattr(recipe, "safety", None)
    if check is None:
        return ""
    return VERDICT_OF_MODE[check.mode] if "please catch" in recipe.prompt else PASSED
