"""Files that people put among a team's files, and the public area: what may be put there, how it is kept and removed.

The folder is the caller's, strictly checked; the name becomes a plain one; the content is what its ending says, or it is refused. A
key that a job's file has is never written or removed from here.
"""

from __future__ import annotations

import hashlib
import re
from datetime import datetime, timedelta
from typing import IO

from django.conf import settings
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.db import IntegrityError, transaction
from django.db.models import Q, Sum
from django.db.models.functions import Now

from accounts.models import Team, User
from billing.stored import stored_change, stored_check
from common.database import database_now, now_plus
from common.errors import ConflictError, FieldError, InvalidRequestError
from common.pictures import UnreadablePictureError
from gpuworker.contract import InputPicture
from renderjobs.compat.eas.paths import MAX_PART, PART
from renderjobs.compat.sdapi.infotext_parser import info_and_items
from renderjobs.inputs import picture_from_bytes
from renderjobs.models import FileOrigin, FileState, ImageAttachment, RenderImage, RenderJob, ScriptCall, TeamFile
from renderjobs.outputs import MAX_FOLDER, files_folder

PICTURE_FORMATS = {"png": "PNG", "jpg": "JPEG", "jpeg": "JPEG", "webp": "WEBP"}
"""Ending → the format its content has to have."""
TEXT_ENDINGS = ("csv", "json", "jsonl", "md", "txt", "yaml", "yml")
"""Plain text in UTF-8; given out as something to save, never as something to show."""
MODEL_ENDINGS = ("safetensors", "ckpt", "pt", "pth", "bin")
MOST_PICTURE_BYTES = 64 * 1024**2
MOST_TEXT_BYTES = 16 * 1024**2
MAX_KEY_PATH = 220
ARRIVES_WITHIN = timedelta(hours=1)
"""An upload that has not ended by then was cut off."""
UNUSUAL = re.compile(r"[^\w. +@=-]", re.ASCII)


def file_upload(*, team: Team | None, folder: str, name: str, file: IO[bytes], user: User) -> TeamFile:
    """Keep what somebody sent; the same bytes under the same name again change nothing.

    Args:
        team: None for the public area.
    Raises:
        InvalidRequestError: Folder, type, size or content is not accepted, or the team's files would exceed their limit.
        ConflictError: Another file has this name.
    """
    place = folder_checked(folder)
    data, picture = _content(name, file)
    return file_keep(
        team=team,
        key="/".join(part for part in (files_folder(team), place, plain_path(name.rpartition("/")[2])) if part),
        path=name,
        data=data,
        picture=picture,
        origin=FileOrigin.UPLOADED,
        made_at=database_now(),
        user=user,
    )


def folder_checked(folder: str) -> str:
    """The folder of a team's files as part of a key; empty for all of them.

    Raises:
        InvalidRequestError: It is no relative path of plain names.
    """
    parts = folder.split("/") if folder else []
    for part in parts:
        if len(part) > MAX_PART or not PART.fullmatch(part) or part.endswith((".", " ")):
            message = f"The folder holds {part[:40]!r}; accepted are names of ASCII letters, digits and ' _.+@=-' with / between."
            raise InvalidRequestError([FieldError("folder", message, folder[:80])])
    if len(folder) > MAX_FOLDER:
        message = f"The folder has {len(folder)} characters; at most {MAX_FOLDER} are accepted."
        raise InvalidRequestError([FieldError("folder", message, folder[:80])])
    return folder


