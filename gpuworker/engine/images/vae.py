"""From latents to pixels and back, one image at a time, and the check that a picture is one (I12)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F

from gpuworker.contract import Picture
from gpuworker.engine.models.loader import Checkpoint
from gpuworker.engine.models.precision import type_of

Result = TypeVar("Result")
PREVIEW_LATENTS = 32
"""The longer side of what a preview is decoded from."""


class FlatPictureError(Exception):
    """The decoder gave no picture, in full precision neither."""


Finish = Callable[[np.ndarray], np.ndarray]
"""float32 of 0…1, shape (height, width, 3), to the same."""


def decode(
    vae: Any, latents: torch.Tensor, *, latent_scale: float, latent_shift: float = 0.0, finish: Finish | None = None
) -> torch.Tensor:
    """Decode one image's latents.

    Args:
        vae: ``AutoencoderKL``.
        latents: float32, shape (channels, height, width).
        finish: Done to the picture before its values become bytes.
    Returns:
        uint8 on the CPU, shape (height, width, 3). Values are cut off, not rounded, as A1111 does.
    Raises:
        FlatPictureError: Every pixel has one value, or some have none.
    """
    scaled = latents.unsqueeze(0) / latent_scale + latent_shift
    pixels = _pixels(vae, scaled, finish)
    if pixels is None and type_of(vae) != torch.float32:
        pixels = _in_full_precision(vae, lambda: _pixels(vae, scaled, finish))
    if pixels is None:
        raise FlatPictureError("The decoded picture is a single colour or holds values that are no numbers.")
    return pixels


def pixels_of(vae: Any, latents: torch.Tensor, *, latent_scale: float, latent_shift: float = 0.0) -> torch.Tensor:
    """As ``decode`` without its check: what lies between two passes may be anything."""
    scaled = latents.unsqueeze(0) / latent_scale + latent_shift
    decoded = vae.decode(scaled.to(type_of(vae)), return_dict=False)[0][0].float()
    return _as_bytes(decoded.nan_to_num())


def encoded(checkpoint: Checkpoint, picture: np.ndarray) -> torch.Tensor:
    """The latents of a picture.

    Args:
        picture: uint8, shape (height, width, 3).
    Returns:
        float32 on the VAE's device, shape (channels, height / 8, width / 8), scaled for the UNet.
    """
    values = torch.from_numpy(picture.astype(np.float32) / 255.0).permute(2, 0, 1) * 2 - 1
    return posterior_mode(checkpoint.vae, values) * checkpoint.latent_scale


def posterior_mode(vae: Any, values: torch.Tensor) -> torch.Tensor:
    """What the encoder holds likeliest. A1111 draws from the posterior instead, with noise no seed decides.

    Args:
        values: float32 of -1…1, shape (3, height, width).
    Returns:
        float32 on the VAE's device, shape (channels, height / 8, width / 8), not scaled.
    """
    mode = _mode(vae, values)
    if type_of(vae) != torch.float32 and not bool(torch.isfinite(mode).all()):
        return _in_full_precision(vae, lambda: _mode(vae, values))
    return mode


def _mode(vae: Any, values: torch.Tensor) -> torch.Tensor:
    return vae.encode(values.unsqueeze(0).to(vae.device, type_of(vae))).latent_dist.mode()[0].float()


def posterior_sample(vae: Any, values: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """As ``posterior_mode``, but one draw, as A1111 takes it where a seed decides."""

    def sample() -> torch.Tensor:
        found = vae.encode(values.unsqueeze(0).to(vae.device, type_of(vae))).latent_dist
        noise = torch.randn(found.mean.shape, generator=generator)
        return (found.mean + found.std * noise.to(found.mean))[0].float()

    drawn = sample()
    if type_of(vae) != torch.float32 and not bool(torch.isfinite(drawn).all()):
        return _in_full_precision(vae, sample)
    return drawn


def previews(vae: Any, latents: torch.Tensor, *, latent_scale: float, latent_shift: float = 0.0) -> list[Picture]:
    """Small pictures of what the images of a pass are becoming.

    Args:
        latents: shape (images, channels, height, width).
    """
    longest = max(latents.shape[2:])
    if longest > PREVIEW_LATENTS:
        latents = F.interpolate(latents, scale_factor=PREVIEW_LATENTS / longest, mode="area")
    pictures = [pixels_of(vae, image, latent_scale=latent_scale, latent_shift=latent_shift) for image in latents]
    return [Picture(pixels.shape[1], pixels.shape[0], pixels.numpy().tobytes()) for pixels in pictures]


def _as_bytes(decoded: torch.Tensor, finish: Finish | None = None) -> torch.Tensor:
    """-1…1 of shape (3, height, width) as uint8 of shape (height, width, 3) on the CPU, cut off as A1111 does."""
    unit = torch.clamp((decoded + 1.0) / 2.0, min=0.0, max=1.0).permute(1, 2, 0)
    if finish:
        unit = torch.from_numpy(np.ascontiguousarray(finish(unit.cpu().numpy())))
    return (255.0 * unit).to(torch.uint8).cpu().contiguous()


def _pixels(vae: Any, scaled: torch.Tensor, finish: Finish | None) -> torch.Tensor | None:
    decoded = vae.decode(scaled.to(type_of(vae)), return_dict=False)[0][0].float()
    if not bool(torch.isfinite(decoded).all()):
        return None
    pixels = _as_bytes(decoded, finish)
    return None if bool((pixels == pixels[0, 0]).all()) else pixels


def _in_full_precision(vae: Any, work: Callable[[], Result]) -> Result:
    """Some VAEs overflow in half precision."""
    dtype = type_of(vae)
    vae.to(torch.float32)
    try:
        return work()
    finally:
        vae.to(dtype)
