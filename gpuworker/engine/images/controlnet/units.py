"""A control unit before and after its pass: which picture it shows, as which map, at which size; what it does when all is drawn.

Pictures only, one image at a time; tensors for the networks are made in ``hints``.

Source: sd-webui-controlnet 1.1.455, ``scripts/controlnet.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from gpuworker.contract import Attachment, ControlUnit, DetectRecipe, Img2Img, Inpaint, InputPicture, Picture
from gpuworker.contract.control_modules import BY_NAME, NONE
from gpuworker.contract.outcome import CONTROL_MAP
from gpuworker.engine.errors import InvalidPictureError
from gpuworker.engine.images.controlnet.fitting import FILL, JUST, RESIZE_MODES, fitted
from gpuworker.engine.images.controlnet.preprocess import detected, plain_name, rgb
from gpuworker.engine.images.masks import mask_from, masked_region
from gpuworker.engine.images.pictures import open_picture
from gpuworker.engine.images.resize import FILL as FIT_AND_FILL
from gpuworker.engine.images.resize import lanczos, resized

SCRIBBLED = (5, 250)
"""A mask between these values somewhere, on a unit that does not inpaint, is what was drawn: it is taken for the picture."""
BLEND_PX = 7
"""How softly what an inpainting unit protects is laid over the finished picture."""
Size = tuple[int, int]
"""Height, width in pixels."""


class NoControlError(Exception):
    """The image is drawn without any of its units; the message says why.

    QUIRK(sd-webui-controlnet 1.1.455): one unit that cannot be used takes all of them with it, and nobody is told.
    """


@dataclass(frozen=True, slots=True)
class PreparedUnit:
    """A unit's maps for the passes of an image, at their sizes."""

    unit: ControlUnit
    first: np.ndarray
    """uint8, or float32 of 0…255 for inpainting modules; shape (height, width, 3), or 4 with a mask."""
    second: np.ndarray | None = None
    """Of the hires pass."""

    def map_of(self, *, hires: bool) -> np.ndarray:
        return self.second if hires and self.second is not None else self.first

    def attachments(self) -> list[Attachment]:
        """The maps for people to see, the largest first."""
        if not self.unit.save_detected_map:
            return []
        return [Attachment(CONTROL_MAP, _shown(one)) for one in (self.second, self.first) if one is not None]

    def finished(self, pixels: np.ndarray) -> np.ndarray:
        """What the unit does to the decoded picture: float32 of 0…1, shape (height, width, 3)."""
        final = self.first if self.second is None else self.second
        if final.shape[:2] != pixels.shape[:2]:
            return pixels
        if self.unit.module == "inpaint_only":
            return _protected(pixels, final)
        if self.unit.module.startswith("recolor_"):
            return _recoloured(pixels, final[:, :, 0], luminance=self.unit.module == "recolor_luminance")
        return pixels


def prepare_unit(
    unit: ControlUnit,
    *,
    path_of: Callable[[InputPicture], Path],
    img2img: Img2Img | None,
    canvas: Size,
    hires_canvas: Size | None,
    seed: int,
) -> PreparedUnit:
    """Make the unit's maps.

    Args:
        canvas, hires_canvas: Of the first and the second pass.
        seed: Of modules that draw.
    Raises:
        InvalidPictureError: A picture cannot be read, or the mask is of another size.
        InvalidSpecError: The module is not known.
        NoControlError: There is no picture to make a map of, or nothing says where the unit acts.
    """
    if unit.effective_region_mask and open_picture(path_of(unit.effective_region_mask)).mode not in ("RGB", "RGBA"):
        raise NoControlError("A region mask in grey switches control off; it has to be in RGB.")
    if unit.weights is None and not is_model_free(unit):
        named = "No ControlNet is named" if unit.model == NONE else f"ControlNet {unit.model!r} is not known"
        raise NoControlError(f"{named}; the image is drawn without control.")
    unit = replace(unit, module=plain_name(unit.module))
    inpaint = img2img.inpaint if img2img else None
    if unit.module == "inpaint_only" and inpaint:
        unit = replace(unit, module="inpaint")  # img2img protects the rest already
    picture, resize_mode = _picture_of(unit, img2img, path_of)
    if inpaint and inpaint.full_res and unit.inpaint_crop_input_image and not unit.module.startswith("reference"):
        picture = _masked_part(picture, inpaint, resize_mode, canvas, path_of)
    resolution = _perfect_resolution(picture, canvas, resize_mode) if unit.pixel_perfect else int(unit.processor_res)
    image = detected(
        unit.module,
        picture,
        resolution=resolution,
        threshold_a=unit.threshold_a,
        threshold_b=unit.threshold_b,
        seed=seed,
    )
    image = image.astype(np.float32) if inpaints(unit) else rgb(image)
    second = fitted(image, resize_mode, *hires_canvas) if hires_canvas else None
    return PreparedUnit(unit, fitted(image, resize_mode, *canvas), second)


