"""Which noise levels a pass visits: the sigmas of A1111's twelve schedules, the timesteps of its timestep samplers.

Everything here is float32 on the CPU and made before the loop; solvers read single values of it without touching the device.

Source: ``modules/sd_schedulers.py`` and ``sd_samplers_*.py`` of A1111 1.10, measured against recorded sigmas.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats

from gpuworker.contract import Settings
from gpuworker.contract.samplers import SamplerInfo, ScheduleInfo

DEFAULTS = Settings()

KARRAS_RHO = 7.0
OLD_KARRAS_RANGE = (0.1, 10.0)
LAST_ABAR_OF_ZERO_SNR = 4.8973451890853435e-08
"""What A1111 puts where the cumulative alpha would be zero."""
LCM_TIMESTEPS = 50
ALIGN_YOUR_STEPS_SD1 = (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029)
ALIGN_YOUR_STEPS_SDXL = (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029)
"""Source: Sabour et al. 2024, "Align Your Steps", the tables for Stable Diffusion 1.5 and SDXL in 10 steps."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Where a schedule begins and ends, and what bends it."""

    sigma_min: float
    sigma_max: float
    rho: float | None = None
    """None is the schedule's own."""
    beta: tuple[float, float] = (0.6, 0.6)
    align_your_steps: tuple[float, ...] = ALIGN_YOUR_STEPS_SD1


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
        first, last = self.timestep(self.sigmas[-1]), self.timestep(self.sigmas[0])
        return _then_zero(self.sigma(torch.linspace(float(first), float(last), steps)))


def sigmas_for(
    sampler: SamplerInfo,
    schedule: ScheduleInfo,
    steps: int,
    levels: NoiseLevels,
    settings: Settings = DEFAULTS,
    family: str = "sd1",
) -> torch.Tensor:
    """The sigmas of a pass, largest first; all schedules but KL Optimal end at zero."""
    discards = sampler.discard_next_to_last or settings.always_discard_next_to_last_sigma
    count = steps + 1 if discards else steps
    sigmas = SCHEDULE_SIGMAS[schedule.name](count, levels, limits_of(schedule, levels, settings, family))
    if discards:
        sigmas = torch.cat([sigmas[:-2], sigmas[-1:]])
    return sigmas


def limits_of(schedule: ScheduleInfo, levels: NoiseLevels, settings: Settings, family: str) -> Limits:
    """The model's own limits, or what the settings say instead."""
    low, high = levels.sigma_min, levels.sigma_max
    if settings.use_old_karras_scheduler_sigmas:
        low, high = OLD_KARRAS_RANGE
    return Limits(
        sigma_min=settings.sigma_min or low,
        sigma_max=settings.sigma_max or high,
        rho=(settings.rho or None) if schedule.default_rho != -1 else None,
        beta=(settings.beta_dist_alpha, settings.beta_dist_beta),
        align_your_steps=ALIGN_YOUR_STEPS_SDXL if family.startswith("sdxl") else ALIGN_YOUR_STEPS_SD1,
    )


def alphas_for(alphas_cumprod: torch.Tensor, settings: Settings) -> torch.Tensor:
    """The cumulative alphas a pass samples by.

    Source: Lin et al. 2023, "Common diffusion noise schedules and sample steps are flawed", algorithm 1.
    """
    if settings.use_downcasted_alpha_bar:
        alphas_cumprod = alphas_cumprod.half().float()
    if settings.sd_noise_schedule != "Zero Terminal SNR":
        return alphas_cumprod
    roots = alphas_cumprod.sqrt()
    first, last = roots[0], roots[-1]
    rescaled = ((roots - last) * (first / (first - last))) ** 2
    rescaled[-1] = LAST_ABAR_OF_ZERO_SNR
    return rescaled


