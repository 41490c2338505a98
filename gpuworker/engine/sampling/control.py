"""What control units do in a pass: residuals added to the UNet, attention led by a reference, predictions held to a picture.

Works on tensors of a whole pass; how a unit's picture became a hint is in ``images.controlnet``. Nothing here waits for the device.

Source: sd-webui-controlnet 1.1.455, ``UnetHook`` of ``scripts/hook.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F

from gpuworker.contract import ControlUnit
from gpuworker.contract.recipe import LATENT_FACTOR
from gpuworker.engine.models.controlnets import ControlNetwork
from gpuworker.engine.models.loader import Checkpoint
from gpuworker.engine.models.precision import type_of
from gpuworker.engine.sampling.guidance import Level, Rows, UNet
from gpuworker.engine.sampling.reference import ReferenceHooks

BALANCED, PROMPT, CONTROL = "Balanced", "My prompt is more important", "ControlNet is more important"
SOFT_FACTOR = 0.825
FULL_RESIDUALS = (10, 13)
"""Of SDXL and of every other family; both count their soft weights from the thirteenth."""
EDGE_MODULES = ("canny", "mlsd")
"""Their weights are soft in every hires pass."""
LATENT_CHANNELS = 4


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class UnitOfPass:
    """One unit and what it shows the images of a pass; tensors on the device, one slice per image."""

    unit: ControlUnit
    network: ControlNetwork | None = None
    """None for modules that need none."""
    hints: torch.Tensor | None = None
    """The maps as the network's own part has read them, shape (images, channels, height, width)."""
    latents: torch.Tensor | None = None
    """Of the picture itself, for modules that hold on to it; shape (images, 4, height, width)."""
    mask: torch.Tensor | None = None
    """1 where an inpainting module draws anew, in pixels, shape (images, 1, height, width)."""
    region: torch.Tensor | None = None
    """Where the unit acts, 0…1, in pixels, shape (images, 1, height, width)."""
    concat: torch.Tensor | None = None
    """What a 9-channel checkpoint is shown instead of its own mask and picture, shape (images, 5, height, width)."""
    average: bool = False
    """Residuals are averaged over the picture: networks of ``shuffle``."""
    hires: bool = False
    alone: bool = False
    """There is no hires fix; then every pass is the one the unit is meant for."""

    @property
    def module(self) -> str:
        return self.unit.module

    @property
    def is_reference(self) -> bool:
        return self.module.startswith("reference")

    @property
    def acts_in_this_pass(self) -> bool:
        return self.alone or self.unit.hr_option in ("Both", "High res only" if self.hires else "Low res only")

    def acts_at(self, progress: float) -> bool:
        return self.acts_in_this_pass and self.unit.guidance_start <= progress <= self.unit.guidance_end

    def scales(self, residuals: int) -> list[float]:
        """One per residual, the middle block's last."""
        if self.unit.advanced_weighting is not None:
            given = list(self.unit.advanced_weighting)[:residuals]
            return given + [0.0] * (residuals - len(given))
        soft = self.unit.control_mode != BALANCED or (
            self.hires and any(module in self.module for module in EDGE_MODULES)
        )
        if not soft:
            return [self.unit.weight] * residuals
        last = max(FULL_RESIDUALS) - 1 if residuals in FULL_RESIDUALS else residuals - 1
        return [self.unit.weight * SOFT_FACTOR ** (last - index) for index in range(residuals)]

    @property
    def positive_only(self) -> bool:
        return self.unit.control_mode == CONTROL or self.average

    @property
    def style_fidelity(self) -> float:
        """How much of the negative half is left alone by a reference."""
        if self.unit.control_mode == CONTROL:
            return 1.0
        if self.unit.control_mode == PROMPT or self.hires:
            return 0.0
        return min(max(self.unit.threshold_a, 0.0), 1.0)


