"""Files that arrive in parts, and may be interrupted between any two of them; how HTTP speaks about that is in ``tus``.

::

    begun ──parts──→ complete ──joined──→ the asset's draft, as ``intake`` takes it from there
      └──→ given up: by its owner, or untouched for ``KEPT``; asset, parts and row are removed

Each part is an object of its own in the asset storage, so that any web process may take the next one and object stores do, too. A
part counts when its row is written; an object without a row was sent by a process that died, and lies where the asset's draft is
cleaned up.
"""

from __future__ import annotations

import io
import secrets
from bisect import bisect_right
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from typing import IO, Any
from uuid import UUID

from django.core.files.base import File
from django.db import transaction
from django.db.models import F
from django.db.models.functions import Now

from accounts.models import Team, User
from assets.cards import card_errors, card_of
from assets.intake import (
    asset_announce,
    asset_discard,
    asset_quarantine,
    asset_storage,
    config_text,
    draft_folder,
    draft_store,
)
from assets.models import Access, Asset, AssetKind, Upload, UploadPart
from common.database import now_plus
from common.errors import ConflictError, FieldError, InvalidRequestError

MOST_BYTES = 64 * 1024**3
"""Of a file; the largest checkpoints there are have about 50 GB."""
MOST_PART_BYTES = 64 * 1024**2
KEPT = timedelta(days=7)
"""How long an upload that nobody goes on with is kept."""
SHA256_DIGITS = 64


@transaction.atomic
def upload_begin(
    *,
    uploaded_by: User,
    name: str,
    kind: str,
    size_bytes: int,
    sha256: str = "",
    config: str = "",
    access: str = Access.PUBLIC,
    teams: tuple[Team, ...] = (),
    users: tuple[User, ...] = (),
    card: Mapping[str, Any] | None = None,
) -> Upload:
    """Announce a file.

    Raises:
        InvalidRequestError: Name, kind, size, hash, YAML or card cannot be accepted; nothing is stored.
        PlatformError: There is no room for it with one of the teams; nothing is stored.
    """
    errors = card_errors(card or {})
    if kind not in AssetKind.values:
        errors.append(
            FieldError("kind", f"Kind {kind!r} is unknown; accepted are {', '.join(AssetKind.values)}.", kind)
        )
    if access not in Access.values:
        message = f"Access {access!r} is unknown; accepted are {', '.join(Access.values)}."
        errors.append(FieldError("access", message, access))
    if not 0 < size_bytes <= MOST_BYTES:
        message = f"The file has {size_bytes} bytes; accepted are 1 to {MOST_BYTES}."
        errors.append(FieldError("size_bytes", message, size_bytes))
    if sha256 and (len(sha256) != SHA256_DIGITS or not set(sha256.lower()) <= set("0123456789abcdef")):
        errors.append(FieldError("sha256", f"{sha256[:80]!r} is no sha-256; 64 hexadecimal digits are.", sha256))
    if errors:
        raise InvalidRequestError(errors)
    if config:
        config_text(io.BytesIO(config.encode()))
    asset = asset_announce(
        name=name,
        kind=kind,
        size_bytes=size_bytes,
        access=access,
        teams=teams,
        users=users,
        uploaded_by=uploaded_by,
        card=card_of(**(card or {})),
    )
    return Upload.objects.create(asset=asset, size_bytes=size_bytes, sha256=sha256.lower(), config=config)


def upload_append(*, upload: Upload, offset: int, part: IO[bytes]) -> int:
    """Keep the part that begins at ``offset``; the same part twice is kept once.

    Returns:
        How many bytes are here now.
    Raises:
        ConflictError: The upload goes on elsewhere, or is complete.
        InvalidRequestError: The part is empty, too large, or longer than what is missing.
    """
    if offset != upload.received_bytes:
        raise _out_of_step(offset, upload.received_bytes)
    size_bytes = part.seek(0, io.SEEK_END)
    part.seek(0)
    missing = upload.size_bytes - upload.received_bytes
    if not 0 < size_bytes <= min(missing, MOST_PART_BYTES):
        message = f"A part of {size_bytes} bytes; accepted are 1 to {min(missing, MOST_PART_BYTES)}."
        raise InvalidRequestError([FieldError("", message, size_bytes)])
    key = f"{parts_folder(upload.asset)}/{offset}-{secrets.token_hex(4)}"
    key = asset_storage().save(key, File(part, name=""))
    try:
        return _count(upload, offset, size_bytes, key)
    except BaseException:
        asset_storage().delete(key)
        raise


