"""Pictures that callers send as text: decoded, looked at, and stored once per team. Nothing is fetched from here.

Source of the text forms: ``decode_base64_to_image`` of ``modules/api/api.py``, A1111 1.10.1.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.db import transaction
from django.db.models.functions import Now

from accounts.models import Team
from billing.errors import QuotaExceededError
from billing.stored import stored_change, stored_check
from common.identifiers import uuid7
from common.pictures import FORMATS, UnreadablePictureError, picture_opened
from gpuworker.contract import InputPicture
from renderjobs.models import InputFile


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
    with picture_opened(data, formats=formats) as picture:
        width, height = picture.size
        # Orientation swaps the sides of what the engine will open.
        turned = picture.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    size = (height, width) if turned else (width, height)
    return Upload(InputPicture(sha256=hashlib.sha256(data).hexdigest(), width=size[0], height=size[1]), data)


def inputs_new(*, team: Team, uploads: Iterable[Upload]) -> dict[str, Upload]:
    """Those that are not kept yet, by their hashes."""
    wanted = {upload.picture.sha256: upload for upload in uploads}
    known = InputFile.objects.filter(team=team, sha256__in=wanted).values_list("sha256", flat=True)
    return {sha256: wanted[sha256] for sha256 in wanted.keys() - set(known)}


def input_store(*, team: Team, uploads: Iterable[Upload]) -> None:
    """Keep what is not kept yet: the objects first, outside a transaction, then their rows, so that a row always has its object.

    An object has a name of its own, so whoever turns out not to need it removes it: what does not fit leaves neither, and of two
    who bring the same picture at the same time one object and one row stay.

    Raises:
        QuotaExceededError: The team may not store so much.
    """
    new = inputs_new(team=team, uploads=uploads)
    if new:
        with transaction.atomic():
            stored_check(team_id=team.pk, size_bytes=sum(len(upload.data) for upload in new.values()))
    for sha256, upload in new.items():
        key = default_storage.save(f"{team.pk}/inputs/{sha256[:2]}/{sha256}-{uuid7()}", ContentFile(upload.data))
        try:
            created = _row_made(team, upload, key)
        except QuotaExceededError:
            default_storage.delete(key)
            raise
        if not created:
            default_storage.delete(key)


def _row_made(team: Team, upload: Upload, key: str) -> bool:
    """False where somebody else was faster."""
    with transaction.atomic():
        stored_check(team_id=team.pk, size_bytes=len(upload.data))
        _, created = InputFile.objects.get_or_create(
            team=team,
            sha256=upload.picture.sha256,
            defaults={
                "file_key": key,
                "size_bytes": len(upload.data),
                "width": upload.picture.width,
                "height": upload.picture.height,
                "created_at": Now(),
            },
        )
        if created:
            stored_change(team_id=team.pk, by=len(upload.data))
    return created
