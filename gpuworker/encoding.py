"""Pixels → the bytes of a file: PNG, JPEG, WebP, with the texts A1111 writes into them. Where files go is ``output``'s; no Django.

Source: ``encode_pil_to_base64`` of ``modules/api/api.py``, ``save_image_with_geninfo`` of ``modules/images.py``, A1111 1.10.1.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import numpy as np
from PIL import Image

from gpuworker.contract import Picture
from gpuworker.engine.errors import InvalidSpecError

PARAMETERS = "parameters"
"""The text that holds the infotext; the only one JPEG and WebP have room for."""
DEFAULT_QUALITY = 80
Deflate = Callable[[np.ndarray], bytes]
DEFLATERS: dict[str, Deflate] = {"zlib": partial(zlib.compress, level=1)}
try:
    from isal import isal_zlib
except ImportError:  # no wheel for this machine
    pass
else:
    DEFLATERS["isal"] = partial(isal_zlib.compress, level=2)
FASTEST = "isal" if "isal" in DEFLATERS else "zlib"
"""ISA-L is there on machines that have its wheel; it takes a tenth of zlib's time at a like size (B5)."""


class Encoded(NamedTuple):
    data: bytes
    extension: str
    """Without a dot."""
    content_type: str


def encoded(
    picture: Picture,
    samples_format: str = "png",
    texts: Mapping[str, str] | None = None,
    *,
    quality: int = DEFAULT_QUALITY,
    lossless: bool = False,
) -> Encoded:
    """A picture as a file of A1111's ``samples_format``, whatever its case.

    Args:
        texts: Keyword → text. PNG keeps all of them, the others ``parameters``.
        quality: ``jpeg_quality``, of JPEG and WebP.
        lossless: ``webp_lossless``.
    Raises:
        InvalidSpecError: Another format, or a picture too large for it.
    """
    texts = texts or {}
    match samples_format.lower():
        case "png":
            return Encoded(png_of(picture, texts), "png", "image/png")
        case "jpg" | "jpeg" as extension:
            return Encoded(jpeg_of(picture, texts.get(PARAMETERS, ""), quality), extension, "image/jpeg")
        case "webp":
            text = texts.get(PARAMETERS, "")
            return Encoded(webp_of(picture, text, quality, lossless=lossless), "webp", "image/webp")
    message = f"Image format {samples_format!r} is not known; it is one of png, jpg, jpeg, webp."
    raise InvalidSpecError(message, field="samples_format", value=samples_format)


# --- PNG -------------------------------------------------------------------------------------------------------------

COLOUR_TYPES = {"L": 0, "RGB": 2, "RGBA": 6}
"""Mode → PNG's number."""
UP_FILTER = 2
"""PNG row filter: each byte minus the one above it. One fixed filter costs a fraction of trying five per row."""


def png_of(picture: Picture, texts: Mapping[str, str], deflate: Deflate = DEFLATERS[FASTEST]) -> bytes:
    """A PNG with text chunks before its pixels: tEXt where the text is Latin-1, else iTXt, as Pillow and so A1111 choose."""
    rows = np.frombuffer(picture.pixels, np.uint8).reshape(picture.height, picture.width * len(picture.mode))
    filtered = np.empty((picture.height, rows.shape[1] + 1), np.uint8)
    filtered[:, 0] = UP_FILTER
    filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
    header = struct.pack(">IIBBBBB", picture.width, picture.height, 8, COLOUR_TYPES[picture.mode], 0, 0, 0)
    chunks = [_chunk(b"IHDR", header), *(_text_chunk(key, text) for key, text in texts.items())]
    chunks += [_chunk(b"IDAT", deflate(filtered)), _chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _text_chunk(keyword: str, text: str) -> bytes:
    try:
        return _chunk(b"tEXt", keyword.encode("latin-1") + b"\0" + text.encode("latin-1"))
    except UnicodeEncodeError:
        return _chunk(b"iTXt", keyword.encode("latin-1") + b"\0\0\0\0\0" + text.encode("utf-8", "replace"))


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))


# --- JPEG and WebP ---------------------------------------------------------------------------------------------------

MAX_SIDE = {"JPEG": 65_500, "WEBP": 16_383}
"""What the libraries behind them take; pixels."""
MAX_COMMENT_BYTES = 65_000
"""JPEG keeps EXIF in one segment of 64 KiB; a longer infotext is cut, because a picture without its tail beats none."""
EXIF_IFD, USER_COMMENT = 0x8769, 0x9286
LONG, UNDEFINED = 4, 7
"""EXIF's names of types. Pillow would write the comment as bytes, which piexif and so A1111 cannot read."""


def jpeg_of(picture: Picture, text: str, quality: int = DEFAULT_QUALITY) -> bytes:
    """A JPEG; transparency is dropped, not blended."""
    return _with_exif(picture, "JPEG", text, quality=quality)


def webp_of(picture: Picture, text: str, quality: int = DEFAULT_QUALITY, *, lossless: bool = False) -> bytes:
    """A WebP.

    QUIRK(A1111 1.10): its API drops transparency here too.
    """
    return _with_exif(picture, "WEBP", text, quality=quality, lossless=lossless)


def _with_exif(picture: Picture, kind: str, text: str, **options: int) -> bytes:
    if max(picture.width, picture.height) > MAX_SIDE[kind]:
        message = (
            f"{kind} holds at most {MAX_SIDE[kind]} pixels per side; this picture is {picture.width}×{picture.height}."
        )
        raise InvalidSpecError(message, field="samples_format", value=kind.lower())
    image = Image.frombytes(picture.mode, (picture.width, picture.height), picture.pixels)
    data = io.BytesIO()
    image.convert("RGB" if picture.mode == "RGBA" else picture.mode).save(data, kind, exif=exif_of(text), **options)
    return data.getvalue()


def exif_of(text: str) -> bytes:
    """EXIF with nothing but a UserComment in UTF-16, as piexif writes it for A1111."""
    fitting = text.encode("utf-16-be", "replace")[:MAX_COMMENT_BYTES].decode("utf-16-be", "ignore")
    comment = b"UNICODE\0" + fitting.encode("utf-16-be")
    first_at, second_at, comment_at = 8, 26, 44
    return (
        b"Exif\0\0MM\0*"
        + struct.pack(">I", first_at)
        + struct.pack(">HHHIII", 1, EXIF_IFD, LONG, 1, second_at, 0)
        + struct.pack(">HHHIII", 1, USER_COMMENT, UNDEFINED, len(comment), comment_at, 0)
        + comment
    )