def control_map(recipe: DetectRecipe, path_of: Callable[[InputPicture], Path]) -> Picture:
    """What a module makes of a picture, for people to see.

    Raises:
        InvalidPictureError: A picture cannot be read, or the mask is of another size.
    """
    picture = _array(open_picture(path_of(recipe.picture)))
    if recipe.mask and inpaints(recipe):
        mask = _array(open_picture(path_of(recipe.mask)))[:, :, 0]
        picture = _with(rgb(picture), _of_same_size(mask, picture))
    made = detected(
        recipe.module,
        picture,
        resolution=int(recipe.processor_res),
        threshold_a=recipe.threshold_a,
        threshold_b=recipe.threshold_b,
    )
    return _shown(made if inpaints(recipe) or made.shape[2] != 1 else rgb(made), masked=inpaints(recipe))


def is_model_free(unit: ControlUnit) -> bool:
    """Whether the module needs no network; what the unit names all the same is passed over."""
    return (module := BY_NAME.get(unit.module)) is not None and module.model_free


def inpaints(unit: ControlUnit | DetectRecipe) -> bool:
    return "inpaint" in unit.module


def region_of(unit: ControlUnit, path_of: Callable[[InputPicture], Path]) -> np.ndarray | None:
    """Where the unit acts: float32 of 0…1, shape (height, width)."""
    if unit.effective_region_mask is None:
        return None
    return _array(open_picture(path_of(unit.effective_region_mask)))[:, :, 0].astype(np.float32) / 255


# --- the picture -----------------------------------------------------------------------------------------------------


def _picture_of(
    unit: ControlUnit, img2img: Img2Img | None, path_of: Callable[[InputPicture], Path]
) -> tuple[np.ndarray, str]:
    """The picture the module sees, with its mask for inpainting modules, and how its map is resized."""
    if unit.picture is not None:
        picture = rgb(_array(open_picture(path_of(unit.picture))))
        mask = rgb(_array(open_picture(path_of(unit.mask))))[:, :, 0] if unit.mask else np.zeros_like(picture[:, :, 0])
        mask = _of_same_size(mask, picture)
        return (_with(picture, mask) if inpaints(unit) else _without_scribble(picture, mask)), unit.resize_mode
    if unit.mask is not None:
        raise NoControlError("A control unit has a mask without a picture; the image is drawn without control.")
    if img2img is None:
        raise NoControlError("A control unit has no picture; the image is drawn without control.")
    picture = rgb(_array(open_picture(path_of(img2img.picture))))
    resize_mode = RESIZE_MODES[img2img.resize_mode] if img2img.resize_mode < len(RESIZE_MODES) else JUST
    if not inpaints(unit):
        return picture, resize_mode
    blank = np.zeros_like(picture[:, :, 0])
    mask = np.asarray(_mask_of(img2img.inpaint, path_of)) if img2img.inpaint else blank
    return _with(picture, mask if mask.shape == blank.shape else blank), resize_mode


def _of_same_size(mask: np.ndarray, picture: np.ndarray) -> np.ndarray:
    """Raises: InvalidPictureError: It is not."""
    if mask.shape != picture.shape[:2]:
        sizes = f"{mask.shape[1]}×{mask.shape[0]} pixels, its picture {picture.shape[1]}×{picture.shape[0]}"
        raise InvalidPictureError(f"The mask of a control picture has {sizes}.")
    return mask