def timesteps_for(steps: int, *, training_steps: int = 1000) -> torch.Tensor:
    """The timesteps of DDIM, PLMS and UniPC, smallest first; often one more than asked for.

    QUIRK(A1111 1.10): the stride is rounded down, so 12 steps are 13 timesteps.
    """
    stride = max(1, training_steps // steps)
    return torch.arange(0, training_steps, stride).add(1).clamp(max=training_steps - 1)


def karras(steps: int, sigma_min: float, sigma_max: float, rho: float = KARRAS_RHO) -> torch.Tensor:
    """Source: Karras et al. 2022, equation 5."""
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return _then_zero((high + torch.linspace(0, 1, steps) * (low - high)) ** rho)


def _automatic(steps: int, levels: NoiseLevels, limits: Limits) -> torch.Tensor:
    return levels.automatic(steps)


def _karras(steps: int, levels: NoiseLevels, limits: Limits) -> torch.Tensor:
    return karras(steps, limits.sigma_min, limits.sigma_max, limits.rho or KARRAS_RHO)


def _exponential(steps: int, levels: NoiseLevels, limits: Limits) -> torch.Tensor:
    return _then_zero(torch.linspace(math.log(limits.sigma_max), math.log(limits.sigma_min), steps).exp())


def _polyexponential(steps: int, levels: NoiseLevels, limits: Limits) -> torch.Tensor:
    ramp = torch.linspace(1, 0, steps) ** (limits.rho or 1.0)
    span = math.log(limits.sigma_max) - math.log(limits.sigma_min)
    return _then_zero((ramp * span + math.log(limits.sigma_min)).exp())


def _sgm_uniform(steps: int, levels: NoiseLevels, limits: Limits) -> torch.Tensor:
    return _at_timesteps(levels, _timesteps_between(levels, limits, steps + 1)[:-1])


def _normal(steps: int, levels: NoiseLevels, limits: Limits) -> torch.Tensor:
    return _at_timesteps(levels, _timesteps_between(levels, limits, steps))


def _kl_optimal(steps: int, levels: NoiseLevels, limits: Limits) -> torch.Tensor:
    """QUIRK(A1111 1.10): ends at the smallest sigma; no zero follows."""
    low, high = torch.tensor(limits.sigma_min).arctan(), torch.tensor(limits.sigma_max).arctan()
    share = torch.arange(steps + 1) / steps
    return torch.tan(share * low + (1.0 - share) * high)


def _align_your_steps(steps: int, levels: NoiseLevels, limits: Limits) -> torch.Tensor:
    table = np.array(limits.align_your_steps)
    if steps != len(table):
        places = np.linspace(0, 1, len(table))
        table = np.exp(np.interp(np.linspace(0, 1, steps), places, np.log(table[::-1])))[::-1].copy()
    return _then_zero(torch.tensor(table, dtype=torch.float32))


def _simple(steps: int, levels: NoiseLevels, limits: Limits) -> torch.Tensor:
    stride = len(levels.sigmas) / steps
    return _then_zero(levels.sigmas[[-(1 + int(step * stride)) for step in range(steps)]])


def _ddim(steps: int, levels: NoiseLevels, limits: Limits) -> torch.Tensor:
    return _then_zero(levels.sigmas[1 :: max(len(levels.sigmas) // steps, 1)].flip(0))


def _beta(steps: int, levels: NoiseLevels, limits: Limits) -> torch.Tensor:
    """Source: Lee et al. 2024, "Beta Sampling is All You Need"."""
    quantiles = stats.beta.ppf(1 - np.linspace(0, 1, steps), *limits.beta)
    sigmas = limits.sigma_min + quantiles * (limits.sigma_max - limits.sigma_min)
    return _then_zero(torch.tensor(sigmas, dtype=torch.float32))


def _timesteps_between(levels: NoiseLevels, limits: Limits, count: int) -> torch.Tensor:
    first, last = levels.timestep(torch.tensor(limits.sigma_max)), levels.timestep(torch.tensor(limits.sigma_min))
    return torch.linspace(float(first), float(last), count)


def _at_timesteps(levels: NoiseLevels, timesteps: torch.Tensor) -> torch.Tensor:
    return _then_zero(torch.stack([levels.sigma(timestep) for timestep in timesteps]))


def _then_zero(sigmas: torch.Tensor) -> torch.Tensor:
    return torch.cat([sigmas, sigmas.new_zeros(1)])


SCHEDULE_SIGMAS: dict[str, Callable[[int, NoiseLevels, Limits], torch.Tensor]] = {
    "automatic": _automatic,
    "uniform": _automatic,
    "karras": _karras,
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
