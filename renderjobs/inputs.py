"""Pictures that callers send as text: decoded, looked at, and stored once per team. Nothing is fetched from here.

Source of the text forms: ``decode_base64_to_image`` of ``modules/api/api.py``, A1111 1.10.1.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import warnings
from collections.abc import Iterable
from dataclasses import dataclass

from django.conf import settings
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.db.models.functions import Now
from PIL import Image

from accounts.models import Team
from gpuworker.contract import InputPicture
from renderjobs.models import InputFile

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")


class UnreadablePictureError(ValueError):
    """The text is no picture; the message says why."""


@dataclass(frozen=True, slots=True)
class Upload:
    """A picture that was looked at and is not stored yet."""

    picture: InputPicture
    data: bytes


def picture_from_text(text: str) -> Upload:
    """Base64, or a data URI whose first comma ends its head.

    Raises:
        UnreadablePictureError: Neither, no picture, or one that is too large.
    """
    if text.startswith(("http://", "https://")):
        raise UnreadablePictureError("Requests not allowed")
    if text.startswith("data:image/"):
        text = text.partition(",")[2]
    try:
        data = base64.b64decode(text)
    except (binascii.Error, ValueError):
        raise UnreadablePictureError("Invalid encoded image") from None
    return picture_from_bytes(data)


def picture_from_bytes(data: bytes, *, formats: tuple[str, ...] = FORMATS) -> Upload:
    """Raises: UnreadablePictureError: No picture of one of the formats, or one that is too large."""
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
                # Orientation swaps the sides of what the engine will open.
                turned = picture.getexif().get(0x0112, 1) in (5, 6, 7, 8)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            if isinstance(error, UnreadablePictureError):
                raise
            raise UnreadablePictureError("Invalid encoded image") from None
    size = (height, width) if turned else (width, height)
    return Upload(InputPicture(sha256=hashlib.sha256(data).hexdigest(), width=size[0], height=size[1]), data)


def input_store(*, team: Team, uploads: Iterable[Upload]) -> None:
    """Keep what is not kept yet: the objects first, then their rows, so that a row always has its object.

    Storing the same picture twice, also at the same time, is one object and one row.
    """
    wanted = {upload.picture.sha256: upload for upload in uploads}
    known = InputFile.objects.filter(team=team, sha256__in=wanted).values_list("sha256", flat=True)
    for sha256 in wanted.keys() - set(known):
        upload = wanted[sha256]
        key = f"{team.pk}/inputs/{sha256[:2]}/{sha256}"
        if not default_storage.exists(key):
            default_storage.save(key, ContentFile(upload.data))
        InputFile.objects.get_or_create(
            team=team,
            sha256=sha256,
            defaults={
                "file_key": key,
                "size_bytes": len(upload.data),
                "width": upload.picture.width,
                "height": upload.picture.height,
                "created_at": Now(),
            },
        )
