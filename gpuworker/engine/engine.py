"""The renderer: time, memory and failures around what ``drawing`` and ``images.extras`` make.

A pass either starts or raises; after that every image gets its own outcome. Nothing here knows a formula.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from PIL import Image

from gpuworker.contract import (
    DetectRecipe,
    ExtrasRecipe,
    Failed,
    ImageOutcome,
    Picture,
    Recipe,
    Rendered,
    RenderSpec,
    Stopped,
)
from gpuworker.contract.safety import PASSED, SENTENCES, VERDICT_OF_MODE
from gpuworker.contract.texts import TextSpec, Written
from gpuworker.engine.compiling import CanonicalShape, CompiledShapes
from gpuworker.engine.drawing import Drawing, Drawn
from gpuworker.engine.errors import EngineError, InvalidSpecError, OutOfMemoryError
from gpuworker.engine.execution_plan import plan_passes
from gpuworker.engine.flow import FlowDrawing, FlowPrompts
from gpuworker.engine.images.controlnet.units import control_map
from gpuworker.engine.images.extras import render_extras
from gpuworker.engine.images.latents import PictureEncoder
from gpuworker.engine.images.pictures import open_picture
from gpuworker.engine.images.safety import censored, censored_along
from gpuworker.engine.images.upscale import StopSeen, upscaler_of
from gpuworker.engine.images.vae import FlatPictureError, decode
from gpuworker.engine.memory import PassMemory
from gpuworker.engine.models.flow import flow_family
from gpuworker.engine.models.shelf import ModelShelf
from gpuworker.engine.models.tiling import tiled
from gpuworker.engine.prompts.encoder import PromptEncoder
from gpuworker.engine.prompts.writer import write_prompts
from gpuworker.engine.sampling.denoise import Watch
from gpuworker.renderer import PassMeasure, PreviewCallback, StepCallback

Result = TypeVar("Result")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
DEFAULT_HOST_BYTES = 8 * 1024**3
RESIDENT_SHARE = 0.6
"""Of a card's memory, for weights; the rest is for passes."""


