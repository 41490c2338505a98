"""The solvers behind A1111's sampler names, each from its published mathematics, and the table that finds them.

A solver is a generator: it yields the latents after every step and is otherwise silent. Noise levels are single float32 values on
the CPU, so their arithmetic costs the device nothing; latents stay where they are.

In the variance-exploding form a denoiser gives the expected picture x0 for latents x at noise level sigma; ``log_snr`` below is
-ln(sigma), the time of the DPM family. The timestep samplers work on noise predictions in the variance-preserving form.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, Protocol

import numpy as np
import torch
from scipy import integrate

from gpuworker.contract import Settings
from gpuworker.engine.errors import InvalidSpecError
from gpuworker.engine.sampling.noise import Noise
from gpuworker.engine.sampling.schedules import NoiseLevels, karras

Scalar = torch.Tensor
"""A float32 value on the CPU, shape ()."""
Steps = Iterator[torch.Tensor]


class Denoiser(Protocol):
    last_unconditional: torch.Tensor

    def __call__(self, latents: torch.Tensor, level: Scalar) -> torch.Tensor: ...


@dataclass(frozen=True, slots=True)
class SolverRun:
    """Everything a solver needs for one pass."""

    latents: torch.Tensor
    """float32, shape (images, channels, height, width), at the noise level of the first entry of ``visits``."""
    visits: torch.Tensor
    """Sigmas, largest first, or timesteps, smallest first."""
    denoiser: Denoiser
    noise: Noise
    levels: NoiseLevels
    steps: int
    """As the recipe asks; the number of visits may differ."""
    eta: float = 1.0
    s_churn: float = 0.0
    s_tmin: float = 0.0
    s_tmax: float = math.inf
    s_noise: float = 1.0
    inside: bool = False
    """Begins from a picture, somewhere inside the range."""
    settings: Settings = field(default_factory=Settings)

    def sigma_pairs(self) -> Iterator[tuple[Scalar, Scalar]]:
        return pairwise(self.visits)


@dataclass(frozen=True, slots=True)
class Solver:
    """One row of the table."""

    steps: Callable[[SolverRun], Steps]
    prediction: Literal["sigma", "timestep", "lcm"] = "sigma"
    default_eta: float = 1.0
    adaptive: bool = False
    """Chooses its steps as it goes, from an error over all latents: images must run alone, and noise is drawn on demand."""
    cfg_plus_plus: bool = False


# --- shared arithmetic -----------------------------------------------------------------------------------------------


def _slope(latents: torch.Tensor, sigma: Scalar, denoised: torch.Tensor) -> torch.Tensor:
    """dx/dsigma of the probability flow. Source: Karras et al. 2022, equation 1."""
    return (latents - denoised) / sigma


def _log_snr(sigma: Scalar) -> Scalar:
    return sigma.log().neg()


def _sigma_at(log_snr: Scalar) -> Scalar:
    return log_snr.neg().exp()


def _ancestral_split(sigma: Scalar, sigma_next: Scalar, eta: float) -> tuple[Scalar, Scalar]:
    """Where to step down to, and how much fresh noise leads back up to ``sigma_next``. Source: DDPM's posterior variance."""
    if not eta:
        return sigma_next, sigma_next.new_zeros(())
    variance = sigma_next**2 * (sigma**2 - sigma_next**2) / sigma**2
    up = torch.minimum(sigma_next, eta * variance**0.5)
    return (sigma_next**2 - up**2) ** 0.5, up


def _exponential_step(
    latents: torch.Tensor, denoised: torch.Tensor, sigma: Scalar, sigma_next: Scalar, step: Scalar
) -> torch.Tensor:
    """First-order exponential integrator over ``step`` of log SNR. Source: Lu et al. 2022 (DPM-Solver++), equation 9."""
    return (sigma_next / sigma) * latents - (-step).expm1() * denoised


def _log_midpoint(sigma: Scalar, sigma_next: Scalar) -> Scalar:
    return sigma.log().lerp(sigma_next.log(), 0.5).exp()


