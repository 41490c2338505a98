"""Opening stored pictures, and handing pictures back. What a picture is used for is decided elsewhere.

Source: ``images.read``, ``images.fix_image`` and ``images.flatten``, A1111 1.10.1.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from gpuworker.contract import Picture
from gpuworker.engine.errors import InvalidPictureError, InvalidSpecError

UNREADABLE = (
    OSError, SyntaxError, ValueError, TypeError, EOFError, LookupError, ArithmeticError, struct.error, zlib.error,
    Image.DecompressionBombError,
)  # fmt: skip
"""What Pillow's readers raise for bytes that are no picture, or too large a one; a broken PNG is a syntax error to them."""


def open_picture(path: Path) -> Image.Image:
    """The stored picture, all of it read, turned upright; palettes and RGB with a table of transparency become RGBA.

    Raises:
        InvalidPictureError: The file is no picture Pillow can read, or holds no pixel.
    """
    try:
        with Image.open(path) as stored:
            stored.load()
            picture = _upright(stored)
            if picture.mode in ("RGB", "P") and isinstance(picture.info.get("transparency"), bytes):
                picture = picture.convert("RGBA")
    except UNREADABLE as error:
        raise InvalidPictureError(f"An input picture cannot be read: {error}.") from error
    if not (picture.width and picture.height):
        raise InvalidPictureError(f"An input picture has {picture.width}×{picture.height} pixels.")
    return picture


def _upright(stored: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(stored) or stored
    except UNREADABLE:
        return stored.copy()  # Whatever is wrong with what a camera wrote beside them, the pixels are good.


def flattened(picture: Image.Image, background: str) -> Image.Image:
    """RGB, what is transparent laid over the background.

    Args:
        background: A colour as Pillow reads it: ``#ffffff``, ``white``.
    Raises:
        InvalidSpecError: It is none.
    """
    if picture.mode == "RGBA":
        try:
            under = Image.new("RGBA", picture.size, background)
        except ValueError as error:
            message = f"{background!r} is no colour; one is written like #ffffff."
            raise InvalidSpecError(message, field="img2img_background_color", value=background) from error
        under.paste(picture, mask=picture)
        picture = under
    return picture.convert("RGB")


def values_of(picture: Image.Image) -> np.ndarray:
    """float32 of 0…1, shape (3, height, width)."""
    return np.ascontiguousarray(np.asarray(picture, dtype=np.float32).transpose(2, 0, 1)) / np.float32(255)


def handed_back(picture: Image.Image) -> Picture:
    return Picture(picture.width, picture.height, picture.tobytes(), picture.mode)