@transaction.atomic
def _count(upload: Upload, offset: int, size_bytes: int, key: str) -> int:
    rows = Upload.objects.filter(pk=upload.pk, received_bytes=offset)
    if not rows.update(received_bytes=F("received_bytes") + size_bytes, touched_at=Now()):
        now = Upload.objects.filter(pk=upload.pk).values_list("received_bytes", flat=True).first()
        raise _out_of_step(offset, now or 0)
    UploadPart.objects.create(upload=upload, offset=offset, size_bytes=size_bytes, key=key)
    return offset + size_bytes


def _out_of_step(offset: int, received: int) -> ConflictError:
    return ConflictError(f"A part from byte {offset} was sent; the next one begins at byte {received}.")


def upload_join(upload_id: UUID) -> Asset | None:
    """Make the parts of a complete upload the asset's draft; repeated, it goes on where it was killed.

    Returns:
        The asset, ready for ``asset_process``; None when there is nothing to do.
    """
    upload = Upload.objects.select_related("asset").filter(pk=upload_id).first()
    if upload is None or not upload.is_complete:
        return None
    asset = upload.asset
    if not asset.sha256:
        with JoinedParts(list(upload.parts.all())) as file:
            asset = draft_store(asset, file, upload.config.encode() or None)  # type: ignore[arg-type]
    _remove(upload)
    if upload.sha256 and upload.sha256 != asset.sha256:
        return asset_quarantine(asset, f"Its sha-256 is {asset.sha256}; announced was {upload.sha256}.")
    return asset


def upload_give_up(upload: Upload) -> None:
    """Remove everything of an upload that has not become a draft yet."""
    asset = upload.asset
    _remove(upload)
    asset_discard(asset)


def uploads_forgotten() -> list[Upload]:
    """Incomplete uploads that nobody has touched for ``KEPT``."""
    rows = Upload.objects.select_related("asset").filter(touched_at__lt=now_plus(-KEPT.total_seconds()))
    return [upload for upload in rows if not upload.is_complete]


def parts_folder(asset: Asset) -> str:
    return f"{draft_folder(asset)}/parts"


def _remove(upload: Upload) -> None:
    """Objects first: a row without objects can be removed again, objects without a row are found by nobody."""
    for key in upload.parts.values_list("key", flat=True):
        asset_storage().delete(key)
    with suppress(OSError):  # another process is writing a part that will not count
        asset_storage().delete(parts_folder(upload.asset))  # a folder only where the storage is a disk
    Upload.objects.filter(pk=upload.pk).delete()


class JoinedParts(io.RawIOBase):
    """The parts of an upload as one file that can be read and sought; one part is open at a time."""

    def __init__(self, parts: list[UploadPart]) -> None:
        self._parts = parts
        self._starts = [part.offset for part in parts]
        self._size = parts[-1].offset + parts[-1].size_bytes
        self._position = 0
        self._open: tuple[int, File] | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def read(self, size: int = -1) -> bytes:
        wanted = self._size - self._position if size < 0 else size
        pieces = []
        while wanted > 0 and self._position < self._size:
            piece = self._piece(wanted)
            pieces.append(piece)
            wanted -= len(piece)
        return b"".join(pieces)

    def _piece(self, wanted: int) -> bytes:
        """What of the part at the current position is wanted."""
        index = bisect_right(self._starts, self._position) - 1
        file = self._part(index)
        file.seek(self._position - self._starts[index])
        piece: bytes = file.read(wanted)
        if not piece:
            raise OSError(f"{self._parts[index]} is shorter than its row says.")
        self._position += len(piece)
        return piece

    def _part(self, index: int) -> File:
        if self._open is None or self._open[0] != index:
            self._shut()
            self._open = index, asset_storage().open(self._parts[index].key)
        return self._open[1]

    def _shut(self) -> None:
        if self._open:
            self._open[1].close()
            self._open = None

    def close(self) -> None:
        self._shut()
        super().close()