def _churned(run: SolverRun, latents: torch.Tensor, sigma: Scalar) -> tuple[torch.Tensor, Scalar]:
    """Raise the noise level a little before a step. Source: Karras et al. 2022, algorithm 2.

    QUIRK(A1111 1.10): a step outside the churned range takes its draw too, and throws it away.
    """
    if run.s_churn <= 0:
        return latents, sigma
    fresh = run.noise(sigma, sigma) * run.s_noise
    if not run.s_tmin <= sigma <= run.s_tmax:
        return latents, sigma
    raised = sigma * (min(run.s_churn / (len(run.visits) - 1), 2**0.5 - 1) + 1)
    return latents + fresh * (raised**2 - sigma**2) ** 0.5, raised


# --- Euler, Heun, DPM2, LMS ------------------------------------------------------------------------------------------


def _euler(run: SolverRun) -> Steps:
    latents = run.latents
    for sigma, sigma_next in run.sigma_pairs():
        latents, raised = _churned(run, latents, sigma)
        slope = _slope(latents, raised, run.denoiser(latents, raised))
        latents = latents + slope * (sigma_next - raised)
        yield latents


def _euler_ancestral(run: SolverRun) -> Steps:
    """QUIRK(A1111 1.10): ``s_noise`` does not reach this sampler."""
    latents = run.latents
    for sigma, sigma_next in run.sigma_pairs():
        denoised = run.denoiser(latents, sigma)
        down, up = _ancestral_split(sigma, sigma_next, run.eta)
        latents = latents + _slope(latents, sigma, denoised) * (down - sigma)
        if sigma_next > 0:
            latents = latents + run.noise(sigma, sigma_next) * up
        yield latents


def _heun_step(run: SolverRun, latents: torch.Tensor, sigma: Scalar, sigma_next: Scalar) -> torch.Tensor:
    slope = _slope(latents, sigma, run.denoiser(latents, sigma))
    width = sigma_next - sigma
    if sigma_next == 0:
        return latents + slope * width
    trial = latents + slope * width
    slope_there = _slope(trial, sigma_next, run.denoiser(trial, sigma_next))
    return latents + (slope + slope_there) / 2 * width


def _heun(run: SolverRun) -> Steps:
    """Source: Karras et al. 2022, algorithm 2."""
    latents = run.latents
    for sigma, sigma_next in run.sigma_pairs():
        latents, raised = _churned(run, latents, sigma)
        latents = _heun_step(run, latents, raised, sigma_next)
        yield latents


def _midpoint_step(run: SolverRun, latents: torch.Tensor, sigma: Scalar, target: Scalar) -> torch.Tensor:
    slope = _slope(latents, sigma, run.denoiser(latents, sigma))
    if target == 0:
        return latents + slope * (target - sigma)
    middle = _log_midpoint(sigma, target)
    trial = latents + slope * (middle - sigma)
    return latents + _slope(trial, middle, run.denoiser(trial, middle)) * (target - sigma)


def _dpm2(run: SolverRun) -> Steps:
    """Source: Lu et al. 2022 (DPM-Solver-2), in sigma."""
    latents = run.latents
    for sigma, sigma_next in run.sigma_pairs():
        latents, raised = _churned(run, latents, sigma)
        latents = _midpoint_step(run, latents, raised, sigma_next)
        yield latents


def _dpm2_ancestral(run: SolverRun) -> Steps:
    latents = run.latents
    for sigma, sigma_next in run.sigma_pairs():
        down, up = _ancestral_split(sigma, sigma_next, run.eta)
        latents = _midpoint_step(run, latents, sigma, down)
        if down > 0:
            # QUIRK(A1111 1.10): a step all the way down, as an eta beyond 1 takes it, is never raised again.
            latents = latents + run.noise(sigma, sigma_next) * run.s_noise * up
        yield latents


def _lms(run: SolverRun, order: int = 4) -> Steps:
    """Linear multistep: the slope's interpolating polynomial, integrated over the step."""
    latents, slopes = run.latents, []
    sigmas = run.visits.double().numpy()
    for index, sigma in enumerate(run.visits[:-1]):
        slopes = [_slope(latents, sigma, run.denoiser(latents, sigma)), *slopes][:order]
        nodes = sigmas[index - len(slopes) + 1 : index + 1][::-1]
        change = sum(
            _lagrange_integral(nodes, place, sigmas[index], sigmas[index + 1]) * slope
            for place, slope in enumerate(slopes)
        )
        latents = latents + change
        yield latents


