"""Img2img without its sampling: what a stored picture and its mask become before a pass, and a decoded picture after it.

Pictures only, one at a time; their latents are in ``latents``.

Source: ``StableDiffusionProcessingImg2Img.init`` and the end of ``process_images_inner`` of ``modules/processing.py``,
A1111 1.10.1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from gpuworker.contract import Attachment, Img2Img, Inpaint, InputPicture, Picture, Settings, SoftInpainting
from gpuworker.contract.recipe import LATENT_FACTOR
from gpuworker.engine.errors import InvalidPictureError
from gpuworker.engine.images.colours import corrected, lab_of
from gpuworker.engine.images.masks import Region, doubled, filled, latent_mask, mask_from, masked_region
from gpuworker.engine.images.overlay import Overlay, pictures_of_mask
from gpuworker.engine.images.pictures import flattened, handed_back, open_picture
from gpuworker.engine.images.resize import FILL, LATENT, Scale, lanczos, resized
from gpuworker.engine.images.soft_inpainting import Canvas, adaptive_mask

ORIGINAL = 1
"""Of A1111's four masked contents the one that leaves pixels and latents alone."""
BLANK_MASK = "The mask is blank, so the whole picture was redrawn instead of only its masked part."


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """An input picture on its way through a pass."""

    picture: Image.Image
    """What is encoded, RGB. Of the pass' size, or of its own where latents are resized instead."""
    width: int
    """Of the pass, as asked for; pixels."""
    height: int
    settings: Settings
    scale: Scale
    redrawn: Image.Image | None = None
    """What is drawn anew, where that is not the mask; of any size."""
    mask: Image.Image | None = None
    """``L``, of the pass' size: white is drawn anew. None where there is none, or a blank one."""
    latent_mask: np.ndarray | None = None
    """float32, shape (height, width) in latents; 1 is drawn anew."""
    rounds: bool = True
    """Whether the mask counts as black and white."""
    overlay: Overlay | None = None
    soft: SoftInpainting | None = None
    colours: np.ndarray | None = None
    """What the finished picture's colours are matched to."""
    warnings: tuple[str, ...] = ()

    def finish(self, pixels: np.ndarray, distance: np.ndarray | None = None) -> tuple[Picture, list[Attachment]]:
        """What a decoded picture becomes.

        Args:
            pixels: uint8, shape (height, width, 3).
            distance: Of soft inpainting: how far its latents moved from the picture's, float32, shape (height, width).
        """
        overlay = self._overlay(distance)
        if overlay is None and self.colours is None:
            return Picture(pixels.shape[1], pixels.shape[0], pixels.tobytes()), []
        rendered = Image.fromarray(pixels)
        if self.colours is not None:
            rendered = corrected(rendered, self.colours)
        if overlay is None:
            return handed_back(rendered), []
        # QUIRK(A1111 1.10): soft inpainting does not ask whether overlays are wanted.
        if self.settings.overlay_inpaint or overlay is not self.overlay:
            finished, rendered = overlay.laid_over(rendered, self.scale)
        else:
            finished = rendered
        return handed_back(finished), pictures_of_mask(overlay.mask, rendered, finished.size, self.settings, self.scale)

    def _overlay(self, distance: np.ndarray | None) -> Overlay | None:
        overlay = self.overlay
        if overlay is None or self.soft is None or self.latent_mask is None or distance is None:
            return overlay
        canvas = Canvas(self.width, self.height, overlay.picture.size, overlay.region, self.scale)
        return replace(overlay, mask=adaptive_mask(self.soft, distance, self.latent_mask, canvas))


