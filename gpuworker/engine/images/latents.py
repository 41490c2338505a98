"""What the denoiser is given of input pictures: their latents, where those are drawn anew, what it sees beside them.

Works on the prepared pictures of a whole pass. Pictures themselves are in ``init``, noise and schedules in ``sampling``.

Source: ``StableDiffusionProcessingImg2Img.init``, ``img2img_image_conditioning`` and ``txt2img_image_conditioning`` of
``modules/processing.py``, A1111 1.10.1.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from gpuworker.contract import Inpaint
from gpuworker.contract.recipe import LATENT_FACTOR
from gpuworker.engine.errors import InvalidSpecError
from gpuworker.engine.images.init import Prepared
from gpuworker.engine.images.pictures import values_of
from gpuworker.engine.images.soft_inpainting import SoftBlend
from gpuworker.engine.images.vae import posterior_mode
from gpuworker.engine.models.cache import ByteCache
from gpuworker.engine.models.loader import Checkpoint
from gpuworker.engine.models.precision import type_of
from gpuworker.engine.sampling.guidance import Blend, Mask

INPAINTING_CHANNELS = 9
EDITING_CHANNELS = 8
LATENT_NOISE, LATENT_NOTHING = 2, 3
DEFAULT_CACHE_BYTES = 64 * 1024**2
"""About a thousand pictures of 512×512."""


@dataclass(frozen=True, slots=True)
class GivenLatents:
    """Of the images of a pass, in their order; float32 on the VAE's device."""

    latents: torch.Tensor
    """Without noise, shape (images, channels, height, width)."""
    redrawn: torch.Tensor | None = None
    """1 where they are drawn anew, shape (images, 1, height, width); None is everywhere."""
    concat: torch.Tensor | None = None
    """What inpainting and editing checkpoints see beside the latents, shape (images, channels, height, width)."""
    masked: torch.Tensor | None = None
    """Which images have a mask, shape (images, 1, 1, 1); None is all or none."""

    def blend(self, inpaint: Inpaint | None, *, before: bool) -> Blend | None:
        """What keeps the protected part during the pass.

        Args:
            before: For samplers over timesteps: they blend what goes into the network.
        """
        if self.redrawn is None or inpaint is None:
            return None
        if inpaint.soft:
            return SoftBlend(inpaint.soft, self.latents, self.redrawn, before, self.masked)
        return Mask(self.latents, self.redrawn, before)


class PictureEncoder:
    """Pictures to latents; what was encoded before is remembered by its pixels and the VAE (H7)."""

    def __init__(self, max_bytes: int = DEFAULT_CACHE_BYTES) -> None:
        self._kept: ByteCache[torch.Tensor] = ByteCache(max_bytes, size_of=lambda latents: latents.nbytes)

    def encode(self, checkpoint: Checkpoint, values: torch.Tensor | np.ndarray, *, vae_key: str) -> torch.Tensor:
        """The likeliest latents, not scaled for the UNet: float32 on the VAE's device, shape (channels, height / 8, width / 8).

        Args:
            values: float32 of -1…1 on the CPU, shape (3, height, width).
            vae_key: Names the VAE's weights, and whatever else changes what it makes of a picture (tiling, say).
        """
        values = np.ascontiguousarray(values)
        key = (vae_key, str(type_of(checkpoint.vae)), values.shape, hashlib.blake2b(values.data).digest())
        return self._kept.get_or_make(key, lambda: posterior_mode(checkpoint.vae, torch.from_numpy(values)))


def given_latents(
    prepared: Sequence[Prepared],
    checkpoint: Checkpoint,
    encoder: PictureEncoder,
    *,
    vae_key: str,
    fill: int = 1,
    noise: torch.Tensor | None = None,
) -> GivenLatents:
    """Encode the pictures of a pass and what goes with them.

    Args:
        fill: A1111's masked content; ``LATENT_NOISE`` and ``LATENT_NOTHING`` act on the masked latents.
        noise: The first draw of each image's seed, without its variation, for ``LATENT_NOISE``; on any device.
    """
    size = prepared[0].height // LATENT_FACTOR, prepared[0].width // LATENT_FACTOR
    pictures = [values_of(item.picture) * 2 - 1 for item in prepared]
    modes = torch.stack([_of_size(encoder.encode(checkpoint, values, vae_key=vae_key), size) for values in pictures])
    latents = modes * checkpoint.latent_scale
    redrawn, masked = _masks(prepared, latents)
    if redrawn is not None and fill in (LATENT_NOISE, LATENT_NOTHING):
        latents = latents * (1 - redrawn)
        if fill == LATENT_NOISE and noise is not None:
            latents = latents + noise.to(latents) * redrawn
    concat = None
    if checkpoint.unet.config.in_channels == EDITING_CHANNELS:
        # QUIRK(A1111 1.10): what is edited is not scaled, as the network was trained.
        concat = modes
    elif checkpoint.unet.config.in_channels == INPAINTING_CHANNELS:
        seen = [
            _inpainting_concat(item, values, checkpoint, encoder, vae_key)
            for item, values in zip(prepared, pictures, strict=True)
        ]
        concat = torch.stack(seen)
    return GivenLatents(latents, redrawn, concat, masked)


