"""Small pictures for pages of many: made when first looked at, and kept on this server's disk. All of it may be lost.

By the picture's hash, so that one can never be another's. Not among the stored pictures: there every object has a row.
"""

from __future__ import annotations

import os
import random
import time
from contextlib import suppress
from pathlib import Path
from tempfile import NamedTemporaryFile

from django.conf import settings
from django.core.files.storage import default_storage
from PIL import Image

SIDE_PX = 320
QUALITY = 80
CONTENT_TYPE = "image/webp"
TRIM_EVERY = 500
"""On average one of so many new ones looks whether the folder has grown too large."""


def thumbnail_of(*, sha256: str, file_key: str) -> bytes:
    """WebP, at most 320 pixels a side. Raises: OSError: The picture is not there or not readable."""
    path = _folder() / sha256[:2] / f"{sha256}.webp"
    with suppress(FileNotFoundError):
        data = path.read_bytes()
        os.utime(path)  # what is looked at stays
        return data
    with default_storage.open(file_key) as file, Image.open(file) as picture:
        small = picture.convert("RGBA" if picture.has_transparency_data else "RGB")
        small.thumbnail((SIDE_PX, SIDE_PX), Image.Resampling.LANCZOS)
    path.parent.mkdir(parents=True, exist_ok=True)
    with NamedTemporaryFile(dir=path.parent, suffix=".new", delete=False) as new:
        small.save(new, "WEBP", quality=QUALITY)
    os.replace(new.name, path)  # whole, or not at all
    if random.randrange(TRIM_EVERY) == 0:
        thumbnails_trim()
    return path.read_bytes()


def thumbnails_trim() -> int:
    """Remove what nobody looked at for long, then the longest unseen beyond the limit; how many."""
    files = sorted(
        (path.stat().st_mtime, path.stat().st_size, path) for path in _folder().glob("*/*") if path.is_file()
    )
    room, oldest, removed = settings.THUMBNAIL_CACHE_BYTES, time.time() - settings.THUMBNAIL_SECONDS, 0
    for seen, size, path in reversed(files):
        room -= size
        if room < 0 or seen < oldest:
            path.unlink(missing_ok=True)
            removed += 1
    return removed


def _folder() -> Path:
    return Path(settings.DATA_DIR) / "thumbnails"
