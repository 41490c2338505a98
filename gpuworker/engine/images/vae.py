"""From latents to pixels, one image at a time, and the check that a picture is one (I12)."""

from __future__ import annotations

from typing import Any

import torch


class FlatPictureError(Exception):
    """The decoder gave no picture, in full precision neither."""


def decode(vae: Any, latents: torch.Tensor, *, latent_scale: float) -> torch.Tensor:
    """Decode one image's latents.

    Args:
        vae: ``AutoencoderKL``.
        latents: float32, shape (channels, height, width).
    Returns:
        uint8 on the CPU, shape (height, width, 3). Values are cut off, not rounded, as A1111 does.
    Raises:
        FlatPictureError: Every pixel has one value, or some have none.
    """
    scaled = latents.unsqueeze(0) / latent_scale
    pixels = _pixels(vae, scaled)
    if pixels is None and vae.dtype != torch.float32:
        pixels = _pixels_in_full_precision(vae, scaled)
    if pixels is None:
        raise FlatPictureError("The decoded picture is a single colour or holds values that are no numbers.")
    return pixels


def _pixels(vae: Any, scaled: torch.Tensor) -> torch.Tensor | None:
    decoded = vae.decode(scaled.to(vae.dtype), return_dict=False)[0][0].float()
    if not bool(torch.isfinite(decoded).all()):
        return None
    decoded = torch.clamp((decoded + 1.0) / 2.0, min=0.0, max=1.0)
    pixels = (255.0 * decoded.permute(1, 2, 0)).to(torch.uint8).cpu().contiguous()
    return None if bool((pixels == pixels[0, 0]).all()) else pixels


def _pixels_in_full_precision(vae: Any, scaled: torch.Tensor) -> torch.Tensor | None:
    """Some SD 1.x decoders overflow in half precision."""
    dtype = vae.dtype
    vae.to(torch.float32)
    try:
        return _pixels(vae, scaled)
    finally:
        vae.to(dtype)