def _lagrange_integral(nodes: np.ndarray, place: int, start: float, end: float) -> float:
    others = np.delete(nodes, place)
    return integrate.quad(lambda sigma: np.prod((sigma - others) / (nodes[place] - others)), start, end, epsrel=1e-4)[0]


# --- DPM++ -----------------------------------------------------------------------------------------------------------


def _dpmpp_2m(run: SolverRun) -> Steps:
    """Source: Lu et al. 2022 (DPM-Solver++), algorithm 2."""
    latents, previous, step_before = run.latents, None, None
    for sigma, sigma_next in run.sigma_pairs():
        denoised = run.denoiser(latents, sigma)
        step = _log_snr(sigma_next) - _log_snr(sigma)
        estimate = denoised
        if previous is not None and step_before is not None and sigma_next > 0:
            ratio = step_before / step
            estimate = (1 + 1 / (2 * ratio)) * denoised - (1 / (2 * ratio)) * previous
        latents = _exponential_step(latents, estimate, sigma, sigma_next, step)
        previous, step_before = denoised, step
        yield latents


def _dpmpp_2s_ancestral(run: SolverRun) -> Steps:
    """Source: Lu et al. 2022 (DPM-Solver++), algorithm 1, towards the lower level of an ancestral step."""
    latents = run.latents
    for sigma, sigma_next in run.sigma_pairs():
        denoised = run.denoiser(latents, sigma)
        down, up = _ancestral_split(sigma, sigma_next, run.eta)
        if down == 0:
            latents = latents + _slope(latents, sigma, denoised) * (down - sigma)
        else:
            start = _log_snr(sigma)
            step = _log_snr(down) - start
            middle = start + step / 2
            trial = _exponential_step(latents, denoised, _sigma_at(start), _sigma_at(middle), step / 2)
            estimate = run.denoiser(trial, _sigma_at(middle))
            latents = _exponential_step(latents, estimate, _sigma_at(start), _sigma_at(start + step), step)
        if sigma_next > 0:
            latents = latents + run.noise(sigma, sigma_next) * run.s_noise * up
        yield latents


def _dpmpp_sde(run: SolverRun) -> Steps:
    """The midpoint method of DPM-Solver++ with ancestral noise in both halves."""
    latents = run.latents
    for sigma, sigma_next in run.sigma_pairs():
        denoised = run.denoiser(latents, sigma)
        if sigma_next == 0:
            latents = latents + _slope(latents, sigma, denoised) * (sigma_next - sigma)
        else:
            start, end = _log_snr(sigma), _log_snr(sigma_next)
            middle = start + (end - start) / 2
            trial = _ancestral_exponential_step(run, latents, denoised, start, middle)
            estimate = run.denoiser(trial, _sigma_at(middle))
            latents = _ancestral_exponential_step(run, latents, estimate, start, end)
        yield latents


def _ancestral_exponential_step(
    run: SolverRun, latents: torch.Tensor, denoised: torch.Tensor, start: Scalar, end: Scalar
) -> torch.Tensor:
    down, up = _ancestral_split(_sigma_at(start), _sigma_at(end), run.eta)
    target = _log_snr(down)
    stepped = _exponential_step(latents, denoised, _sigma_at(start), _sigma_at(target), target - start)
    return stepped + run.noise(_sigma_at(start), _sigma_at(end)) * run.s_noise * up


def _dpmpp_2m_sde(run: SolverRun, *, heun: bool = False) -> Steps:
    """Source: Lu et al. 2022, SDE-DPM-Solver++(2M); eta scales the noise."""
    latents, previous, step_before = run.latents, None, None
    for sigma, sigma_next in run.sigma_pairs():
        denoised = run.denoiser(latents, sigma)
        if sigma_next == 0:
            latents = denoised
        else:
            step = _log_snr(sigma_next) - _log_snr(sigma)
            noisy_step = run.eta * step
            whole = step + noisy_step
            growth = (-whole).expm1().neg()
            latents = sigma_next / sigma * (-noisy_step).exp() * latents + growth * denoised
            if previous is not None and step_before is not None:
                weight = growth / -whole + 1 if heun else 0.5 * growth
                latents = latents + weight * (step / step_before) * (denoised - previous)
            latents = _with_sde_noise(run, latents, sigma, sigma_next, noisy_step)
            step_before = step
        previous = denoised
        yield latents


