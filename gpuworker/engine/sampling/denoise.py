"""The loop: drives a solver, reports each step, looks at the stop flag. Nothing else happens in it (H2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from gpuworker.contract import Picture
from gpuworker.engine.sampling.guidance import GuidedDenoiser
from gpuworker.engine.sampling.noise import Noise, Way, prepared
from gpuworker.engine.sampling.samplers import Solver, SolverRun
from gpuworker.renderer import PreviewCallback

Preview = Callable[[torch.Tensor], Sequence[Picture]]


@dataclass(frozen=True, slots=True)
class Watch:
    """How the caller follows a run."""

    on_step: Callable[[int, int], None]
    """Called with (finished steps, all steps) after every step."""
    should_stop: Callable[[], bool]
    """Asked before every step."""
    on_preview: PreviewCallback | None = None


PREVIEW_STEPS = 10
"""A preview is made every so many steps, as A1111 does by default."""


def denoise(
    solver: Solver, run: SolverRun, guided: GuidedDenoiser, watch: Watch, preview: Preview
) -> torch.Tensor | None:
    """Denoise from ``run.latents`` to the end; None when the stop flag was seen first.

    Args:
        preview: Makes pictures of predicted latents.
        run: Its denoiser is ``guided``. Its noise may draw on demand; what the solver will ask for is drawn here before the first
            step, unless the solver decides as it goes.
    """
    latents, finished, total = run.latents, 0, 0
    if not solver.adaptive:
        total, ways = rehearse(solver, run)
        run = replace(run, noise=prepared(run.noise, ways))
    steps = solver.steps(run)
    while not watch.should_stop():
        guided.begin_step(finished)
        step = next(steps, None)
        if step is None:
            return latents
        latents, finished = step, finished + 1
        watch.on_step(finished, max(total, finished))
        if watch.on_preview and finished % PREVIEW_STEPS == 0:
            watch.on_preview(lambda: preview(guided.last_prediction))
    return None


def rehearse(solver: Solver, run: SolverRun) -> tuple[int, list[Way]]:
    """Walk a solver over nothing: how many steps it takes, and between which sigmas it will ask for noise."""
    ways: list[Way] = []
    nothing = torch.zeros(1)

    def noted(sigma_from: torch.Tensor, sigma_to: torch.Tensor) -> torch.Tensor:
        ways.append((sigma_from, sigma_to))
        return nothing

    noise: Noise = noted
    total = sum(1 for _ in solver.steps(replace(run, latents=nothing, denoiser=_Echo(), noise=noise)))
    return total, ways


class _Echo:
    """Stands in for the denoiser in a rehearsal."""

    last_unconditional = torch.zeros(1)

    def __call__(self, latents: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        return latents