class PassControl:
    """All units of a pass, and how far it is."""

    def __init__(
        self,
        units: Sequence[UnitOfPass],
        alphas_cumprod: torch.Tensor,
        latent_scale: float,
        noise: ReferenceNoise,
        hooks: ReferenceHooks | None,
    ) -> None:
        self.units = units
        self._latent_scale = latent_scale
        self._mixture = Mixture(alphas_cumprod)
        self._noise = noise
        self._hooks = hooks
        self._progress = 0.0
        self._gathered: dict[tuple[int, str, tuple[int, ...]], torch.Tensor] = {}

    def move_to(self, step: int, *, steps: int) -> None:
        """How many of the steps lie behind the next call of the denoiser."""
        self._progress = step / steps
        self._noise.begin()

    def follow(self, unet: Any) -> None:
        """Act on another UNet of the same build from now on."""
        if self._hooks:
            self._hooks.follow(unet)

    def predict(self, unet: UNet, latents: torch.Tensor, timestep: Level, rows: Rows) -> torch.Tensor:
        rows = self._with_own_concat(rows)
        acting = [unit for unit in self.units if unit.acts_at(self._progress)]
        residuals = self._residuals(acting, latents, timestep, rows)
        if self._hooks:
            self._show_references(acting, unet, timestep, rows)
        predicted = unet(latents, timestep, rows, **residuals)
        for unit in self.units:
            predicted = self._corrected(unit, predicted, latents, timestep, rows)
        return predicted

    # --- residuals ---------------------------------------------------------------------------------------------------

    def _residuals(
        self, acting: Sequence[UnitOfPass], latents: torch.Tensor, timestep: Level, rows: Rows
    ) -> dict[str, Any]:
        total: list[torch.Tensor] = []
        for unit in acting:
            if unit.network is None or unit.hints is None:
                continue
            own = self._of_unit(unit, unit.network, latents, timestep, rows)
            total = [first + second for first, second in zip(total, own, strict=True)] if total else own
        if not total:
            return {}
        return {"down_block_additional_residuals": tuple(total[:-1]), "mid_block_additional_residual": total[-1]}

    def _of_unit(
        self, unit: UnitOfPass, network: ControlNetwork, latents: torch.Tensor, timestep: Level, rows: Rows
    ) -> list[torch.Tensor]:
        dtype = type_of(network.model)
        more: dict[str, Any] = {} if rows.vector is None else {"class_labels": rows.vector.to(dtype)}
        down, middle = network.model(
            latents.to(dtype),
            latents.new_full((len(latents),), float(timestep)),
            rows.context.to(dtype),
            self._rows_of(unit, "hints", rows),
            return_dict=False,
            **more,
        )
        residuals = [*down, middle]
        if unit.positive_only:
            mark = _positive_mark(rows, middle)
            residuals = [residual * mark for residual in residuals]
        residuals = [
            self._within_region(unit, residual * scale, rows)
            for residual, scale in zip(residuals, unit.scales(len(residuals)), strict=True)
        ]
        return [residual.mean(dim=(2, 3), keepdim=True) for residual in residuals] if unit.average else residuals

    def _within_region(self, unit: UnitOfPass, residual: torch.Tensor, rows: Rows) -> torch.Tensor:
        if unit.region is None:
            return residual
        region = self._rows_of(unit, "region", rows).to(residual)
        return residual * F.interpolate(region, size=residual.shape[2:], mode="bilinear")

    def _rows_of(self, unit: UnitOfPass, name: str, rows: Rows) -> torch.Tensor:
        """A unit's tensor with a slice per row instead of per image; gathered once for each set of rows."""
        key = id(unit), name, rows.images
        if key not in self._gathered:
            given: torch.Tensor = getattr(unit, name)
            self._gathered[key] = torch.stack([given[image] for image in rows.images])
        return self._gathered[key]

    # --- inpainting checkpoints --------------------------------------------------------------------------------------

    def _with_own_concat(self, rows: Rows) -> Rows:
        """A unit that inpaints tells a 9-channel checkpoint, too."""
        for unit in self.units:
            if unit.concat is not None and rows.concat is not None:
                rows = replace(rows, concat=self._rows_of(unit, "concat", rows))
        return rows

    # --- references --------------------------------------------------------------------------------------------------

    def _show_references(self, acting: Sequence[UnitOfPass], unet: UNet, timestep: Level, rows: Rows) -> None:
        assert self._hooks is not None
        self._hooks.begin([index for index, negative in enumerate(rows.negative) if negative])
        references = [unit for unit in acting if unit.is_reference and unit.latents is not None]
        for index, unit in enumerate(references):
            clean = self._rows_of(unit, "latents", rows)
            noise = self._noise.draw(rows, clean, reference=index, references=len(references))
            noisy = self._mixture.noised(clean, timestep, noise)
            shown = (
                rows if rows.concat is None else replace(rows, concat=_seen_reference(clean, rows, self._latent_scale))
            )
            with self._hooks.writing(unit.module, unit.unit.weight, unit.style_fidelity):
                unet(noisy, timestep, shown)

    # --- predictions -------------------------------------------------------------------------------------------------

    def _corrected(
        self, unit: UnitOfPass, predicted: torch.Tensor, latents: torch.Tensor, timestep: Level, rows: Rows
    ) -> torch.Tensor:
        """Hold the prediction to the picture's colours, or to what an inpainting mask protects.

        QUIRK(sd-webui-controlnet 1.1.455): the whole pass long, whatever the guidance window says.
        """
        if unit.latents is None or unit.is_reference:
            return predicted
        origin = self._rows_of(unit, "latents", rows)
        clean = self._mixture.clean(latents, timestep, predicted)
        if "colorfix" in unit.module:
            clean = self._recoloured(unit, clean, origin, rows)
        elif unit.mask is not None:
            mask = self._rows_of(unit, "mask", rows)
            small = F.max_pool2d(mask, LATENT_FACTOR + 2, stride=LATENT_FACTOR, padding=1)
            clean = clean * small + origin * (1 - small)
        else:
            return predicted
        weight = min(max(unit.unit.weight, 0.0), 1.0)
        return self._mixture.noise_in(latents, timestep, clean) * weight + predicted * (1 - weight)

    def _recoloured(self, unit: UnitOfPass, clean: torch.Tensor, origin: torch.Tensor, rows: Rows) -> torch.Tensor:
        radius = int(unit.unit.threshold_a) * (2 if unit.hires and unit.acts_in_this_pass else 1)
        clean = clean - _blurred(clean, radius) + _blurred(origin, radius)
        if not unit.module.endswith("+sharp"):
            return clean
        share = unit.unit.threshold_b * 0.01
        mark = _positive_mark(rows, clean)
        return mark * clean + (1 - mark) * (share * _blurred(clean, radius) + (1 - share) * clean)