def plain_path(relative: str) -> str:
    """The path as part of a key: usual names stay as they are, others become plain and are told apart by a hash."""
    parts = relative.split("/")
    if len(relative) <= MAX_KEY_PATH and all(
        len(part) <= MAX_PART and PART.fullmatch(part) and not part.endswith((".", " ")) for part in parts
    ):
        return relative
    stem, _, ending = parts[-1].rpartition(".")
    told_apart = hashlib.sha256(relative.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    folder = f"{_plain(parts[0])}/" if len(parts) > 1 else ""
    return f"{folder}{_plain(stem)}-{told_apart}.{ending.lower()}"


def _plain(part: str) -> str:
    return UNUSUAL.sub("_", part)[:40].strip(" .+@=-") or "_"


def _content(name: str, file: IO[bytes]) -> tuple[bytes, InputPicture | None]:
    """Raises: InvalidRequestError: The type is not accepted, or the content is not of that type."""
    ending = name.rpartition(".")[2].lower() if "." in name else ""
    if ending in MODEL_ENDINGS:
        raise _wrong(name, "Models are uploaded under Models, by those who run the platform.")
    if ending not in PICTURE_FORMATS and ending not in TEXT_ENDINGS:
        accepted = ", ".join(sorted((*PICTURE_FORMATS, *TEXT_ENDINGS)))
        raise _wrong(name, f"Files of type {ending[:20] or '(none)'!r} are not kept; accepted are {accepted}.")
    most = MOST_PICTURE_BYTES if ending in PICTURE_FORMATS else MOST_TEXT_BYTES
    data = file.read(most + 1)
    if not 0 < len(data) <= most:
        raise _wrong(
            name, f"It has {'more than ' if data else ''}{min(len(data), most)} bytes; accepted are 1 to {most}."
        )
    if ending in TEXT_ENDINGS:
        _refuse_other_than_text(name, data)
        return data, None
    try:
        return data, picture_from_bytes(data, formats=(PICTURE_FORMATS[ending],)).picture
    except UnreadablePictureError as error:
        reason = (
            str(error) if "exceeds" in str(error) else f"Its content is no whole {PICTURE_FORMATS[ending]} picture."
        )
        raise _wrong(name, reason) from error


def _refuse_other_than_text(name: str, data: bytes) -> None:
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise _wrong(name, "Its content is no text in UTF-8.") from error
    if "\x00" in text:
        raise _wrong(name, "Its content is no text in UTF-8.")


def _wrong(name: str, reason: str) -> InvalidRequestError:
    shown = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in name[:80])
    return InvalidRequestError([FieldError("files", f"{shown}: {reason}", name[:80])])


# --- keeping ----------------------------------------------------------------------------------------------------------


def file_keep(
    *,
    team: Team | None,
    key: str,
    path: str,
    data: bytes,
    picture: InputPicture | None,
    origin: str,
    made_at: datetime,
    user: User | None = None,
) -> TeamFile:
    """Row, object, row: a process that was killed in between is gone on with by the same bytes, or tidied up.

    Raises:
        InvalidRequestError: The team's files would exceed their limit.
        ConflictError: Something else has the key.
    """
    row = TeamFile(
        team=team,
        path=path.encode("utf-8", "replace").decode().replace("\x00", "")[:500],
        file_key=key,
        sha256=hashlib.sha256(data).hexdigest(),
        size_bytes=len(data),
        width=picture.width if picture else None,
        height=picture.height if picture else None,
        infotext=info_and_items(data)[0].replace("\x00", "") if picture else "",
        origin=origin,
        uploaded_by=user,
        made_at=made_at,
        created_at=Now(),
        state=FileState.ARRIVING,
    )
    kept = _reserved(row)
    if kept.state == FileState.STORED:
        return kept
    _write(key, data)
    stored = TeamFile.objects.filter(pk=kept.pk, state__in=(FileState.ARRIVING, FileState.STORED))
    if not stored.update(state=FileState.STORED, state_at=Now()):
        default_storage.delete(key)
        raise ConflictError(f"{path[:80]} was removed while it arrived.")
    return TeamFile.objects.get(pk=kept.pk)


