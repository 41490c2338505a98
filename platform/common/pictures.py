"""Pictures that strangers send, looked at before anything is done with them. What they are for is not known here."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from django.conf import settings
from PIL import Image, ImageOps

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
THUMBNAIL_QUALITY = 85


class UnreadablePictureError(ValueError):
    """The bytes are no picture; the message says why."""


@contextmanager
def picture_opened(data: bytes, *, formats: tuple[str, ...] = FORMATS) -> Iterator[Image.Image]:
    """The picture, decoded whole: what is truncated or damaged is found here and not later.

    Raises:
        UnreadablePictureError: No picture of one of the formats, or one that is too large.
    """
    with warnings.catch_warnings():
        # Pillow warns of large pictures before it refuses them; our own limit is below both.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            with Image.open(io.BytesIO(data), formats=formats) as picture:
                width, height = picture.size
                if width * height > settings.MAX_INPUT_PIXELS or max(width, height) > settings.MAX_INPUT_SIDE_PX:
                    limit, side = settings.MAX_INPUT_PIXELS, settings.MAX_INPUT_SIDE_PX
                    raise UnreadablePictureError(
                        f"A picture of {width} x {height} pixels exceeds the limit of {limit}, or of {side} per side."
                    )
                picture.load()
                yield picture
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            if isinstance(error, UnreadablePictureError):
                raise
            raise UnreadablePictureError("Invalid encoded image") from None


def thumbnail_of(data: bytes, *, side_px: int) -> bytes:
    """A WebP of the picture, no side longer than ``side_px``, with nothing of the file but its pixels.

    Raises:
        UnreadablePictureError: As ``picture_opened``.
    """
    with picture_opened(data) as picture:
        small = picture.convert("RGBA") if picture.mode in ("P", "PA", "LA") else picture
        small.thumbnail((side_px, side_px))
        small = ImageOps.exif_transpose(small).convert("RGBA")
        flat = Image.new("RGB", small.size, "white")
        flat.paste(small, mask=small.getchannel("A"))
        written = io.BytesIO()
        flat.save(written, "WEBP", quality=THUMBNAIL_QUALITY)
        return written.getvalue()