def _masks(prepared: Sequence[Prepared], like: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    has_mask = [item.latent_mask is not None for item in prepared]
    if not any(has_mask):
        return None, None
    everywhere = np.ones(like.shape[2:], dtype=np.float32)
    masks = np.stack([everywhere if item.latent_mask is None else item.latent_mask for item in prepared])
    redrawn = torch.from_numpy(masks).unsqueeze(1).to(like)
    masked = None if all(has_mask) else torch.tensor(has_mask, device=like.device).view(-1, 1, 1, 1)
    return redrawn, masked


def _inpainting_concat(
    item: Prepared, values: np.ndarray, checkpoint: Checkpoint, encoder: PictureEncoder, vae_key: str
) -> torch.Tensor:
    """The mask at latent size and the latents of the picture without its masked part, shape (5, height, width)."""
    mask: np.ndarray = np.ones((1, item.height, item.width), dtype=np.float32)
    if item.mask is not None:
        mask = np.asarray(item.mask, dtype=np.float32)[None] / 255
        mask = np.around(mask) if item.rounds else mask
    size = item.height // LATENT_FACTOR, item.width // LATENT_FACTOR
    return inpainting_concat(
        values, mask, checkpoint, encoder, vae_key=vae_key, weight=item.settings.inpainting_mask_weight, size=size
    )


def inpainting_concat(
    values: np.ndarray,
    mask: np.ndarray,
    checkpoint: Checkpoint,
    encoder: PictureEncoder,
    *,
    vae_key: str,
    weight: float,
    size: tuple[int, int],
) -> torch.Tensor:
    """What a 9-channel network sees of one picture, shape (5, height, width).

    Args:
        values: The picture, float32, shape (3, height, width) in pixels.
        mask: 0…1, float32, shape (1, height, width) in pixels; of another size than the picture it is resized.
        weight: How far the masked part is taken away.
        size: Height and width in latents.
    """
    picture, masking = torch.from_numpy(values), torch.from_numpy(mask)
    over = masking if masking.shape[1:] == picture.shape[1:] else F.interpolate(masking[None], picture.shape[1:])[0]
    without = torch.lerp(picture, picture * (1.0 - over), weight)
    modes = _of_size(encoder.encode(checkpoint, without, vae_key=vae_key), size)
    small = F.interpolate(masking[None], size=size)[0].to(modes)
    return torch.cat([small, modes * checkpoint.latent_scale])


def concat_without_picture(
    checkpoint: Checkpoint, encoder: PictureEncoder, *, vae_key: str, width: int, height: int, images: int
) -> torch.Tensor | None:
    """What a network sees beside the latents when a pass has no picture: a grey one, all of it to be drawn.

    Args:
        width, height: As asked for; pixels.
    Returns:
        Shape (images, 5, height, width) in latents; None for networks that see nothing.
    Raises:
        InvalidSpecError: An editing checkpoint has nothing to edit.
    """
    channels = checkpoint.unet.config.in_channels
    if channels == EDITING_CHANNELS:
        message = "This checkpoint edits pictures; it needs one to start from."
        raise InvalidSpecError(message, field="init_images", value=None)
    if channels != INPAINTING_CHANNELS:
        return None
    grey = np.zeros((3, height, width), dtype=np.float32)
    everywhere = np.ones((1, height, width), dtype=np.float32)
    size = height // LATENT_FACTOR, width // LATENT_FACTOR
    concat = inpainting_concat(grey, everywhere, checkpoint, encoder, vae_key=vae_key, weight=1.0, size=size)
    return concat.unsqueeze(0).expand(images, -1, -1, -1)


def _of_size(latents: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resize mode 3: latents are resized where their picture was not."""
    if latents.shape[1:] == size:
        return latents
    return F.interpolate(latents[None], size=size, mode="bilinear")[0]
