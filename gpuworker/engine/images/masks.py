"""Masks of inpainting as pictures (``L``): read, blurred, the region they ask for, what is put under them.

White is drawn anew. Nothing here knows latents but for the size of their mask.

Source: ``create_binary_mask`` and ``StableDiffusionProcessingImg2Img.init`` of ``modules/processing.py``, ``modules/masking.py``,
A1111 1.10.1.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageFilter, ImageOps

from gpuworker.contract import Inpaint

OPAQUE = (255, 255)
HALF_OPAQUE = 128
KERNEL_SIGMAS = 2.5
"""How far to each side a blur reaches."""
FILL_BLURS = ((256, 1), (64, 1), (16, 2), (4, 4), (2, 2), (0, 1))
"""Radius in pixels, and how often that layer is laid over the ones before."""


class Region(NamedTuple):
    """A box of pixels, as Pillow writes them."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def width(self) -> int:
        return self.right - self.left

    @property
    def height(self) -> int:
        return self.bottom - self.top


def mask_from(picture: Image.Image, inpaint: Inpaint) -> Image.Image:
    """The mask a stored picture stands for, inverted and blurred as asked for; ``L``.

    QUIRK(A1111 1.10): rounding cuts an alpha channel at its half, grey pictures keep their greys.
    """
    rounds = inpaint.round and inpaint.soft is None
    mask = _alpha_or_grey(picture, rounds=rounds)
    if inpaint.invert:
        mask = ImageOps.invert(mask)
    if inpaint.blur_x > 0:
        mask = _blurred(mask, inpaint.blur_x, across=True)
    if inpaint.blur_y > 0:
        mask = _blurred(mask, inpaint.blur_y, across=False)
    return mask


def _alpha_or_grey(picture: Image.Image, *, rounds: bool) -> Image.Image:
    if picture.mode != "RGBA":
        return picture.convert("L")
    alpha = picture.getchannel("A")
    if alpha.getextrema() == OPAQUE:
        return picture.convert("L")
    return alpha.point([255 * (value > HALF_OPAQUE) for value in range(256)]) if rounds else alpha


def _blurred(mask: Image.Image, sigma: int, *, across: bool) -> Image.Image:
    length = 2 * int(KERNEL_SIGMAS * sigma + 0.5) + 1
    kernel = (length, 1) if across else (1, length)
    return Image.fromarray(cv2.GaussianBlur(np.asarray(mask), kernel, sigma))


# --- only the masked part --------------------------------------------------------------------------------------------


def masked_region(mask: Image.Image, padding: int, width: int, height: int) -> Region | None:
    """What is rendered when only the masked part is: its box and some padding, in the proportions of ``width`` × ``height``.

    None where the mask is black all over.
    """
    box = mask.getbbox()
    if box is None:
        return None
    region = _padded(Region(*box), padding, mask.size)
    return _in_proportion(region, width / height, mask.size)


def _padded(region: Region, padding: int, size: tuple[int, int]) -> Region:
    left, top, right, bottom = region
    padded = Region(
        max(left - padding, 0), max(top - padding, 0), min(right + padding, size[0]), min(bottom + padding, size[1])
    )
    # A negative padding may leave nothing, which A1111 fails on.
    return padded if padded.width > 0 and padded.height > 0 else region


def _in_proportion(region: Region, ratio: float, size: tuple[int, int]) -> Region:
    """Widen or heighten towards the ratio, as far as the picture goes."""
    left, top, right, bottom = region
    if region.width / region.height > ratio:
        top, bottom = _stretched(top, bottom, int(region.width / ratio - region.height), size[1])
    else:
        left, right = _stretched(left, right, int(region.height * ratio - region.width), size[0])
    return Region(left, top, right, bottom)


def _stretched(start: int, end: int, by: int, limit: int) -> tuple[int, int]:
    """A span lengthened to both sides, pushed back into 0…limit and cut off there."""
    start, end = start - by // 2, end + by - by // 2
    over = max(end - limit, 0)
    start, end = start - over, end - over
    under = max(-start, 0)
    return start + under, min(end + under, limit)


# --- what is done with one -------------------------------------------------------------------------------------------


def doubled(mask: Image.Image) -> Image.Image:
    """Twice as white: the mask of the overlay where the whole picture is rendered."""
    return mask.point([min(2 * value, 255) for value in range(256)])


def latent_mask(mask: Image.Image, width: int, height: int, *, rounds: bool) -> np.ndarray:
    """1 where latents are drawn anew: float32, shape (height, width), in latents.

    QUIRK(A1111 1.10): made bicubic through 8-bit RGB, and a half is rounded down.
    """
    small = mask.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    values = np.asarray(small, dtype=np.float32)[:, :, 0] / 255
    return np.around(values) if rounds else values


def filled(picture: Image.Image, mask: Image.Image) -> Image.Image:
    """RGB, the masked part replaced by ever less blurred surroundings."""
    kept = holed(picture, mask)
    surroundings = Image.new("RGBA", picture.size)
    for radius, times in FILL_BLURS:
        layer = kept.filter(ImageFilter.GaussianBlur(radius)).convert("RGBA")
        for _ in range(times):
            surroundings.alpha_composite(layer)
    return surroundings.convert("RGB")


def holed(picture: Image.Image, mask: Image.Image) -> Image.Image:
    """The picture with the masked part transparent: ``RGBa``, colours multiplied by their opacity."""
    canvas = Image.new("RGBa", picture.size)
    canvas.paste(picture.convert("RGBA").convert("RGBa"), mask=ImageOps.invert(mask))
    return canvas