def _with_sde_noise(
    run: SolverRun, latents: torch.Tensor, sigma: Scalar, sigma_next: Scalar, noisy_step: Scalar
) -> torch.Tensor:
    if not run.eta:
        return latents
    return latents + run.noise(sigma, sigma_next) * sigma_next * (-2 * noisy_step).expm1().neg().sqrt() * run.s_noise


def _dpmpp_3m_sde(run: SolverRun) -> Steps:
    """As 2M SDE, with divided differences over three predictions."""
    latents = run.latents
    predictions: list[torch.Tensor] = []
    steps: list[Scalar] = []
    for sigma, sigma_next in run.sigma_pairs():
        denoised = run.denoiser(latents, sigma)
        predictions = [denoised, *predictions][:3]
        if sigma_next == 0:
            latents = denoised
        else:
            step = _log_snr(sigma_next) - _log_snr(sigma)
            whole = step * (run.eta + 1)
            latents = (
                (-whole).exp() * latents
                + (-whole).expm1().neg() * denoised
                + _third_order(predictions, steps, step, whole)
            )
            latents = _with_sde_noise(run, latents, sigma, sigma_next, step * run.eta)
            steps = [step, *steps][:2]
        yield latents


def _third_order(
    predictions: list[torch.Tensor], steps: list[Scalar], step: Scalar, whole: Scalar
) -> torch.Tensor | float:
    """What the predictions before this one add; ``steps`` are the widths before this one, latest first."""
    if len(predictions) == 1:
        return 0.0
    phi_2 = (-whole).expm1() / whole + 1
    ratio_0 = steps[0] / step
    first = (predictions[0] - predictions[1]) / ratio_0
    if len(predictions) == 2:
        return phi_2 * first
    ratio_1 = steps[1] / step
    difference = (first - (predictions[1] - predictions[2]) / ratio_1) / (ratio_0 + ratio_1)
    return phi_2 * (first + difference * ratio_0) - (phi_2 / whole - 0.5) * difference


# --- DPM fast and adaptive -------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _DpmStep:
    """The explicit steps of DPM-Solver from one log SNR, sharing denoiser calls. Source: Lu et al. 2022, appendix."""

    run: SolverRun
    latents: torch.Tensor
    start: Scalar
    end: Scalar
    _noises: dict[float, torch.Tensor] = field(default_factory=dict)

    @property
    def _step(self) -> Scalar:
        return self.end - self.start

    def _noise_at(self, share: float, latents: torch.Tensor) -> torch.Tensor:
        """The noise part of the latents at this share of the step."""
        if share not in self._noises:
            sigma = _sigma_at(self.start + share * self._step)
            self._noises[share] = (latents - self.run.denoiser(latents, sigma)) / sigma
        return self._noises[share]

    def _moved(self, share: float) -> torch.Tensor:
        """First order, to this share of the step."""
        sigma = _sigma_at(self.start + share * self._step)
        return self.latents - sigma * (share * self._step).expm1() * self._noise_at(0.0, self.latents)

    def first(self) -> torch.Tensor:
        return self._moved(1.0)

    def second(self, share: float = 1 / 2) -> torch.Tensor:
        base = self._noise_at(0.0, self.latents)
        change = self._noise_at(share, self._moved(share)) - base
        return self._moved(1.0) - _sigma_at(self.end) / (2 * share) * self._step.expm1() * change

    def third(self, share: float = 1 / 3, share_2: float = 2 / 3) -> torch.Tensor:
        base = self._noise_at(0.0, self.latents)
        change = self._noise_at(share, self._moved(share)) - base
        part = share_2 * self._step
        sigma_2 = _sigma_at(self.start + part)
        trial = self._moved(share_2) - sigma_2 * (share_2 / share) * (part.expm1() / part - 1) * change
        change_2 = self._noise_at(share_2, trial) - base
        return self._moved(1.0) - _sigma_at(self.end) / share_2 * (self._step.expm1() / self._step - 1) * change_2


