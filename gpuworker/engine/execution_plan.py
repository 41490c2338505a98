"""From a spec to the numbers of its pass: latent size, picture size, the step count prompts are edited by. No torch here."""

from __future__ import annotations

from dataclasses import dataclass

from gpuworker.contract import RenderSpec
from gpuworker.contract.samplers import (
    SAMPLERS_BY_NAME,
    SamplerInfo,
    ScheduleInfo,
    effective_schedule,
    schedule_named,
)
from gpuworker.engine.errors import InvalidSpecError

LATENT_FACTOR = 8
"""Pixels per latent along a side, of every VAE of the SD 1.x family."""


@dataclass(frozen=True, slots=True)
class ExecutionPlan:
    """What every image of the pass has in common."""

    sampler: SamplerInfo
    schedule: ScheduleInfo
    """Resolved: ``Automatic`` only where the sampler has no default of its own."""
    steps: int
    latent_width: int
    latent_height: int

    @property
    def width_px(self) -> int:
        return self.latent_width * LATENT_FACTOR

    @property
    def height_px(self) -> int:
        return self.latent_height * LATENT_FACTOR

    @property
    def editing_steps(self) -> int:
        """The total that prompt editing counts against: denoiser calls, so second-order samplers have twice the steps."""
        return self.steps * 2 if self.sampler.second_order else self.steps


def plan_pass(spec: RenderSpec) -> ExecutionPlan:
    """Plan a pass.

    Raises:
        InvalidSpecError: A number is out of range or the sampler is not known.
    """
    recipe = spec.recipes[0]
    sampler = SAMPLERS_BY_NAME.get(recipe.sampler)
    if sampler is None or not sampler.implemented:
        raise InvalidSpecError(f"Sampler {recipe.sampler!r} is not known.", field="sampler", value=recipe.sampler)
    for name in ("width", "height"):
        _require_at_least(name, getattr(recipe, name), LATENT_FACTOR)
    _require_at_least("steps", recipe.steps, 1)
    return ExecutionPlan(
        sampler=sampler,
        schedule=effective_schedule(sampler, schedule_named(recipe.schedule)),
        steps=recipe.steps,
        latent_width=recipe.width // LATENT_FACTOR,
        latent_height=recipe.height // LATENT_FACTOR,
    )


def _require_at_least(field: str, value: int, least: int) -> None:
    if value < least:
        raise InvalidSpecError(f"{field} is {value}; it must be {least} or more.", field=field, value=value)