def _array(picture: Image.Image) -> np.ndarray:
    """uint8, shape (height, width, channels)."""
    known = (
        picture if picture.mode in ("L", "RGB", "RGBA") else picture.convert("RGBA" if "A" in picture.mode else "RGB")
    )
    values = np.asarray(known)
    return values[:, :, None] if values.ndim == 2 else values


def _with(picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return np.concatenate([picture, mask[:, :, None]], axis=2)


def _without_scribble(picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    low, high = SCRIBBLED
    return picture if (mask <= low).all() or (mask >= high).all() else rgb(mask)


def _mask_of(inpaint: Inpaint, path_of: Callable[[InputPicture], Path]) -> Image.Image:
    return mask_from(open_picture(path_of(inpaint.mask)).convert("L"), inpaint)


def _masked_part(
    picture: np.ndarray,
    inpaint: Inpaint,
    resize_mode: str,
    canvas: Size,
    path_of: Callable[[InputPicture], Path],
) -> np.ndarray:
    """The part that inpainting "only masked" renders, channel by channel."""
    height, width = canvas
    mask = _mask_of(inpaint, path_of)
    region = masked_region(mask, inpaint.padding, width, height)
    if region is None:
        return picture
    how = RESIZE_MODES.index(resize_mode)
    channels = []
    for channel in range(picture.shape[2]):
        whole = resized(how, Image.fromarray(picture[:, :, channel]), *mask.size, lanczos)
        part = resized(FIT_AND_FILL, whole.crop(region), width, height, lanczos)
        channels.append(np.asarray(part)[:, :, 0])
    return np.stack(channels, axis=2)


def _perfect_resolution(picture: np.ndarray, canvas: Size, resize_mode: str) -> int:
    """The short side at which no pixel is lost and none is made up."""
    height, width = picture.shape[:2]
    factors = canvas[0] / height, canvas[1] / width
    return int(np.round((min(factors) if resize_mode == FILL else max(factors)) * min(height, width)))


# --- the finished picture --------------------------------------------------------------------------------------------


def _shown(image: np.ndarray, *, masked: bool = True) -> Picture:
    if masked and image.shape[2] == 4:
        mask = 255 - image[:, :, 3:] // 2  # half of what is drawn anew shines through
        image = np.concatenate([image[:, :, :3], mask], axis=2)
    values = np.ascontiguousarray(image.clip(0, 255).astype(np.uint8))
    return Picture(values.shape[1], values.shape[0], values.tobytes(), "RGBA" if values.shape[2] == 4 else "RGB")


def _protected(pixels: np.ndarray, final: np.ndarray) -> np.ndarray:
    grown = cv2.dilate(
        np.ascontiguousarray(final[:, :, 3]) / np.float32(255), np.ones((BLEND_PX, BLEND_PX), dtype=np.uint8)
    )
    mask = cv2.blur(grown, (BLEND_PX, BLEND_PX))[:, :, None]
    return (mask * pixels.clip(0, 1) + (1 - mask) * (final[:, :, :3] / np.float32(255))).clip(0, 1)


def _recoloured(pixels: np.ndarray, lightness: np.ndarray, *, luminance: bool) -> np.ndarray:
    """The map's lightness under the picture's colours, through eight bits as the extension does it."""
    there, back = (cv2.COLOR_RGB2LAB, cv2.COLOR_LAB2RGB) if luminance else (cv2.COLOR_RGB2HSV, cv2.COLOR_HSV2RGB)
    values = cv2.cvtColor((pixels * 255).clip(0, 255).astype(np.uint8), there)
    values[:, :, 0 if luminance else 2] = (lightness.astype(np.float32) / 255 * 255).clip(0, 255).astype(np.uint8)
    return (cv2.cvtColor(values, back).astype(np.float32) / np.float32(255)).clip(0, 1)


def finished_by(units: Sequence[PreparedUnit], pixels: np.ndarray) -> np.ndarray:
    for unit in units:
        pixels = unit.finished(pixels)
    return pixels
