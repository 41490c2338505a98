"""The renderer, as a script to be read from top to bottom: plan, load, encode, denoise, decode.

What each stage means lives in the module it calls; nothing here knows a formula.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch

from gpuworker.contract import CheckpointFile, Failed, ImageOutcome, Recipe, Rendered, RenderSpec, Stopped
from gpuworker.engine.errors import InvalidSpecError, OutOfMemoryError
from gpuworker.engine.execution_plan import ExecutionPlan, plan_pass
from gpuworker.engine.images.vae import FlatPictureError, decode
from gpuworker.engine.models.cache import ByteCache
from gpuworker.engine.models.loader import Checkpoint, load_checkpoint
from gpuworker.engine.prompts.encoder import Conditioning, PromptEncoder
from gpuworker.engine.sampling.denoise import denoise
from gpuworker.engine.sampling.guidance import (
    GuidedDenoiser,
    LcmPrediction,
    Network,
    NoisePrediction,
    SigmaPrediction,
)
from gpuworker.engine.sampling.noise import PassNoise
from gpuworker.engine.sampling.samplers import SOLVERS, Solver, SolverRun
from gpuworker.engine.sampling.schedules import LcmNoiseLevels, NoiseLevels, sigmas_for, timesteps_for
from gpuworker.renderer import StepCallback

Result = TypeVar("Result")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
DEFAULT_RESIDENT_BYTES = 8 * 1024**3


class DiffusersRenderer:
    """Renders micro-batches with the networks of diffusers; implements ``gpuworker.renderer.Renderer``.

    Not safe for two threads: one renderer owns the device.
    """

    def __init__(
        self, device: str = "cpu", dtype: str = "float32", max_resident_bytes: int = DEFAULT_RESIDENT_BYTES
    ) -> None:
        """
        Args:
            device: ``cpu``, ``cuda`` or ``auto``, which is ``cuda`` where there is one.
            dtype: ``float32``, ``float16``, ``bfloat16`` or ``auto``: half precision on a card, float32 on the CPU. Latents are
                float32 between denoiser calls in any case.
            max_resident_bytes: Weights kept between passes.
        """
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if dtype == "auto":
            dtype = "float16" if device.startswith("cuda") else "float32"
        if dtype not in DTYPES:
            raise InvalidSpecError(
                f"dtype {dtype!r} is not known; it is one of {', '.join(DTYPES)}.", field="dtype", value=dtype
            )
        self.device = torch.device(device)
        self.dtype = DTYPES[dtype]
        self.checkpoints: ByteCache[Checkpoint] = ByteCache(max_resident_bytes, size_of=lambda kept: kept.size_bytes)
        self.encoder = PromptEncoder()

    def render(
        self, spec: RenderSpec, *, on_step: StepCallback, should_stop: Callable[[], bool]
    ) -> Iterator[ImageOutcome]:
        """Yield one outcome per recipe, in their order, each as soon as it is decoded.

        Time on the device is shared: encoding and denoising evenly, decoding by image. Loading weights counts for nobody.

        Raises:
            InvalidSpecError, CheckpointError: The pass cannot start.
            OutOfMemoryError: It did not fit; nothing was yielded.
        """
        plan = plan_pass(spec)
        checkpoint = self._guarded(lambda: self._checkpoint(spec.checkpoint), len(spec.recipes))
        clock = _Clock(self.device)
        with _tiling(checkpoint, spec.recipes[0].tiling):
            latents = self._guarded(
                lambda: self._latents(plan, checkpoint, spec, on_step, should_stop), len(spec.recipes)
            )
        shares = _even_shares(clock.lap_us(), len(spec.recipes))
        for position, share_us in enumerate(shares):
            if latents is None or should_stop():
                yield Stopped(position, gpu_us=share_us)
                continue
            with _tiling(checkpoint, spec.recipes[0].tiling):
                outcome = self._picture(checkpoint, latents[position], position, share_us)
            yield outcome

    # --- the stages --------------------------------------------------------------------------------------------------

    def _checkpoint(self, file: CheckpointFile) -> Checkpoint:
        def load() -> Checkpoint:
            self.checkpoints.make_room(file.path.stat().st_size)
            return load_checkpoint(file.path, config_path=file.config_path, device=self.device, dtype=self.dtype)

        return self.checkpoints.get_or_make((file.sha256, file.config_path), load)

    @torch.inference_mode()
    def _latents(
        self,
        plan: ExecutionPlan,
        checkpoint: Checkpoint,
        spec: RenderSpec,
        on_step: StepCallback,
        should_stop: Callable[[], bool],
    ) -> torch.Tensor | None:
        """Latents of all images, shape (images, channels, height, width); None when stopped."""
        conditionings = [self._conditioning(plan, checkpoint, spec, recipe) for recipe in spec.recipes]
        solver = SOLVERS[plan.sampler.name]
        groups = [slice(i, i + 1) for i in range(len(spec.recipes))] if solver.adaptive else [slice(None)]
        finished: list[torch.Tensor] = []
        for group in groups:
            run = self._solver_run(plan, checkpoint, solver, spec.recipes[group], conditionings[group])
            latents = denoise(solver, run, on_step=on_step, should_stop=should_stop)
            if latents is None:
                return None
            finished.append(latents)
        return torch.cat(finished)

    def _conditioning(
        self, plan: ExecutionPlan, checkpoint: Checkpoint, spec: RenderSpec, recipe: Recipe
    ) -> Conditioning:
        return self.encoder.encode(
            recipe.prompt,
            recipe.negative_prompt,
            checkpoint=checkpoint,
            checkpoint_key=f"{spec.checkpoint.sha256} {spec.checkpoint.config_path}",
            steps=plan.editing_steps,
            clip_skip=recipe.clip_skip,
            emphasis=recipe.emphasis,
        )

    def _solver_run(
        self,
        plan: ExecutionPlan,
        checkpoint: Checkpoint,
        solver: Solver,
        recipes: Sequence[Recipe],
        conditionings: Sequence[Conditioning],
    ) -> SolverRun:
        recipe, levels = recipes[0], NoiseLevels(checkpoint.alphas_cumprod)
        noise_prediction = NoisePrediction(checkpoint.unet)
        prediction: Network = noise_prediction
        if solver.prediction == "sigma":
            prediction = SigmaPrediction(noise_prediction, levels)
        elif solver.prediction == "lcm":
            levels = LcmNoiseLevels(checkpoint.alphas_cumprod)
            prediction = LcmPrediction(noise_prediction, levels)
        timesteps = solver.prediction == "timestep"
        visits = timesteps_for(plan.steps) if timesteps else sigmas_for(plan.sampler, plan.schedule, plan.steps, levels)

        channels = checkpoint.unet.config.in_channels
        noise = PassNoise(recipes, (channels, plan.latent_height, plan.latent_width))
        start = noise.first if timesteps else noise.first * visits[0]
        return SolverRun(
            latents=start.to(self.device),
            visits=visits,
            denoiser=GuidedDenoiser(
                prediction,
                conditionings,
                [recipe.cfg_scale for recipe in recipes],
                cfg_plus_plus=solver.cfg_plus_plus,
            ),
            noise=noise.brownian(visits, self.device) if plan.sampler.brownian else noise.ancestral(self.device),
            levels=levels,
            steps=plan.steps,
            eta=solver.default_eta if recipe.eta is None else recipe.eta,
            s_churn=recipe.s_churn,
            s_tmin=recipe.s_tmin,
            s_tmax=recipe.s_tmax or math.inf,
            s_noise=recipe.s_noise,
        )

    def _picture(self, checkpoint: Checkpoint, latents: torch.Tensor, position: int, share_us: int) -> ImageOutcome:
        """Decode one image; what goes wrong here is this image's alone."""
        clock = _Clock(self.device)
        try:
            with torch.inference_mode():
                pixels = decode(checkpoint.vae, latents, latent_scale=checkpoint.latent_scale)
        except FlatPictureError as error:
            return Failed(position, "flat_picture", str(error), retryable=False, gpu_us=share_us + clock.lap_us())
        except Exception as error:
            if not _is_out_of_memory(error):
                raise
            message = "Decoding the picture did not fit into memory."
            return Failed(position, OutOfMemoryError.code, message, retryable=True, gpu_us=share_us + clock.lap_us())
        height, width, _ = pixels.shape
        return Rendered(position, width, height, pixels.numpy().tobytes(), gpu_us=share_us + clock.lap_us())

    def _guarded(self, work: Callable[[], Result], images: int) -> Result:
        """Translate a full memory into our error, after the frames that hold the tensors are gone."""
        try:
            return work()
        except Exception as error:
            if not _is_out_of_memory(error):
                raise
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        raise OutOfMemoryError(f"A pass of {images} images did not fit into the memory of {self.device}.")


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
    share, rest = divmod(total_us, count)
    return [share + (index < rest) for index in range(count)]


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


@contextmanager
def _tiling(checkpoint: Checkpoint, on: bool) -> Iterator[None]:
    """Convolutions wrap around the edges, so that the picture continues itself."""
    if not on:
        yield
        return
    networks = (checkpoint.unet, checkpoint.vae)
    convolutions = [part for network in networks for part in network.modules() if isinstance(part, torch.nn.Conv2d)]
    for convolution in convolutions:
        convolution.padding_mode = "circular"
    try:
        yield
    finally:
        for convolution in convolutions:
            convolution.padding_mode = "zeros"
