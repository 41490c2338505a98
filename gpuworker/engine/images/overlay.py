"""What of the caller's picture comes back over the rendered one, and the pictures of the mask that may come along.

Source: ``apply_overlay``, ``uncrop`` and the end of ``process_images_inner`` of ``modules/processing.py``, A1111 1.10.1.
"""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from gpuworker.contract import Attachment, Settings
from gpuworker.contract.outcome import MASK_COMPOSITE
from gpuworker.engine.images.masks import Region, holed
from gpuworker.engine.images.pictures import handed_back
from gpuworker.engine.images.resize import CROP, FILL, Scale, resized


@dataclass(frozen=True, slots=True)
class Overlay:
    """The part of the caller's picture that stays."""

    picture: Image.Image
    """The whole of it, ``RGB``."""
    mask: Image.Image
    """``L``, of the same size: where it is white the rendered picture is seen."""
    region: Region | None
    """Where in it the rendered picture belongs; None is all over."""

    def laid_over(self, rendered: Image.Image, scale: Scale) -> tuple[Image.Image, Image.Image]:
        """The picture with what stays over it, RGB, and the rendered one alone in its place."""
        placed = uncropped(rendered, self.picture.size, self.region, scale) if self.region else rendered
        whole = placed.convert("RGBA")
        whole.alpha_composite(holed(self.picture, self.mask).convert("RGBA"))
        return whole.convert("RGB"), placed


def uncropped(picture: Image.Image, size: tuple[int, int], region: Region, scale: Scale) -> Image.Image:
    """``RGBA`` of that size, the picture in its region, nothing elsewhere."""
    canvas = Image.new("RGBA", size)
    canvas.paste(resized(CROP, picture, region.width, region.height, scale), (region.left, region.top))
    return canvas


def pictures_of_mask(
    mask: Image.Image, rendered: Image.Image, size: tuple[int, int], settings: Settings, scale: Scale
) -> list[Attachment]:
    """The mask and the masked part of the rendered picture, where the settings ask for them.

    Args:
        rendered: As ``Overlay.laid_over`` placed it.
        size: Of the finished picture.
    """
    made = []
    if settings.return_mask:
        made.append(Attachment("mask", handed_back(mask.convert("RGB"))))
    if settings.return_mask_composite:
        seen = resized(FILL, mask, *size, scale).convert("L")
        part = Image.composite(rendered.convert("RGBA").convert("RGBa"), Image.new("RGBa", size), seen)
        made.append(Attachment(MASK_COMPOSITE, handed_back(part.convert("RGBA"))))
    return made