def _dpm_target(run: SolverRun, start: Scalar, end: Scalar, last: Scalar) -> tuple[Scalar, Scalar]:
    """Where the deterministic part of a step from ``start`` to ``end`` leads, and the noise to add there."""
    if not run.eta:
        return end, end.new_zeros(())
    down, _ = _ancestral_split(_sigma_at(start), _sigma_at(end), run.eta)
    target = torch.minimum(last, _log_snr(down))
    return target, (_sigma_at(end) ** 2 - _sigma_at(target) ** 2) ** 0.5


def _dpm_fast(run: SolverRun) -> Steps:
    """As many third-order steps as fit into the run's denoiser calls; ends at the smallest sigma, never at zero."""
    first, last = _log_snr_range(run)
    full, rest = divmod(len(run.visits) - 1 if run.inside else run.steps, 3)
    orders = [3] * (full - 1) + [2, 1] if rest == 0 else [3] * full + [rest]
    latents = run.latents
    for order, (start, end) in zip(orders, pairwise(torch.linspace(float(first), float(last), full + 2)), strict=True):
        target, up = _dpm_target(run, start, end, last)
        step = _DpmStep(run, latents, start, target)
        latents = (step.first, step.second, step.third)[order - 1]()
        latents = latents + up * run.s_noise * run.noise(_sigma_at(start), _sigma_at(end))
        yield latents


ADAPTIVE_RELATIVE, ADAPTIVE_ABSOLUTE = 0.05, 0.0078
ADAPTIVE_FIRST_STEP = 0.05
ADAPTIVE_SAFETY = 0.81
ADAPTIVE_END = 1e-5


def _dpm_adaptive(run: SolverRun) -> Steps:
    """Chooses its step widths by the difference of its second and third order; ``steps`` plays no part.

    Source: Lu et al. 2022, appendix (adaptive step size); an integral controller with a soft limit.
    """
    position, last = _log_snr_range(run)
    latents = before = run.latents
    width = ADAPTIVE_FIRST_STEP
    order = 1.5 if run.eta else 3
    while position < last - ADAPTIVE_END:
        end = torch.minimum(last, position + width)
        target, up = _dpm_target(run, position, end, last)
        step = _DpmStep(run, latents, position, target)
        low, high = step.second(1 / 3), step.third()
        factor = 1 + math.atan((1 / (_relative_error(low, high, before) + 1e-8)) ** (1 / order) - 1)
        if factor >= ADAPTIVE_SAFETY:
            before = low
            latents = high + up * run.s_noise * run.noise(_sigma_at(position), _sigma_at(end))
            position = end
            yield latents
        width *= factor


def _relative_error(low: torch.Tensor, high: torch.Tensor, before: torch.Tensor) -> float:
    tolerance = (ADAPTIVE_RELATIVE * torch.maximum(low.abs(), before.abs())).clamp(min=ADAPTIVE_ABSOLUTE)
    return float(torch.linalg.norm((low - high) / tolerance) / low.numel() ** 0.5)


def _log_snr_range(run: SolverRun) -> tuple[Scalar, Scalar]:
    """The model's whole range; of a picture, what the schedule leaves of it.

    Raises:
        InvalidSpecError: A picture leaves one step, which ends where it begins; A1111 fails there as well.
    """
    if not run.inside:
        return _log_snr(torch.tensor(run.levels.sigma_max)), _log_snr(torch.tensor(run.levels.sigma_min))
    if len(run.visits) < 3:
        raise InvalidSpecError(
            "DPM fast and DPM adaptive need at least two of the steps that the strength leaves.",
            field="steps",
            value=run.steps,
        )
    return _log_snr(run.visits[0]), _log_snr(run.visits[-2])


# --- Restart, LCM ----------------------------------------------------------------------------------------------------

RESTART_LOW, RESTART_HIGH = 0.1, 2.0


def _restart(run: SolverRun) -> Steps:
    """Heun steps that jump back up to sigma 2 and come down again. Source: Xu et al. 2023, "Restart Sampling"."""
    latents, reached = run.latents, None
    for sigma, sigma_next in _restart_pairs(run.visits):
        if reached is not None and reached < sigma:
            latents = latents + run.noise(reached, sigma) * (sigma**2 - reached**2) ** 0.5
        latents = _heun_step(run, latents, sigma, sigma_next)
        reached = sigma_next
        yield latents


