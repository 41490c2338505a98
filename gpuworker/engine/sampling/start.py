"""Where sampling begins: which noise levels a pass visits, and the latents at the first of them.

Source: ``setup_img2img_steps`` and ``sample_img2img`` of A1111 1.10 (``modules/sd_samplers_common.py``,
``sd_samplers_kdiffusion.py``, ``sd_samplers_timesteps.py``).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from gpuworker.contract import Settings
from gpuworker.contract.samplers import SamplerInfo, ScheduleInfo
from gpuworker.engine.sampling.schedules import NoiseLevels, sigmas_for, timesteps_for

MAX_STRENGTH = 0.999


@dataclass(frozen=True, slots=True)
class Range:
    """What a pass may visit before anything is cut off."""

    sampler: SamplerInfo
    schedule: ScheduleInfo
    steps: int
    levels: NoiseLevels
    family: str = "sd1"
    settings: Settings = field(default_factory=Settings)

    def visits(self, steps: int) -> torch.Tensor:
        """Sigmas, largest first, or timesteps, smallest first, of a run of so many steps."""
        if self.sampler.uses_sigmas:
            return sigmas_for(self.sampler, self.schedule, steps, self.levels, self.settings, self.family)
        return timesteps_for(steps)


@dataclass(frozen=True, slots=True)
class Start:
    visits: torch.Tensor
    """What the solver walks over."""
    latents: torch.Tensor
    """At the first of them."""
    all_visits: torch.Tensor
    """Uncut: the Brownian path of SDE samplers spans all of it."""
    steps: int
    """As A1111 counts them."""
    inside: bool = False
    """Begins from a picture, somewhere inside the range."""


def begin_from_noise(noise: torch.Tensor, whole: Range) -> Start:
    """Args: noise: unit variance, shape (images, channels, height, width)."""
    visits = whole.visits(whole.steps)
    if not whole.sampler.uses_sigmas:
        return Start(visits, noise, visits, whole.steps)
    first = visits[0]
    scale = (1.0 + first**2) ** 0.5 if whole.settings.sgm_noise_multiplier else first
    return Start(visits, noise * scale, visits, whole.steps)


def begin_from_latents(
    latents: torch.Tensor, noise: torch.Tensor, whole: Range, *, strength: float, all_steps: bool
) -> Start:
    """Add as much noise to the latents of pictures as the strength says.

    Args:
        all_steps: Run ``whole.steps`` steps, of a schedule made longer for it, instead of the share that the strength leaves.
    """
    steps, encoded = _steps(whole.steps, strength, all_steps=all_steps)
    visits = whole.visits(steps)
    extra = whole.settings.img2img_extra_noise
    if whole.sampler.uses_sigmas:
        rest = visits[steps - encoded - 1 :]
        return Start(rest, latents + noise * rest[0] + noise * extra, visits, encoded + 1, inside=True)
    alpha = whole.levels.alphas_cumprod[visits[encoded]]
    begun = latents * alpha**0.5 + noise * (1 - alpha) ** 0.5 + noise * extra * alpha**0.5
    return Start(visits[:encoded], begun, visits, encoded + 1, inside=True)


def _steps(steps: int, strength: float, *, all_steps: bool) -> tuple[int, int]:
    """Length of the schedule, and how many of its steps but one are left to run."""
    strength_or_less = min(strength, MAX_STRENGTH)
    if not all_steps:
        return steps, int(strength_or_less * steps)
    return (int(steps / strength_or_less) if strength > 0 else 0), steps - 1