class Mixture:
    """How much picture and how much noise there is at a timestep, rounded to a trained one; and the way back.

    Source: Ho et al. 2020 (DDPM), equations 4 and 15.
    """

    def __init__(self, alphas_cumprod: torch.Tensor) -> None:
        self._alphas = alphas_cumprod.double()

    def noised(self, clean: torch.Tensor, timestep: Level, noise: torch.Tensor) -> torch.Tensor:
        alpha = self._alpha(timestep)
        return clean * alpha**0.5 + noise * (1 - alpha) ** 0.5

    def clean(self, noisy: torch.Tensor, timestep: Level, noise: torch.Tensor) -> torch.Tensor:
        alpha = self._alpha(timestep)
        return noisy * (1 / alpha) ** 0.5 - noise * (1 / alpha - 1) ** 0.5

    def noise_in(self, noisy: torch.Tensor, timestep: Level, clean: torch.Tensor) -> torch.Tensor:
        alpha = self._alpha(timestep)
        return (noisy * (1 / alpha) ** 0.5 - clean) / (1 / alpha - 1) ** 0.5

    def _alpha(self, timestep: Level) -> float:
        return float(self._alphas[round(float(timestep))])


class ReferenceNoise:
    """What A1111's global generator draws for references, continued from the image's first noise.

    Each image draws what it would draw alone, whatever else is in the pass and however its rows are spread over network calls.
    """

    def __init__(self, generators: Sequence[torch.Generator]) -> None:
        self._generators = generators
        self._drawn: dict[int, list[list[torch.Tensor]]] = {}
        """Of this call of the denoiser: image → its own network calls → references."""

    def begin(self) -> None:
        """The denoiser is called once more."""
        self._drawn.clear()

    def draw(self, rows: Rows, like: torch.Tensor, *, reference: int, references: int) -> torch.Tensor:
        """Unit variance, in the shape of ``like``.

        Args:
            reference, references: Which one it is for, of how many that act in this call.
        """
        for image in dict.fromkeys(rows.images):
            if image not in self._drawn:
                self._drawn[image] = [
                    [
                        torch.randn((count, *like.shape[1:]), generator=self._generators[image])
                        for _ in range(references)
                    ]
                    for count in rows.own_calls[image]
                ]
        own = [
            self._drawn[image][call][reference][place]
            for image, (call, place) in zip(rows.images, rows.places, strict=True)
        ]
        return torch.stack(own).to(like, non_blocking=True)


