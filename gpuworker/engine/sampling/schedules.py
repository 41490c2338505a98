"""Which noise levels a pass visits: the sigmas of A1111's twelve schedules, the timesteps of its timestep samplers.

Everything here is float32 on the CPU and made before the loop; solvers read single values of it without touching the device.

Source: ``modules/sd_schedulers.py`` and ``sd_samplers_*.py`` of A1111 1.10, measured against recorded sigmas.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from scipy import stats

from gpuworker.contract.samplers import SamplerInfo, ScheduleInfo

BETA_ALPHA = BETA_BETA = 0.6
LCM_TIMESTEPS = 50
ALIGN_YOUR_STEPS_SD1 = (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029)
"""Source: Sabour et al. 2024, "Align Your Steps", the table for Stable Diffusion 1.5 in 10 steps."""


class NoiseLevels:
    """The sigmas a model was trained at, and the way between sigma and (fractional) timestep: linear in log sigma."""

    def __init__(self, alphas_cumprod: torch.Tensor) -> None:
        self.alphas_cumprod = alphas_cumprod
        self.sigmas = ((1 - alphas_cumprod) / alphas_cumprod) ** 0.5
        self.log_sigmas = self.sigmas.log()

    @property
    def sigma_min(self) -> float:
        return self.sigmas[0].item()

    @property
    def sigma_max(self) -> float:
        return self.sigmas[-1].item()

    def timestep(self, sigma: torch.Tensor) -> torch.Tensor:
        """The fractional timestep of a sigma, clamped to the trained range."""
        log_sigma = sigma.log()
        low = int((log_sigma >= self.log_sigmas).sum().clamp(1, len(self.sigmas) - 1)) - 1
        low_log, high_log = self.log_sigmas[low], self.log_sigmas[low + 1]
        share = ((low_log - log_sigma) / (low_log - high_log)).clamp(0, 1)
        return (1 - share) * low + share * (low + 1)

    def sigma(self, timestep: torch.Tensor) -> torch.Tensor:
        low, high, share = timestep.floor().long(), timestep.ceil().long(), timestep.frac()
        return ((1 - share) * self.log_sigmas[low] + share * self.log_sigmas[high]).exp()

    def automatic(self, steps: int) -> torch.Tensor:
        """The plain discretisation: timesteps evenly from the last to the first."""
        return _then_zero(self.sigma(torch.linspace(len(self.sigmas) - 1, 0, steps)))


class LcmNoiseLevels(NoiseLevels):
    """The 50 of 1000 timesteps a latent consistency model was distilled at; sigmas map to the nearest of them."""

    def __init__(self, alphas_cumprod: torch.Tensor) -> None:
        self.stride = len(alphas_cumprod) // LCM_TIMESTEPS
        super().__init__(alphas_cumprod[self.stride - 1 :: self.stride])

    def timestep(self, sigma: torch.Tensor) -> torch.Tensor:
        nearest = (sigma.log() - self.log_sigmas).abs().argmin()
        return nearest * self.stride + (self.stride - 1)

    def sigma(self, timestep: torch.Tensor) -> torch.Tensor:
        position = ((timestep - (self.stride - 1)) / self.stride).float()
        return super().sigma(position.clamp(0, len(self.sigmas) - 1))

    def automatic(self, steps: int) -> torch.Tensor:
        return _then_zero(self.sigma(_timesteps_between(self, steps)))


def sigmas_for(sampler: SamplerInfo, schedule: ScheduleInfo, steps: int, levels: NoiseLevels) -> torch.Tensor:
    """The sigmas of a pass, largest first; all schedules but KL Optimal end at zero."""
    count = steps + 1 if sampler.discard_next_to_last else steps
    sigmas = SCHEDULE_SIGMAS[schedule.name](count, levels)
    if sampler.discard_next_to_last:
        sigmas = torch.cat([sigmas[:-2], sigmas[-1:]])
    return sigmas


def timesteps_for(steps: int, *, training_steps: int = 1000) -> torch.Tensor:
    """The timesteps of DDIM, PLMS and UniPC, smallest first; often one more than asked for.

    QUIRK(A1111 1.10): the stride is rounded down, so 12 steps are 13 timesteps.
    """
    stride = max(1, training_steps // steps)
    return torch.arange(0, training_steps, stride).add(1).clamp(max=training_steps - 1)


def karras(steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> torch.Tensor:
    """Source: Karras et al. 2022, equation 5."""
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return _then_zero((high + torch.linspace(0, 1, steps) * (low - high)) ** rho)


def _exponential(steps: int, levels: NoiseLevels) -> torch.Tensor:
    return _then_zero(torch.linspace(math.log(levels.sigma_max), math.log(levels.sigma_min), steps).exp())


def _polyexponential(steps: int, levels: NoiseLevels, rho: float = 1.0) -> torch.Tensor:
    ramp = torch.linspace(1, 0, steps) ** rho
    span = math.log(levels.sigma_max) - math.log(levels.sigma_min)
    return _then_zero((ramp * span + math.log(levels.sigma_min)).exp())


def _sgm_uniform(steps: int, levels: NoiseLevels) -> torch.Tensor:
    return _at_timesteps(levels, _timesteps_between(levels, steps + 1)[:-1])


def _normal(steps: int, levels: NoiseLevels) -> torch.Tensor:
    return _at_timesteps(levels, _timesteps_between(levels, steps))


def _kl_optimal(steps: int, levels: NoiseLevels) -> torch.Tensor:
    """QUIRK(A1111 1.10): ends at the smallest sigma; no zero follows."""
    low, high = torch.tensor(levels.sigma_min).arctan(), torch.tensor(levels.sigma_max).arctan()
    share = torch.arange(steps + 1) / steps
    return torch.tan(share * low + (1.0 - share) * high)


def _align_your_steps(steps: int, levels: NoiseLevels) -> torch.Tensor:
    table = np.array(ALIGN_YOUR_STEPS_SD1)
    if steps != len(table):
        places = np.linspace(0, 1, len(table))
        table = np.exp(np.interp(np.linspace(0, 1, steps), places, np.log(table[::-1])))[::-1].copy()
    return _then_zero(torch.tensor(table, dtype=torch.float32))


def _simple(steps: int, levels: NoiseLevels) -> torch.Tensor:
    stride = len(levels.sigmas) / steps
    return _then_zero(levels.sigmas[[-(1 + int(step * stride)) for step in range(steps)]])


def _ddim(steps: int, levels: NoiseLevels) -> torch.Tensor:
    return _then_zero(levels.sigmas[1 :: max(len(levels.sigmas) // steps, 1)].flip(0))


def _beta(steps: int, levels: NoiseLevels) -> torch.Tensor:
    """Source: Lee et al. 2024, "Beta Sampling is All You Need"."""
    quantiles = stats.beta.ppf(1 - np.linspace(0, 1, steps), BETA_ALPHA, BETA_BETA)
    sigmas = levels.sigma_min + quantiles * (levels.sigma_max - levels.sigma_min)
    return _then_zero(torch.tensor(sigmas, dtype=torch.float32))


def _timesteps_between(levels: NoiseLevels, count: int) -> torch.Tensor:
    first, last = levels.timestep(levels.sigmas[-1]), levels.timestep(levels.sigmas[0])
    return torch.linspace(float(first), float(last), count)


def _at_timesteps(levels: NoiseLevels, timesteps: torch.Tensor) -> torch.Tensor:
    return _then_zero(torch.stack([levels.sigma(timestep) for timestep in timesteps]))


def _then_zero(sigmas: torch.Tensor) -> torch.Tensor:
    return torch.cat([sigmas, sigmas.new_zeros(1)])


SCHEDULE_SIGMAS: dict[str, Callable[[int, NoiseLevels], torch.Tensor]] = {
    "automatic": lambda steps, levels: levels.automatic(steps),
    "uniform": lambda steps, levels: levels.automatic(steps),
    "karras": lambda steps, levels: karras(steps, levels.sigma_min, levels.sigma_max),
    "exponential": _exponential,
    "polyexponential": _polyexponential,
    "sgm_uniform": _sgm_uniform,
    "kl_optimal": _kl_optimal,
    "align_your_steps": _align_your_steps,
    "simple": _simple,
    "normal": _normal,
    "ddim": _ddim,
    "beta": _beta,
}
