"""This door's fields → the canonical RenderRequest. Reads pictures, stores nothing, asks no database."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from PIL import Image

from common.pictures import UnreadablePictureError
from renderjobs.choices import JobKind
from renderjobs.compat.openai.errors import wrong
from renderjobs.compat.sdapi.translate import Translation
from renderjobs.inputs import Upload, picture_from_bytes

STEPS = {"low": 12, "auto": 25, "medium": 25, "standard": 25, "high": 40, "hd": 40}
"""``quality`` → denoising steps."""
NATIVE_SIZES = {"sdxl": 1024}
"""Family → side of the square it was trained on, where it is not 512."""
NAMES = {
    "checkpoint": "model",
    "width": "size",
    "height": "size",
    "n_iter": "n",
    "denoising_strength": "denoising_strength",
    "steps": "steps",
    "cfg_scale": "cfg_scale",
}
WHOLE_PICTURE, MASKED = 0.75, 1.0
"""How far an edit may go from the picture, where the caller does not say: what is masked is drawn anew."""
LATENT = 8
"""Pixels of a side that one latent stands for."""


def generation(values: Mapping[str, Any], *, family: str) -> Translation:
    side = NATIVE_SIZES.get(family, 512)
    width, height = values["size"] or (side, side)
    return Translation({**common(values), "kind": JobKind.TXT2IMG, "width": width, "height": height}, dict(NAMES))


def common(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "checkpoint": values["model"],
        "prompt": values["prompt"],
        "negative_prompt": values["negative_prompt"],
        "seed": values["seed"],
        "steps": values["steps"] or STEPS[values["quality"]],
        "cfg_scale": values["cfg_scale"],
        "n_iter": values["n"],
        "sampler": "DPM++ 2M",
        "schedule": "Karras",
        "samples_format": values["output_format"],
        "jpeg_quality": max(1, values["output_compression"]),
    }


def edit(values: Mapping[str, Any], *, picture: bytes, mask: bytes | None) -> Translation:
    """Args: mask: Where it, or without it the picture, is transparent, is where the picture may change.

    Raises:
        ApiError: One of them is no picture, or the mask does not fit.
    """
    base = opened("image", picture)
    where = transparency("mask", mask) if mask is not None else transparency("image", picture)
    if where is not None and (where.picture.width, where.picture.height) != (base.picture.width, base.picture.height):
        raise wrong("mask", "Invalid value: 'mask' must have the size of the image.")
    if mask is not None and where is None:
        raise wrong("mask", "Invalid value: 'mask' must be transparent where the image may change.")
    width, height = values["size"] or (whole(base.picture.width), whole(base.picture.height))
    strength = values["denoising_strength"]
    made = Translation({**common(values), "kind": JobKind.IMG2IMG, "width": width, "height": height}, dict(NAMES))
    made.uploads = [base, *([where] if where else [])]
    made.canonical["denoising_strength"] = (MASKED if where else WHOLE_PICTURE) if strength is None else strength
    made.canonical["img2img"] = [{"picture": base.picture, "resize_mode": 0, "inpaint": inpainting(where)}]
    return made


def inpainting(where: Upload | None) -> dict[str, Any] | None:
    if where is None:
        return None
    return {
        "mask": where.picture,
        "blur_x": 4,
        "blur_y": 4,
        "round": True,
        "fill": 1,
        "full_res": False,
        "padding": 0,
        "invert": False,
        "soft": None,
    }


def whole(side: int) -> int:
    return max(LATENT, side - side % LATENT)


def opened(field: str, data: bytes) -> Upload:
    try:
        return picture_from_bytes(data)
    except UnreadablePictureError as error:
        raise wrong(field, f"Invalid value: '{field}': {error}.".replace("..", ".")) from None


def transparency(field: str, data: bytes) -> Upload | None:
    """White where the picture is transparent; None when it is nowhere."""
    opened(field, data)
    with Image.open(io.BytesIO(data)) as picture:
        if not picture.has_transparency_data:
            return None
        alpha = picture.convert("RGBA").getchannel("A")
    if alpha.getextrema()[0] == 255:
        return None
    file = io.BytesIO()
    alpha.point(lambda value: 0 if value else 255).save(file, "PNG")
    return picture_from_bytes(file.getvalue())
