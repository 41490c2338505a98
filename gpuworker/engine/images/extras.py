"""Extras: one picture enlarged, cropped, blended, its faces restored. What is written about it is ``gpuworker.contract.extras``.

Source: ``scripts/postprocessing_upscale.py`` and ``modules/postprocessing.py``, A1111 1.10.1.
"""

from __future__ import annotations

from collections.abc import Mapping

from PIL import Image

from gpuworker.contract import ExtrasRecipe, Picture
from gpuworker.contract.extras import CODEFORMER, GFPGAN, NO_UPSCALER, uses_second
from gpuworker.engine.images.faces import FaceRestorer, restored
from gpuworker.engine.images.upscale import Upscaler, upscale


def render_extras(
    recipe: ExtrasRecipe,
    picture: Image.Image,
    upscalers: Mapping[str, Upscaler],
    restorers: Mapping[str, FaceRestorer] | None = None,
) -> Picture:
    """Do what the recipe says to one picture.

    Args:
        picture: Turned upright. Other modes than RGB and RGBA become RGB; RGBA stays it where no network takes part.
        upscalers: By the names the recipe uses.
        restorers: Installed face restorers by name.
    Raises:
        InvalidSpecError: A side would have no pixel.
        ComponentMissingError: Face restoration is asked for and not installed.
        StopSeen: An upscaler saw the stop flag.
    """
    picture = picture if picture.mode in ("RGB", "RGBA") else picture.convert("RGB")
    if recipe.upscaler_1 != NO_UPSCALER:
        picture = _enlarged(recipe, picture, upscalers)
    installed = restorers or {}
    picture = restored(picture, GFPGAN, recipe.gfpgan_visibility, installed)
    picture = restored(picture, CODEFORMER, recipe.codeformer_visibility, installed, recipe.codeformer_weight)
    return Picture(picture.width, picture.height, picture.tobytes(), picture.mode)


def _enlarged(recipe: ExtrasRecipe, picture: Image.Image, upscalers: Mapping[str, Upscaler]) -> Image.Image:
    first = _with_one(recipe, picture, upscalers[recipe.upscaler_1])
    if not uses_second(recipe):
        return first
    second = _with_one(recipe, picture, upscalers[recipe.upscaler_2])
    return Image.blend(first, second.convert(first.mode), recipe.extras_upscaler_2_visibility)


def _with_one(recipe: ExtrasRecipe, picture: Image.Image, upscaler: Upscaler) -> Image.Image:
    if recipe.resize_mode == 0:
        return upscale(picture, recipe.upscaling_resize, upscaler)
    width, height = recipe.upscaling_resize_w, recipe.upscaling_resize_h
    enlarged = upscale(picture, max(width / picture.width, height / picture.height), upscaler)
    return _cropped(enlarged, width, height) if recipe.upscaling_crop else enlarged


def _cropped(picture: Image.Image, width: int, height: int) -> Image.Image:
    """Its middle, RGB.

    QUIRK(A1111 1.10): sides were floored to multiples of 8, so it may be smaller than asked for; the rest stays black.
    """
    canvas = Image.new("RGB", (width, height))
    canvas.paste(picture, (width // 2 - picture.width // 2, height // 2 - picture.height // 2))
    return canvas