@dataclass(frozen=True, slots=True)
class ControlledUNet:
    """A UNet with its control units; used in its place."""

    unet: UNet
    control: PassControl

    def __call__(self, latents: torch.Tensor, timestep: Level, rows: Rows) -> torch.Tensor:
        return self.control.predict(self.unet, latents, timestep, rows)


@contextmanager
def pass_control(
    units: Sequence[UnitOfPass],
    checkpoint: Checkpoint,
    alphas_cumprod: torch.Tensor,
    generators: Sequence[torch.Generator],
    *,
    exact: bool,
) -> Iterator[PassControl | None]:
    """The control of a pass for as long as it runs; None without units. Hooks in the UNet go with it."""
    if not units:
        yield None
        return
    noise, scale = ReferenceNoise(generators), checkpoint.latent_scale
    if not any(unit.is_reference for unit in units):
        yield PassControl(units, alphas_cumprod, scale, noise, None)
        return
    with ReferenceHooks(checkpoint.unet, exact=exact) as hooks:
        yield PassControl(units, alphas_cumprod, scale, noise, hooks)


def _positive_mark(rows: Rows, like: torch.Tensor) -> torch.Tensor:
    """1 for rows of the prompt, 0 for those of the negative prompt; shape (rows, 1, 1, 1)."""
    return torch.stack([like.new_zeros(()) if negative else like.new_ones(()) for negative in rows.negative]).view(
        -1, 1, 1, 1
    )


def _blurred(values: torch.Tensor, radius: int) -> torch.Tensor:
    padded = F.pad(values, (radius, radius, radius, radius), mode="replicate")
    return F.avg_pool2d(padded, 2 * radius + 1, stride=1)


def _seen_reference(clean: torch.Tensor, rows: Rows, latent_scale: float) -> torch.Tensor:
    """The reference takes the place of the picture beside the latents.

    To an inpainting checkpoint nothing of it is masked; an editing one sees it unscaled, in rows that see a picture at all. The
    extension knows the first only, and fails on the second.
    """
    assert rows.concat is not None
    if rows.concat.shape[1] > LATENT_CHANNELS:
        return torch.cat([torch.zeros_like(rows.concat[:, :1]), clean], dim=1)
    sees = torch.stack([clean.new_zeros(()) if blind else clean.new_ones(()) for blind in rows.blind])
    return clean / latent_scale * sees.view(-1, 1, 1, 1)
