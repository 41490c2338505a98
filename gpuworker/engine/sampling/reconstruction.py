"""The noise that leads to a picture: Euler's steps walked backwards, from the picture's latents to the largest noise level.

Source: ``find_noise_for_image`` and ``find_noise_for_image_sigma_adjustment`` of ``scripts/img2imgalt.py``, A1111 1.10.1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch

from gpuworker.contract import Reconstruction
from gpuworker.engine.sampling.guidance import Denoiser, Level, Rows
from gpuworker.engine.sampling.schedules import NoiseLevels


@dataclass(frozen=True, slots=True)
class ReversedPrediction:
    """Level is a sigma; the prediction is the picture without noise.

    QUIRK(A1111 1.10): of a velocity checkpoint the latents themselves are taken whole, not the share that the formula asks for.
    """

    network: Denoiser
    levels: NoiseLevels
    predicts: Literal["eps", "v"] = "eps"

    def __call__(self, latents: torch.Tensor, level: Level, rows: Rows) -> torch.Tensor:
        spread = (level**2 + 1.0) ** 0.5
        predicted = self.network(latents * (1 / spread), self.levels.timestep(level), rows)
        return latents + predicted * (-level if self.predicts == "eps" else -level / spread)


def noise_behind(
    latents: torch.Tensor,
    asked: Reconstruction,
    levels: NoiseLevels,
    denoiser: Callable[[torch.Tensor, Level], torch.Tensor],
    begin_step: Callable[[int], bool],
) -> torch.Tensor | None:
    """Walk from pictures to noise of unit variance; None when stopped.

    Args:
        latents: Without noise, shape (images, channels, height, width).
        denoiser: Guided.
        begin_step: Told the steps that are done; False stops.
    """
    sigmas = levels.automatic(asked.steps).flip(0)
    walked = latents
    for done, (sigma_from, sigma_to) in enumerate(pairwise(sigmas)):
        if not begin_step(done):
            return None
        level = sigma_from if asked.sigma_adjustment else sigma_to
        if level == 0:
            continue  # Without noise the prediction is the picture itself, which leads nowhere.
        walked = walked + (walked - denoiser(walked, level)) / level * (sigma_to - sigma_from)
    if asked.sigma_adjustment:
        return walked / sigmas[-1]
    return walked / walked.std(dim=(1, 2, 3), keepdim=True)


def mixed(found: torch.Tensor, random: torch.Tensor, share: float) -> torch.Tensor:
    """Both noises at unit variance together; ``share`` is that of the random one."""
    return ((1 - share) * found + share * random) / (share**2 + (1 - share) ** 2) ** 0.5
