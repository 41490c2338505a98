"""A1111's soft inpainting: a blend that loosens with the noise, and a mask for the overlay that follows what changed.

Source: ``extensions-builtin/soft-inpainting``, A1111 1.10.1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageFilter

from gpuworker.contract import SoftInpainting
from gpuworker.engine.images.masks import Region
from gpuworker.engine.images.overlay import uncropped
from gpuworker.engine.images.resize import FILL, Scale, lanczos, resized

EDGE_BLUR = 4
KERNEL_RADIUS = 2
KERNEL_DEVIATION = 1.5
NARROWEST_WINDOW = 1.0
"""In weights of the kernel, whose middle weighs 1."""


# --- while sampling --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SoftBlend:
    """Mixes what is drawn with the picture's latents: the more, the less noise is left."""

    soft: SoftInpainting
    picture: torch.Tensor
    """Latents to keep, shape (images, channels, height, width)."""
    redrawn: torch.Tensor
    """0…1, shape (images, 1, height, width)."""
    before: bool
    masked: torch.Tensor | None = None
    """Which images have a mask at all, shape (images, 1, 1, 1); None is all of them."""

    def __call__(self, latents: torch.Tensor, level: torch.Tensor | None) -> torch.Tensor:
        """QUIRK(A1111 1.10): the level of timestep samplers is taken for a sigma."""
        if level is None:
            return latents
        exponent = float(level**self.soft.power * self.soft.scale)
        blended = _blended(self.picture, latents, self.redrawn.pow(exponent), self.soft.detail)
        return blended if self.masked is None else torch.where(self.masked, blended, latents)


def _blended(start: torch.Tensor, end: torch.Tensor, share: torch.Tensor, detail: float) -> torch.Tensor:
    """Vectors mixed linearly, their lengths by a power mean: the longer one counts for more."""
    mixed = start * (1 - share) + end * share
    # In float64: a detail of 32 would leave the range of float32.
    length = mixed.norm(dim=1, keepdim=True).double() + 0.00001
    from_start = start.norm(dim=1, keepdim=True).double() ** detail * (1 - share)
    from_end = end.norm(dim=1, keepdim=True).double() ** detail * share
    wanted = (from_start + from_end) ** (1 / detail)
    return mixed * (wanted / length).to(mixed.dtype)


def distances(latents: torch.Tensor, picture: torch.Tensor) -> np.ndarray:
    """How far each latent moved from the picture's: float32, shape (images, height, width)."""
    return (latents - picture).norm(dim=1).float().cpu().numpy()


# --- after decoding --------------------------------------------------------------------------------------------------


def adaptive_mask(soft: SoftInpainting, distance: np.ndarray, latent_mask: np.ndarray, canvas: Canvas) -> Image.Image:
    """The overlay's mask, white where the picture changed enough; ``L``, of the size of the picture it is for.

    Args:
        distance: Of one image.
        latent_mask: 0…1, of the same shape.
    """
    wide = weighted_window(distance, 0.9, 1.0)
    calm = weighted_window(wide, 0.25, 0.75)
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = calm / (soft.difference_threshold * _tolerance(soft, latent_mask))
        kept = 1 / (1 + relative**soft.difference_contrast)
    values = np.nan_to_num(255.0 * (1 - _smootherstep(kept)))
    return canvas.placed(Image.fromarray(values.astype(np.uint8)))


@dataclass(frozen=True, slots=True)
class Canvas:
    """Where a mask that was made of latents belongs."""

    width: int
    """Of the rendered picture, as asked for."""
    height: int
    whole: tuple[int, int]
    """Width and height of the caller's picture."""
    region: Region | None
    scale: Scale

    def placed(self, mask: Image.Image) -> Image.Image:
        large = resized(FILL, mask, self.width, self.height, self.scale).convert("L")
        smooth = large.filter(ImageFilter.GaussianBlur(EDGE_BLUR))
        if self.region:
            return uncropped(smooth, self.whole, self.region, self.scale).convert("L")
        return smooth if smooth.size == self.whole else lanczos(smooth, *self.whole)


def _tolerance(soft: SoftInpainting, latent_mask: np.ndarray) -> np.ndarray:
    """The distance at which half of the picture shows, before the threshold scales it; float32.

    torch's power, as in A1111: numpy's may end in another last digit.
    """
    mask = torch.from_numpy(latent_mask).clamp(0, 1)
    protected = 1 - mask ** (soft.scale / 2)
    share = 0.5 * (1 - soft.mask_influence) + protected * soft.mask_influence
    return (share / (1.00001 - share)).numpy()


def _smootherstep(values: np.ndarray) -> np.ndarray:
    return values * values * values * (values * (6 * values - 15) + 10)


def weighted_window(picture: np.ndarray, low: float, high: float) -> np.ndarray:
    """For each place the mean of a window of its neighbours sorted by value, each as wide as the kernel weighs it.

    Args:
        picture: float32, shape (height, width).
        low, high: The window's ends as shares of the neighbours' weight; between a median and a maximum filter.
    """
    values, weights = _neighbours(picture)
    order = np.argsort(values, axis=0, kind="stable")
    values, weights = np.take_along_axis(values, order, 0), np.take_along_axis(weights, order, 0)
    ends = np.cumsum(weights, axis=0)
    starts, total = ends - weights, ends[-1]
    starts[1:] = ends[:-1]
    first, last = _window(total, low, high)
    overlap = np.clip(np.minimum(last, ends) - np.maximum(first, starts), 0, None)
    return ((values * overlap).sum(axis=0) / overlap.sum(axis=0)).astype(np.float32)


def _window(total: np.ndarray, low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    """The window's ends in weights, no narrower than ``NARROWEST_WINDOW`` and inside of 0…total."""
    first, last = total * low, total * high
    narrow = last - first < NARROWEST_WINDOW
    middle = (first + last) / 2
    wide_first, wide_last = middle - NARROWEST_WINDOW / 2, middle + NARROWEST_WINDOW / 2
    over = wide_last > total
    wide_first, wide_last = np.where(over, total - NARROWEST_WINDOW, wide_first), np.where(over, total, wide_last)
    under = wide_first < 0
    wide_first, wide_last = np.where(under, 0, wide_first), np.where(under, NARROWEST_WINDOW, wide_last)
    return np.where(narrow, wide_first, first), np.where(narrow, wide_last, last)


def _neighbours(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values and weights around each place, shape (places of the kernel, height, width); beside the picture nothing weighs."""
    kernel, radius = _kernel(), KERNEL_RADIUS
    around = np.pad(picture, radius)
    inside = np.pad(np.ones_like(picture), radius)
    size = 2 * radius + 1
    height, width = picture.shape
    places = [np.s_[row : row + height, column : column + width] for row in range(size) for column in range(size)]
    values = np.stack([around[place] for place in places])
    weights = np.stack([inside[place] * weight for place, weight in zip(places, kernel.flat, strict=True)])
    return values, weights


def _kernel() -> np.ndarray:
    """A bell that reaches zero one place beyond its edge."""

    def bell(squared: float) -> float:
        return math.exp(-squared / KERNEL_DEVIATION**2)

    zero = bell((KERNEL_RADIUS + 1.0) ** 2)
    reach = range(-KERNEL_RADIUS, KERNEL_RADIUS + 1)
    rows = [[max(0.0, (bell(row**2 + column**2) - zero) * (1 / (1 - zero))) for column in reach] for row in reach]
    return np.array(rows)