class DiffusersRenderer:
    """Renders micro-batches with the networks of diffusers; implements ``gpuworker.renderer.Renderer``.

    Not safe for two threads: one renderer owns the device.
    """

    def __init__(
        self,
        device: str = "cpu",
        dtype: str = "float32",
        max_host_bytes: int = DEFAULT_HOST_BYTES,
        compile_shapes: Sequence[str] = (),
    ) -> None:
        """
        Args:
            device: ``cpu``, ``cuda`` or ``auto``, which is ``cuda`` where there is one.
            dtype: ``float32``, ``float16``, ``bfloat16`` or ``auto``: half precision on a card, float32 on the CPU. Latents are
                float32 between denoiser calls in any case.
            max_host_bytes: Weights kept in the machine's memory: without a card those that are loaded, else those that left it.
            compile_shapes: What networks are compiled for, such as ``512x512x8``: width, height, images of a micro-batch.

        Raises:
            InvalidSpecError: No such type, or a card is asked for and there is none.
        """
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise InvalidSpecError(
                f"Device {device!r} is asked for, but no card is present.", field="device", value=device
            )
        if dtype == "auto":
            dtype = "float16" if device.startswith("cuda") else "float32"
        if dtype not in DTYPES:
            raise InvalidSpecError(
                f"dtype {dtype!r} is not known; it is one of {', '.join(DTYPES)}.", field="dtype", value=dtype
            )
        self.device = torch.device(device)
        self.device_name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"
        """What people call it: the card's product name."""
        self.card = str(torch.cuda.get_device_properties(self.device).uuid) if self.device.type == "cuda" else ""
        """The card's own number, the same after every restart."""
        threads = f", {torch.get_num_threads()} threads" if self.device.type == "cpu" else ""
        self.build = f"{dtype}{threads}, torch {torch.__version__}"
        """What beside the card decides how fast a pass is."""
        self.load_us = 0
        self.measured: PassMeasure | None = None
        self.memory = PassMemory(self.device)
        resident = self.memory.total_bytes() * RESIDENT_SHARE if self.device.type == "cuda" else max_host_bytes
        self.shelf = ModelShelf(self.device, DTYPES[dtype], int(resident), max_host_bytes=max_host_bytes)
        self.prompts = PromptEncoder()
        self.flow_prompts = FlowPrompts()
        self.pictures = PictureEncoder()
        self.compiled = CompiledShapes([CanonicalShape.from_text(text) for text in compile_shapes])

    def report(self) -> dict[str, Any]:
        """What is loaded, within which limit, and the card's memory in bytes; another thread may ask."""
        found: dict[str, Any] = {"weights": self.shelf.report(), "weights_limit": self.shelf.max_bytes}
        if compiled := self.compiled.report():
            found["compiled"] = compiled
        if self.device.type == "cuda":
            free, found["vram_total"] = torch.cuda.mem_get_info(self.device)
            found["vram_used"] = found["vram_total"] - free
        return found

    def room_bytes(self) -> int | None:
        """What a pass could take of the memory now; another thread may ask."""
        return self.memory.room_bytes()

    def read_ahead(self, spec: RenderSpec) -> None:
        """Read the weights of a pass to come, while another thread renders."""
        recipe = spec.recipes[0]
        if isinstance(recipe, Recipe):
            self.shelf.read_ahead(spec, recipe.checkpoint)

    def render(
        self,
        spec: RenderSpec,
        *,
        on_step: StepCallback,
        should_stop: Callable[[], bool],
        on_preview: PreviewCallback | None = None,
    ) -> Iterator[ImageOutcome]:
        """Yield one outcome per recipe, in their order, each as soon as it is ready.

        Time on the device is shared: encoding and denoising evenly, decoding by image. Loading the checkpoint counts for nobody.

        Raises:
            InvalidSpecError, CheckpointError: The pass cannot start.
            OutOfMemoryError: It did not fit; nothing was yielded.
        """
        self.load_us, self.measured = 0, None
        self.shelf.begin()
        match spec.recipes[0]:
            case Recipe():
                yield from self._drawn(spec, Watch(on_step, should_stop, on_preview))
            case ExtrasRecipe():
                yield from self._each(spec, on_step, should_stop, self._enlarged)
            case DetectRecipe():
                yield from self._each(spec, on_step, should_stop, self._mapped)

    def write(self, spec: TextSpec, *, on_step: StepCallback, should_stop: Callable[[], bool]) -> Written | None:
        """The prompts a language model makes of a short one; None when stopped.

        Raises:
            CheckpointError: The file is no language model this engine knows.
            InvalidSpecError: The prompt is too long for the model.
            OutOfMemoryError: The model or its answers did not fit.
        """
        self.load_us, recipe = 0, spec.recipe
        self.shelf.begin()
        clock = _Clock(self.device)
        generator = self._guarded(partial(self.shelf.text_generator, spec, recipe.model), 1, "language models")
        self.load_us = clock.lap_us()
        writing = partial(write_prompts, generator, recipe, on_step=on_step, should_stop=should_stop)
        prompts = self._guarded(writing, recipe.count, "prompts")
        return None if prompts is None else Written(prompts, clock.lap_us())

    # --- pictures that are drawn -------------------------------------------------------------------------------------

    def _drawn(self, spec: RenderSpec, watch: Watch) -> Iterator[ImageOutcome]:
        recipes = [recipe for recipe in spec.recipes if isinstance(recipe, Recipe)]
        drawing = self._drawing(spec, recipes[0], watch)
        clock, drawn = _Clock(self.device), None
        try:
            if check := recipes[0].safety:
                self._guarded(partial(self.shelf.safety_checker, spec, check.weights), 1, "safety checkers")
            self._guarded(drawing.load, len(recipes))
            self.load_us, graphs = clock.lap_us(), self.compiled.graphs
            self.memory.begin()
            drawn = self._guarded(drawing.draw, len(recipes))
        except StopSeen:
            pass  # an upscaler saw the flag
        drawn_us = clock.lap_us()
        if drawn is not None and drawing.image_calls and not drawing.failures and graphs == self.compiled.graphs:
            self.measured = PassMeasure(1000 * drawn_us // drawing.image_calls, self.memory.taken_bytes())
        shares = iter(_even_shares(drawn_us, len(recipes) - len(drawing.failures)))
        for position in range(len(recipes)):
            if error := drawing.failures.get(position):
                yield Failed(position, error.code, str(error), error.retryable)
                continue
            share_us = next(shares)
            if drawn is None or watch.should_stop():
                yield Stopped(position, gpu_us=share_us)
                continue
            yield self._picture(drawing, drawn[position], position, share_us)

    def _drawing(self, spec: RenderSpec, recipe: Recipe, watch: Watch) -> Drawing | FlowDrawing:
        family = flow_family(spec.file_of(recipe.checkpoint).path)
        if family:
            return FlowDrawing(spec, family, self.shelf, self.flow_prompts, watch)
        return Drawing(spec, plan_passes(recipe), self.shelf, self.prompts, self.pictures, watch, self.compiled)

    def _picture(self, drawing: Drawing | FlowDrawing, drawn: Drawn, position: int, share_us: int) -> ImageOutcome:
        """Decode and finish one image; what goes wrong here is this image's alone."""
        clock = _Clock(self.device)
        try:
            with torch.inference_mode(), tiled((drawn.vae,), on=drawing.recipes[position].tiling):
                pixels = decode(
                    drawn.vae,
                    drawn.latents,
                    latent_scale=drawn.latent_scale,
                    latent_shift=drawn.latent_shift,
                    finish=drawing.finish_of(position),
                )
            picture, attachments = drawing.finished(position, pixels.numpy())
            verdict = self._verdict(drawing, position, picture)
            if verdict in SENTENCES:
                picture, attachments = censored(picture, verdict), censored_along(attachments, verdict)
        except StopSeen:
            return Stopped(position, gpu_us=share_us + clock.lap_us())
        except FlatPictureError as error:
            return Failed(position, "flat_picture", str(error), retryable=False, gpu_us=share_us + clock.lap_us())
        except Exception as error:
            if not _is_out_of_memory(error):
                raise
            message = "Decoding the picture did not fit into memory."
            return Failed(position, OutOfMemoryError.code, message, retryable=True, gpu_us=share_us + clock.lap_us())
        return Rendered(
            position,
            picture,
            gpu_us=share_us + clock.lap_us(),
            attachments=tuple(attachments),
            warnings=(*drawing.warnings_of(position), *filter(None, [SENTENCES.get(verdict)])),
            verdict=verdict,
        )

    def _verdict(self, drawing: Drawing | FlowDrawing, position: int, picture: Picture) -> str:
        """Of the safety filter; empty where the recipe asks for none."""
        check = drawing.recipes[position].safety
        if check is None:
            return ""
        checker = self.shelf.safety_checker(drawing.spec, check.weights)
        seen = Image.frombytes(picture.mode, (picture.width, picture.height), picture.pixels)
        return VERDICT_OF_MODE[check.mode] if checker.catches(seen) else PASSED

    # --- pictures made from pictures ---------------------------------------------------------------------------------

    def _each(
        self,
        spec: RenderSpec,
        on_step: StepCallback,
        should_stop: Callable[[], bool],
        make: Callable[[RenderSpec, int, Callable[[], bool]], Picture],
    ) -> Iterator[ImageOutcome]:
        """One picture after the other; each is a step."""
        total = len(spec.recipes)
        for position in range(total):
            clock = _Clock(self.device)
            if should_stop():
                yield Stopped(position)
                continue
            try:
                picture = self._guarded(partial(make, spec, position, should_stop), 1)
            except StopSeen:
                yield Stopped(position, gpu_us=clock.lap_us())
                continue
            except EngineError as error:
                if isinstance(error, OutOfMemoryError) and total > 1 and position == 0:
                    raise
                yield Failed(position, error.code, str(error), error.retryable, gpu_us=clock.lap_us())
                continue
            on_step(position + 1, total)
            yield Rendered(position, picture, gpu_us=clock.lap_us())

    def _enlarged(self, spec: RenderSpec, position: int, should_stop: Callable[[], bool]) -> Picture:
        recipe = spec.recipes[position]
        assert isinstance(recipe, ExtrasRecipe)
        named = ((recipe.upscaler_1, recipe.upscaler_1_weights), (recipe.upscaler_2, recipe.upscaler_2_weights))
        upscalers = {
            name: upscaler_of(
                name, self.shelf.upscaler(spec, weights) if weights else None, recipe.settings, should_stop
            )
            for name, weights in named
        }
        with torch.inference_mode():
            return render_extras(recipe, open_picture(spec.path_of(recipe.picture)), upscalers)

    def _mapped(self, spec: RenderSpec, position: int, should_stop: Callable[[], bool]) -> Picture:
        recipe = spec.recipes[position]
        assert isinstance(recipe, DetectRecipe)
        return control_map(recipe, spec.path_of)

    # --- memory ------------------------------------------------------------------------------------------------------

    def _guarded(self, work: Callable[[], Result], count: int, what: str = "images") -> Result:
        """Translate a full memory into our error, after the frames that hold the tensors are gone (R9).

        The weights that this pass does not need make room, so that it, or half of it, may fit when it comes again.
        """
        try:
            return work()
        except Exception as error:
            if not _is_out_of_memory(error):
                raise
        self.shelf.drop_unused()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        raise OutOfMemoryError(f"A pass of {count} {what} did not fit into the memory of {self.device}.")


class _Clock:
    """Wall time between points at which the device has finished its work."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._last_ns = self._now_ns()

    def lap_us(self) -> int:
        now_ns = self._now_ns()
        lap_ns, self._last_ns = now_ns - self._last_ns, now_ns
        return lap_ns // 1000

    def _now_ns(self) -> int:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter_ns()


def _even_shares(total_us: int, count: int) -> list[int]:
    """Whole microseconds that sum to the total."""
    share, rest = divmod(total_us, max(count, 1))
    return [share + (index < rest) for index in range(count)]


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