def _restart_pairs(sigmas: torch.Tensor) -> list[tuple[Scalar, Scalar]]:
    """All steps, the repeated ones included; below 20 steps nothing is repeated."""
    steps = len(sigmas) - 1
    if steps < 20:
        return list(pairwise(sigmas))
    width, times = (steps // 4, 2) if steps >= 36 else (9, 1)
    main = karras(steps - width * times, sigmas[-2].item(), sigmas[0].item())
    low, high = (int((main - level).abs().argmin()) for level in (RESTART_LOW, RESTART_HIGH))
    again = karras(width + 1, main[low].item(), main[high].item())[:-1] if high < low else main[:0]
    return [*pairwise(main[: low + 1]), *list(pairwise(again)) * times, *pairwise(main[low:])]


def _lcm(run: SolverRun) -> Steps:
    """Source: Luo et al. 2023, "Latent Consistency Models", algorithm 3."""
    latents = run.latents
    for sigma, sigma_next in run.sigma_pairs():
        latents = run.denoiser(latents, sigma)
        if sigma_next > 0:
            latents = latents + sigma_next * run.noise(sigma, sigma_next)
        yield latents


# --- timestep samplers -----------------------------------------------------------------------------------------------


def _timestep_pairs(run: SolverRun) -> Iterator[tuple[Scalar, Scalar, Scalar]]:
    """(timestep, alpha bar there, alpha bar at the next smaller one), largest first; the smallest is not stepped from."""
    descending = run.visits.flip(0)
    for timestep, following in pairwise(descending):
        yield timestep, run.levels.alphas_cumprod[timestep], run.levels.alphas_cumprod[following]


def _ddim(run: SolverRun, *, cfg_plus_plus: bool = False) -> Steps:
    """Source: Song et al. 2021 (DDIM), equation 12; CFG++ (Chung et al. 2024) goes on along the unguided noise."""
    latents = run.latents
    for timestep, alpha, alpha_next in _timestep_pairs(run):
        noise = run.denoiser(latents, timestep)
        onward = run.denoiser.last_unconditional if cfg_plus_plus else noise
        spread = run.eta * ((1 - alpha_next.double()) / (1 - alpha) * (1 - alpha / alpha_next.double())).sqrt().float()
        picture = (latents - (1 - alpha).sqrt() * noise) / alpha.sqrt()
        latents = alpha_next.sqrt() * picture + (1.0 - alpha_next - spread**2).sqrt() * onward
        if run.eta:
            latents = latents + spread * run.noise(timestep, timestep)
        yield latents


ADAMS_BASHFORTH = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def _plms(run: SolverRun) -> Steps:
    """Source: Liu et al. 2022 (PNDM): Adams-Bashforth on noise predictions, begun by one improved Euler step."""
    latents = run.latents
    noises: list[torch.Tensor] = []
    for index, (timestep, alpha, alpha_next) in enumerate(_timestep_pairs(run)):
        noises = [run.denoiser(latents, timestep), *noises][:4]
        weights = ADAMS_BASHFORTH[len(noises) - 1]
        estimate = torch.stack([weight * noise for weight, noise in zip(weights, noises, strict=True)]).sum(dim=0)
        if index == 0:
            trial = _ddim_transfer(latents, noises[0], alpha, alpha_next)
            estimate = (noises[0] + run.denoiser(trial, run.visits[-2])) / 2
        latents = _ddim_transfer(latents, estimate, alpha, alpha_next)
        yield latents


def _ddim_transfer(latents: torch.Tensor, noise: torch.Tensor, alpha: Scalar, alpha_next: Scalar) -> torch.Tensor:
    picture = (latents - (1 - alpha).sqrt() * noise) / alpha.sqrt()
    return alpha_next.sqrt() * picture + (1 - alpha_next).sqrt() * noise


@dataclass(frozen=True, slots=True)
class _UniPcPoint:
    """One place on UniPC's path: continuous time, and what the noise schedule says there."""

    timestep: Scalar
    """Fractional, as the network takes it."""
    alpha: Scalar
    sigma: Scalar
    log_snr: Scalar


def _unipc(run: SolverRun) -> Steps:
    """Source: Zhao et al. 2023 (UniPC), data prediction, lower orders at the start and, unless told otherwise, at the end."""
    settings, count = run.settings, len(run.visits)
    if not count:
        raise InvalidSpecError(
            "UniPC needs at least two of the steps that the strength leaves.", field="steps", value=run.steps
        )
    points = [_unipc_point(run.levels, time) for time in _unipc_times(run, count)]
    latents = run.latents
    history = [(points[0], _unipc_picture(run, latents, points[0]))]
    for index, point in enumerate(points[1:], start=1):
        order = min(settings.uni_pc_order, index)
        if settings.uni_pc_lower_order_final:
            order = min(order, count + 1 - index)
        latents, picture = _unipc_step(run, latents, history[-order:], point, correct=index < count)
        history = [*history, (point, picture)][-settings.uni_pc_order :] if picture is not None else history
        yield latents


def _unipc_times(run: SolverRun, count: int) -> torch.Tensor:
    """Continuous times, largest first.

    QUIRK(A1111 1.10): a run from a picture begins one training step later than its noise level.
    """
    training_steps = len(run.levels.alphas_cumprod)
    first = (float(run.visits[-1]) + 1) / training_steps if run.inside else 1.0
    last = 1 / training_steps
    match run.settings.uni_pc_skip_type:
        case "time_quadratic":
            return torch.linspace(first**0.5, last**0.5, count + 1) ** 2
        case "logSNR":
            begin, end = (float(_unipc_point(run.levels, torch.tensor(time)).log_snr) for time in (first, last))
            return _unipc_times_at(run.levels, torch.linspace(begin, end, count + 1))
        case _:
            return torch.linspace(first, last, count + 1)


def _unipc_times_at(levels: NoiseLevels, log_snrs: torch.Tensor) -> torch.Tensor:
    """The inverse of ``_unipc_point``: linear in log alpha between the trained timesteps."""
    log_alphas = -0.5 * torch.logaddexp(torch.zeros(()), -2.0 * log_snrs)
    trained = (0.5 * levels.alphas_cumprod.log()).flip(0).double().numpy()
    times = (torch.arange(1, len(trained) + 1) / len(trained)).flip(0).double().numpy()
    return torch.from_numpy(np.interp(log_alphas.double().numpy(), trained, times)).float()


def _unipc_point(levels: NoiseLevels, time: Scalar) -> _UniPcPoint:
    """``time`` runs over (0, 1]; log alpha is linear between the trained timesteps."""
    count = len(levels.alphas_cumprod)
    timestep = (time - 1.0 / count) * count
    low = int(timestep.clamp(0, count - 2))
    half_logs = 0.5 * levels.alphas_cumprod.log()
    log_alpha = half_logs[low] + (timestep - low) * (half_logs[low + 1] - half_logs[low])
    log_sigma = 0.5 * torch.log(1.0 - torch.exp(2.0 * log_alpha))
    return _UniPcPoint(timestep, log_alpha.exp(), log_sigma.exp(), log_alpha - log_sigma)


def _unipc_picture(run: SolverRun, latents: torch.Tensor, point: _UniPcPoint) -> torch.Tensor:
    return (latents - point.sigma * run.denoiser(latents, point.timestep)) / point.alpha


def _unipc_step(
    run: SolverRun,
    latents: torch.Tensor,
    history: list[tuple[_UniPcPoint, torch.Tensor]],
    point: _UniPcPoint,
    *,
    correct: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Predict, and correct with the prediction's own picture; its picture is kept for the next step."""
    (base, base_picture), earlier = history[-1], history[-2::-1]
    step = point.log_snr - base.log_snr
    scale = (-step).expm1() if run.settings.uni_pc_variant == "bh2" else -step
    places = [(then.log_snr - base.log_snr) / step for then, _ in earlier]
    changes = [(picture - base_picture) / place for place, (_, picture) in zip(places, earlier, strict=True)]
    weights_for = _unipc_varying_weights if run.settings.uni_pc_variant == "vary_coeff" else _unipc_weights
    weights_before, weights_after = weights_for(torch.stack([*places, torch.ones(())]), step, scale)

    first_order = point.sigma / base.sigma * latents - point.alpha * (-step).expm1() * base_picture
    predicted = first_order - point.alpha * scale * _weighted_sum(weights_before, changes)
    if not correct:
        return predicted, None
    picture = _unipc_picture(run, predicted, point)
    corrected = first_order - point.alpha * scale * _weighted_sum(weights_after, [*changes, picture - base_picture])
    return corrected, picture


def _unipc_weights(places: torch.Tensor, step: Scalar, scale: Scalar) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Of the differences, the prediction's first: so that every power of the step is met."""
    matrix, moments = _unipc_moments(places, step, scale)
    half = [torch.tensor(0.5)]
    match len(places):
        case 1:
            return [], half
        case 2:
            before = half
        case _:
            before = list(torch.linalg.solve(matrix[:-1, :-1], moments[:-1]))
    return before, list(torch.linalg.solve(matrix, moments))


def _unipc_varying_weights(
    places: torch.Tensor, step: Scalar, scale: Scalar
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """As ``_unipc_weights``, with coefficients that vary with the step. Source: Zhao et al. 2023 (UniPC), section 3.3.

    QUIRK(A1111 1.10): of the corrector's newest difference only one coefficient is used, that of the last but one power.
    """
    order = len(places)
    powers = torch.arange(order)
    system = places[:, None] ** powers / torch.exp(torch.lgamma(powers + 2.0))
    phi, phis, factorial = (-step).expm1(), [], 1.0
    for power in range(1, order + 1):
        phi, factorial = phi / -step - 1 / factorial, factorial * (power + 1)
        phis.append(phi / scale)
    inverse = torch.linalg.inv(system)
    newest = phis[-1] * inverse[max(order - 2, 0), -1]
    if order == 1:
        return [], [newest]
    earlier = torch.stack(phis[:-1])
    return list(earlier @ torch.linalg.inv(system[:-1, :-1])), [*(earlier @ inverse[:-1, :-1]), newest]


def _unipc_moments(places: torch.Tensor, step: Scalar, scale: Scalar) -> tuple[torch.Tensor, torch.Tensor]:
    """The linear system for the weights of the differences: powers of their places, and moments of the exponential."""
    order = len(places)
    moments, factorial = [], 1
    phi = (-step).expm1() / -step - 1
    for power in range(1, order + 1):
        moments.append(phi * factorial / scale)
        factorial *= power + 1
        phi = phi / -step - 1 / factorial
    return torch.stack([places**power for power in range(order)]), torch.stack(moments)


def _weighted_sum(weights: list[torch.Tensor], terms: list[torch.Tensor]) -> torch.Tensor | float:
    return sum((weight * term for weight, term in zip(weights, terms, strict=True)), start=0.0)


# --- the table -------------------------------------------------------------------------------------------------------

SOLVERS: dict[str, Solver] = {
    "DPM++ 2M": Solver(_dpmpp_2m),
    "DPM++ SDE": Solver(_dpmpp_sde),
    "DPM++ 2M SDE": Solver(_dpmpp_2m_sde),
    "DPM++ 2M SDE Heun": Solver(lambda run: _dpmpp_2m_sde(run, heun=True)),
    "DPM++ 2S a": Solver(_dpmpp_2s_ancestral),
    "DPM++ 3M SDE": Solver(_dpmpp_3m_sde),
    "Euler a": Solver(_euler_ancestral),
    "Euler": Solver(_euler),
    "LMS": Solver(_lms),
    "Heun": Solver(_heun),
    "DPM2": Solver(_dpm2),
    "DPM2 a": Solver(_dpm2_ancestral),
    "DPM fast": Solver(_dpm_fast),
    "DPM adaptive": Solver(_dpm_adaptive, adaptive=True),
    "Restart": Solver(_restart),
    "DDIM": Solver(_ddim, prediction="timestep", default_eta=0.0),
    "DDIM CFG++": Solver(
        lambda run: _ddim(run, cfg_plus_plus=True), prediction="timestep", default_eta=0.0, cfg_plus_plus=True
    ),
    "PLMS": Solver(_plms, prediction="timestep"),
    "UniPC": Solver(_unipc, prediction="timestep"),
    "LCM": Solver(_lcm, prediction="lcm"),
}
