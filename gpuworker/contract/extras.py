"""What A1111 writes about an extras picture: the ``postprocessing`` text of its file and the ``html_info`` of the answer.

Source: ``modules/postprocessing.py``, ``scripts/postprocessing_*.py``, ``quote`` of ``modules/infotext_utils.py``, A1111 1.10.1.
"""

from __future__ import annotations

import html
import json

from gpuworker.contract.recipe import ExtrasRecipe, InputPicture

NO_UPSCALER = "None"
GFPGAN, CODEFORMER = "GFPGAN", "CodeFormer"
FACES_MISSING = "Restoring faces needs {}, which is not installed here."
"""What every door and the engine say where a restorer is missing."""


def extras_parameters(recipe: ExtrasRecipe) -> dict[str, str | float]:
    """Name → value, in A1111's order; empty when nothing is done to the picture."""
    return {**_upscale(recipe), **_faces(recipe)}


def _upscale(recipe: ExtrasRecipe) -> dict[str, str | float]:
    if recipe.upscaler_1 == NO_UPSCALER:
        return {}
    size = f"{recipe.upscaling_resize_w}x{recipe.upscaling_resize_h}"
    made: dict[str, str | float] = {"Postprocess upscale by": recipe.upscaling_resize}
    if recipe.resize_mode == 1:
        made = {"Postprocess upscale to": size}
        if recipe.upscaling_crop:
            made["Postprocess crop to"] = size
    made["Postprocess upscaler"] = recipe.upscaler_1
    if uses_second(recipe):
        made["Postprocess upscaler 2"] = recipe.upscaler_2
    return made


def uses_second(recipe: ExtrasRecipe) -> bool:
    """Whether the second upscaler takes part."""
    none = NO_UPSCALER in (recipe.upscaler_1, recipe.upscaler_2)
    return not none and recipe.extras_upscaler_2_visibility > 0


def _faces(recipe: ExtrasRecipe) -> dict[str, str | float]:
    made: dict[str, str | float] = {}
    if recipe.gfpgan_visibility:
        made["GFPGAN visibility"] = round(recipe.gfpgan_visibility, 3)
    if recipe.codeformer_visibility:
        made["CodeFormer visibility"] = round(recipe.codeformer_visibility, 3)
        made["CodeFormer weight"] = recipe.codeformer_weight
    return made


def extras_size(recipe: ExtrasRecipe, *pictures: InputPicture) -> tuple[int, int]:
    """Sides in pixels no result is larger than, for the recipe's own picture or others of the same request."""
    widest = max((picture.width for picture in pictures), default=recipe.picture.width)
    highest = max((picture.height for picture in pictures), default=recipe.picture.height)
    if recipe.upscaler_1 == NO_UPSCALER:
        return widest, highest
    factor = recipe.upscaling_resize
    if recipe.resize_mode == 1:
        factor = max(
            max(recipe.upscaling_resize_w / picture.width, recipe.upscaling_resize_h / picture.height)
            for picture in (recipe.picture, *pictures)
        )
    return int(widest * factor), int(highest * factor)


def extras_text(recipe: ExtrasRecipe) -> str:
    """The ``postprocessing`` text."""
    return ", ".join(f"{name}: {_quoted(value)}" for name, value in extras_parameters(recipe).items())


def extras_html(text: str) -> str:
    """``html_info`` of an answer; of several pictures, the last one's text, of none, the empty one."""
    lines = [html.escape(line) for line in text.split("\n")]
    return "<p>" + "<br>\n".join(lines) + "</p>"


def _quoted(value: str | float) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ",:\n") else text