def _reserved(row: TeamFile) -> TeamFile:
    """The row that owns the key from now on: the new one, or one of the same bytes.

    Raises:
        ConflictError: The key is somebody else's.
    """
    if known := TeamFile.objects.filter(file_key=row.file_key).first():
        return _same(row, known)
    if default_storage.exists(row.file_key) and _is_of_a_job(row.file_key):
        raise ConflictError(f"{row.path[:80]}: a job's file has this name.")
    try:
        with transaction.atomic():
            _refuse_beyond_the_limit(row)
            row.save(force_insert=True)
            if row.team_id:
                stored_change(team_id=row.team_id, user_id=row.uploaded_by_id, by=row.size_bytes)
    except IntegrityError:
        known = TeamFile.objects.filter(file_key=row.file_key).first()
        if known is None:
            raise
        return _same(row, known)
    return row


def _same(row: TeamFile, known: TeamFile) -> TeamFile:
    """Raises: ConflictError: The file that is there has other content, or is on its way out."""
    if known.sha256 != row.sha256:
        raise ConflictError(f"{row.path[:80]}: another file of this name is here; delete it first.")
    if known.state == FileState.LEAVING:
        raise ConflictError(f"{row.path[:80]}: the file of this name is being deleted; try again.")
    return known


def _is_of_a_job(key: str) -> bool:
    owners = (
        RenderImage.objects.filter(file_key=key),
        ImageAttachment.objects.filter(file_key=key),
        RenderJob.objects.filter(grid_key=key),
    )
    if any(rows.exists() for rows in owners):
        return True
    saved = ScriptCall.objects.exclude(saved_keys=[]).values_list("saved_keys", flat=True)
    return any(key in keys for keys in saved.iterator())


def _refuse_beyond_the_limit(row: TeamFile) -> None:
    """What is kept for a team is limited by its quotas, and what people upload by one limit for all teams as well; the public
    area is not.

    Raises:
        InvalidRequestError, QuotaExceededError: Naming limit and use.
    """
    if row.team is None:
        return
    stored_check(team_id=row.team.pk, user_id=row.uploaded_by_id, size_bytes=row.size_bytes)
    if row.origin != FileOrigin.UPLOADED:
        return
    # Two uploads take turns. Jobs of the team, which name its row, are not kept waiting.
    list(Team.objects.select_for_update(no_key=True).filter(pk=row.team.pk).values("pk"))
    uploaded = TeamFile.objects.filter(team=row.team, origin=FileOrigin.UPLOADED)
    used = uploaded.aggregate(total=Sum("size_bytes"))["total"] or 0
    limit = settings.TEAM_FILES_BYTES
    if used + row.size_bytes > limit:
        raise _wrong(row.path, f"It has {row.size_bytes} bytes; the team has uploaded {used} of {limit}.")


def _write(key: str, data: bytes) -> None:
    """Whoever else writes this key at the moment writes the same bytes."""
    if default_storage.exists(key):
        default_storage.delete(key)
    written = default_storage.save(key, ContentFile(data))
    if written != key:
        default_storage.delete(written)


# --- removing ---------------------------------------------------------------------------------------------------------


def file_remove(*, file_id: int) -> None:
    """Object and row go; doing it twice, or both at once, is harmless."""
    rows = TeamFile.objects.filter(pk=file_id)
    rows.exclude(state=FileState.LEAVING).update(state=FileState.LEAVING, state_at=Now())
    for file in rows:
        default_storage.delete(file.file_key)
        with transaction.atomic():
            gone, _ = rows.delete()
            if gone and file.team_id:
                stored_change(team_id=file.team_id, user_id=file.uploaded_by_id, by=-file.size_bytes)


def files_tidy() -> None:
    """Finish what killed processes left half done."""
    cut_off = Q(state=FileState.ARRIVING, state_at__lt=now_plus(-ARRIVES_WITHIN.total_seconds()))
    for pk in list(TeamFile.objects.filter(cut_off | Q(state=FileState.LEAVING)).values_list("pk", flat=True)):
        file_remove(file_id=pk)
