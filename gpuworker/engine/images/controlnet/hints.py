"""From the prepared units of a pass' images to tensors on the device: hints, latents, masks.

Source: sd-webui-controlnet 1.1.455, ``scripts/hook.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from gpuworker.contract.recipe import LATENT_FACTOR
from gpuworker.engine.images.controlnet.units import PreparedUnit, inpaints
from gpuworker.engine.images.vae import posterior_sample
from gpuworker.engine.models.controlnets import ControlNetwork
from gpuworker.engine.models.loader import Checkpoint
from gpuworker.engine.models.precision import type_of
from gpuworker.engine.sampling.control import UnitOfPass

INPAINTING_CHANNELS = 9
HOLDS_ON = ("reference", "colorfix", "inpaint_only")
"""Parts of the names of modules that work with the picture's own latents."""


def unit_of_pass(
    prepared: Sequence[PreparedUnit],
    regions: Sequence[np.ndarray | None],
    network: ControlNetwork | None,
    checkpoint: Checkpoint,
    generators: Sequence[torch.Generator],
    *,
    hires: bool,
    alone: bool,
) -> UnitOfPass:
    """One unit of every image of a pass; runs the part of the network that reads maps.

    Args:
        regions: Where the unit acts in each image, 0…1, shape (height, width); all or none of them None.
        generators: One per image. What is drawn for latents comes from them, as A1111 draws it.
        alone: There is no hires fix.
    """
    unit, vae = prepared[0].unit, checkpoint.vae
    shared = len(prepared) > 1 and all(one is prepared[0] for one in prepared)
    different = prepared[:1] if shared else prepared
    maps = torch.stack([_values(one.map_of(hires=hires)) for one in different]).to(vae.device)
    colours, mask = maps[:, :3], maps[:, 3:] if maps.shape[1] > 3 else None
    hints = _read(network, colours, mask) if network else None
    if shared:
        colours, mask, hints = (_of_each(part, len(prepared)) for part in (colours, mask, hints))
    latents = None
    if any(part in unit.module for part in HOLDS_ON):
        latents = _latents(checkpoint, colours, generators)
    return UnitOfPass(
        unit=unit,
        network=network,
        hints=hints,
        latents=latents,
        mask=mask,
        region=_regions(regions, vae.device),
        concat=_concat(checkpoint, colours, mask, generators) if inpaints(unit) else None,
        average=network is not None and "shuffle" in (unit.weights.name.lower() if unit.weights else ""),
        hires=hires,
        alone=alone,
    )


def _of_each(one: torch.Tensor | None, images: int) -> Any:
    """The same for every image, without copies."""
    return None if one is None else one.expand(images, *one.shape[1:])


def _values(image: np.ndarray) -> torch.Tensor:
    """float32 of 0…1, shape (channels, height, width)."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255.0


def _read(network: ControlNetwork, colours: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    if mask is not None:
        redrawn = (mask > 0.5).float()
        colours = colours * (1 - redrawn) - redrawn  # how inpainting networks are told what is missing
    # One by one: what a map is read as must not depend on how many others there are.
    return torch.cat([network.hint_encoder(one.unsqueeze(0)) for one in colours.to(type_of(network.model))])


def _latents(
    checkpoint: Checkpoint,
    colours: torch.Tensor,
    generators: Sequence[torch.Generator],
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    values = colours * 2.0 - 1.0
    if mask is not None:
        values = values * (1.0 - mask)
    drawn = [posterior_sample(checkpoint.vae, one, draw) for one, draw in zip(values, generators, strict=True)]
    return torch.stack(drawn) * checkpoint.latent_scale


def _concat(
    checkpoint: Checkpoint, colours: torch.Tensor, mask: torch.Tensor | None, generators: Sequence[torch.Generator]
) -> torch.Tensor | None:
    if mask is None or checkpoint.unet.config.in_channels != INPAINTING_CHANNELS:
        return None
    redrawn = (mask > 0.5).float()
    small = F.max_pool2d(redrawn, LATENT_FACTOR)
    return torch.cat([small, _latents(checkpoint, colours, generators, redrawn)], dim=1)


def _regions(regions: Sequence[np.ndarray | None], device: torch.device) -> torch.Tensor | None:
    given = [torch.from_numpy(region) for region in regions if region is not None]
    return torch.stack(given).unsqueeze(1).to(device) if given else None