def prepare(
    given: Img2Img,
    *,
    path_of: Callable[[InputPicture], Path],
    width: int,
    height: int,
    settings: Settings,
    scale: Scale = lanczos,
) -> Prepared:
    """Bring an input picture and its mask to the size of the pass.

    Args:
        width, height: As asked for; pixels.
        scale: Enlarges pictures; masks (``L``) are to be resized by Lanczos.
    Raises:
        InvalidPictureError: A picture cannot be read, or is too small to be encoded as it is.
        InvalidSpecError: The background is no colour.
    """
    picture = flattened(open_picture(path_of(given.picture)), settings.img2img_background_color)
    plain = Prepared(picture=picture, width=width, height=height, settings=settings, scale=scale)
    if given.inpaint is None:
        return _with_colours(_resized(plain, given))
    mask = mask_from(open_picture(path_of(given.inpaint.mask)), given.inpaint)
    if given.inpaint.latent_mask:
        plain = replace(plain, redrawn=open_picture(path_of(given.inpaint.latent_mask)).convert("L"))
    if not given.inpaint.full_res:
        return _with_colours(_inpainted(plain, given, given.inpaint, mask))
    region = masked_region(mask, given.inpaint.padding, width, height)
    if region is None:
        return _with_colours(replace(_resized(plain, given), warnings=(BLANK_MASK,)))
    return _with_colours(_masked_part(plain, given, given.inpaint, mask, region))


def _resized(plain: Prepared, given: Img2Img) -> Prepared:
    if given.resize_mode == LATENT:
        if min(plain.picture.size) < LATENT_FACTOR:
            size = f"{plain.picture.width}×{plain.picture.height}"
            raise InvalidPictureError(
                f"A picture of {size} pixels cannot be resized as latents; those stand for {LATENT_FACTOR} pixels each."
            )
        return plain
    picture = resized(given.resize_mode, plain.picture, plain.width, plain.height, plain.scale)
    return replace(plain, picture=picture)


def _inpainted(plain: Prepared, given: Img2Img, inpaint: Inpaint, mask: Image.Image) -> Prepared:
    """The whole picture is rendered."""
    ready = _resized(plain, given)
    mask = resized(given.resize_mode, mask, plain.width, plain.height).convert("L")
    over = _of_size(doubled(mask), ready.picture.size, given.resize_mode)
    return _masked(ready, inpaint, mask, Overlay(ready.picture, over, None))


def _masked_part(plain: Prepared, given: Img2Img, inpaint: Inpaint, mask: Image.Image, region: Region) -> Prepared:
    """Only a region is rendered, at the size of the pass.

    QUIRK(A1111 1.10): the region is counted in pixels of the mask, of whatever size the picture is.
    """
    width, height = plain.width, plain.height
    over = _of_size(mask, plain.picture.size, given.resize_mode)
    part = resized(FILL, plain.picture.crop(region), width, height, plain.scale)
    part_mask = resized(FILL, mask.crop(region), width, height).convert("L")
    return _masked(replace(plain, picture=part), inpaint, part_mask, Overlay(plain.picture, over, region))


def _masked(ready: Prepared, inpaint: Inpaint, mask: Image.Image, overlay: Overlay) -> Prepared:
    rounds = inpaint.round and inpaint.soft is None
    picture, redrawn = ready.picture, ready.redrawn or mask
    if inpaint.fill != ORIGINAL:
        picture = filled(picture, _of_size(redrawn, picture.size, FILL))
    return replace(
        ready,
        picture=picture,
        mask=mask,
        latent_mask=latent_mask(redrawn, ready.width // LATENT_FACTOR, ready.height // LATENT_FACTOR, rounds=rounds),
        rounds=rounds,
        overlay=overlay,
        soft=inpaint.soft,
    )


def _of_size(mask: Image.Image, size: tuple[int, int], mode: int) -> Image.Image:
    return mask if mask.size == size else resized(mode, mask, *size).convert("L")


def _with_colours(ready: Prepared) -> Prepared:
    """QUIRK(A1111 1.10): what is filled under a mask takes part."""
    return replace(ready, colours=lab_of(ready.picture)) if ready.settings.img2img_color_correction else ready
