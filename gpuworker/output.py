"""Pixels → the stored file: infotext, PNG, storage. Runs in the delivery threads while the next micro-batch denoises."""

from __future__ import annotations

import hashlib
import struct
import zlib

import numpy as np
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage

from gpuworker.contract import Rendered
from renderjobs.claims import ClaimedImage
from renderjobs.compat.sdapi.infotext import infotext_of
from renderjobs.delivery import StoredPicture

UP_FILTER = 2
"""PNG row filter: each byte minus the one above it. One fixed filter costs a fraction of trying five per row."""
DEFLATE_LEVEL = 1


def picture_store(image: ClaimedImage, rendered: Rendered) -> StoredPicture:
    """Encode and upload one picture under a key of this very attempt, so that no other try can overwrite it."""
    infotext = infotext_of(image.recipe)
    data = png_of(rendered.rgb, rendered.width, rendered.height, {"parameters": infotext})
    key = default_storage.save(picture_key(image), ContentFile(data))
    return StoredPicture(
        key=key,
        sha256=hashlib.sha256(data).hexdigest(),
        size_bytes=len(data),
        width=rendered.width,
        height=rendered.height,
        infotext=infotext,
    )


def picture_key(image: ClaimedImage) -> str:
    """Made from ids alone; nothing a caller wrote is in it."""
    job = image.job
    return f"{job.team_id}/{job.created_at:%Y/%m/%d}/{job.pk}/{image.index:05d}-{image.attempt_id}.png"


def png_of(rgb: bytes, width: int, height: int, texts: dict[str, str]) -> bytes:
    """An RGB PNG with text chunks.

    Args:
        rgb: uint8 rows, ``width * height * 3`` bytes.
        texts: keyword → text; tEXt where the text is Latin-1, else iTXt, as Pillow and so A1111 choose.
    """
    rows = np.frombuffer(rgb, np.uint8).reshape(height, width * 3)
    filtered = np.empty((height, width * 3 + 1), np.uint8)
    filtered[:, 0] = UP_FILTER
    filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [_chunk(b"IHDR", header), *(_text_chunk(key, text) for key, text in texts.items())]
    chunks += [_chunk(b"IDAT", zlib.compress(filtered.tobytes(), DEFLATE_LEVEL)), _chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _text_chunk(keyword: str, text: str) -> bytes:
    try:
        return _chunk(b"tEXt", keyword.encode("latin-1") + b"\0" + text.encode("latin-1"))
    except UnicodeEncodeError:
        return _chunk(b"iTXt", keyword.encode("latin-1") + b"\0\0\0\0\0" + text.encode())


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
