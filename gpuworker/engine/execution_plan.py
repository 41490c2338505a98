"""From a recipe to the numbers of its passes: samplers, step counts, latent sizes, what each pass is for. No torch here."""

from __future__ import annotations

from dataclasses import dataclass

from gpuworker.contract.recipe import LATENT_FACTOR, LATENT_MODES, Recipe, hires_canvas, hires_size
from gpuworker.contract.samplers import (
    SAMPLERS_BY_NAME,
    SamplerInfo,
    ScheduleInfo,
    effective_schedule,
    resolve_sampler,
    schedule_named,
)
from gpuworker.engine.errors import InvalidSpecError


@dataclass(frozen=True, slots=True, kw_only=True)
class PassPlan:
    """What every image has in common in one run through the denoiser."""

    sampler: SamplerInfo
    schedule: ScheduleInfo
    """Resolved: ``Automatic`` only where the sampler has no default of its own."""
    steps: int
    width: int
    """As asked for, which is what SDXL is told; pixels."""
    height: int
    latent_width: int
    latent_height: int
    hires: bool = False
    refined: bool = False
    """Whether the refiner may take over in this pass."""
    token_merging_ratio: float = 0.0

    @property
    def canvas(self) -> tuple[int, int]:
        """Height and width in pixels of what is drawn."""
        return self.latent_height * LATENT_FACTOR, self.latent_width * LATENT_FACTOR

    @property
    def picture_width(self) -> int:
        """Of a picture whose latents are those of the pass: as asked for, also where that is no multiple of 8."""
        return _of_latents(self.width, self.latent_width)

    @property
    def picture_height(self) -> int:
        return _of_latents(self.height, self.latent_height)

    @property
    def editing_steps(self) -> int:
        """The total that prompt editing counts against: denoiser calls, so second-order samplers have twice the steps."""
        return self.steps * 2 if self.sampler.second_order else self.steps


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionPlan:
    first: PassPlan
    second: PassPlan | None = None
    """The hires pass."""
    enlarged: tuple[int, int] = (0, 0)
    """Width and height in pixels that the first pass is enlarged to."""
    latent_upscale: tuple[str, bool] | None = None
    """Interpolation and antialiasing of the latents; None enlarges the decoded picture."""

    @property
    def last(self) -> PassPlan:
        return self.second or self.first


def _of_latents(side: int, latent_side: int) -> int:
    return side if side // LATENT_FACTOR == latent_side else latent_side * LATENT_FACTOR


def plan_passes(recipe: Recipe) -> ExecutionPlan:
    """Plan the passes that make a picture of this recipe.

    Raises:
        InvalidSpecError: A number is out of range or the sampler is not known.
    """
    for name in ("width", "height"):
        _require_at_least(name, getattr(recipe, name), LATENT_FACTOR)
    _require_at_least("steps", recipe.steps, 1)
    settings = recipe.settings
    refiner_passes = settings.hires_fix_refiner_pass
    merging = settings.token_merging_ratio
    first = PassPlan(
        sampler=_sampler(recipe.sampler),
        schedule=_schedule(recipe.sampler, recipe.schedule),
        steps=recipe.steps,
        width=recipe.width,
        height=recipe.height,
        latent_width=recipe.width // LATENT_FACTOR,
        latent_height=recipe.height // LATENT_FACTOR,
        refined=recipe.refiner is not None and (recipe.hires is None or refiner_passes != "second pass"),
        token_merging_ratio=(settings.token_merging_ratio_img2img or merging) if recipe.img2img else merging,
    )
    if recipe.hires is None or recipe.img2img is not None:
        return ExecutionPlan(first=first)
    hires = recipe.hires
    enlarged = hires_size(recipe.width, recipe.height, hires)
    canvas = hires_canvas(recipe.width, recipe.height, hires)
    _require_at_least("hires width", min(enlarged), LATENT_FACTOR)
    _require_at_least("hires width", min(canvas), LATENT_FACTOR)
    sampler, schedule = _hires_sampler(recipe)
    second = PassPlan(
        sampler=sampler,
        schedule=schedule,
        steps=recipe.hires_steps,
        width=enlarged[0],
        height=enlarged[1],
        latent_width=enlarged[0] // LATENT_FACTOR - (enlarged[0] - canvas[0]) // LATENT_FACTOR,
        latent_height=enlarged[1] // LATENT_FACTOR - (enlarged[1] - canvas[1]) // LATENT_FACTOR,
        hires=True,
        refined=recipe.refiner is not None and refiner_passes != "first pass",
        token_merging_ratio=settings.token_merging_ratio_hr or merging,
    )
    return ExecutionPlan(
        first=first, second=second, enlarged=enlarged, latent_upscale=LATENT_MODES.get(hires.upscaler or "Latent")
    )


def _hires_sampler(recipe: Recipe) -> tuple[SamplerInfo, ScheduleInfo]:
    hires = recipe.hires
    assert hires is not None
    if hires.sampler is None:
        return _sampler(recipe.sampler), _schedule(recipe.sampler, hires.schedule or recipe.schedule)
    resolved = resolve_sampler(hires.sampler, hires.schedule or recipe.schedule)
    return resolved.sampler, resolved.effective_schedule


def _sampler(name: str) -> SamplerInfo:
    sampler = SAMPLERS_BY_NAME.get(name)
    if sampler is None or not sampler.implemented:
        raise InvalidSpecError(f"Sampler {name!r} is not known.", field="sampler", value=name)
    return sampler


def _schedule(sampler: str, schedule: str) -> ScheduleInfo:
    return effective_schedule(_sampler(sampler), schedule_named(schedule))


def _require_at_least(field: str, value: int, least: int) -> None:
    if value < least:
        raise InvalidSpecError(f"{field} is {value}; it must be {least} or more.", field=field, value=value)
