"""A data directory of A1111 or PAI-EAS, taken in: its models become assets, its pictures files of a team, with their infotexts.

Nothing of the directory is changed, no link in it is followed. Doing it again takes in what is new.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.db.models.functions import Now

from accounts.models import Team
from assets.hashing import sha256_of
from assets.intake import asset_process, asset_receive
from assets.models import Access, Asset, AssetKind, AssetState
from assets.services import asset_complete
from assets.sidecars import sidecars_of
from common.errors import PlatformError
from common.pictures import UnreadablePictureError
from renderjobs.compat.eas.paths import MAX_PART, PART
from renderjobs.compat.sdapi.infotext_parser import info_and_items
from renderjobs.inputs import picture_from_bytes
from renderjobs.models import ImportedPicture
from renderjobs.outputs import imported_key

MODEL_FOLDERS = {
    "models/Stable-diffusion": AssetKind.CHECKPOINT,
    "models/Lora": AssetKind.LORA,
    "models/LyCORIS": AssetKind.LORA,
    "models/VAE": AssetKind.VAE,
    "models/ControlNet": AssetKind.CONTROLNET,
    "models/ESRGAN": AssetKind.UPSCALER,
    "models/RealESRGAN": AssetKind.UPSCALER,
    "models/hypernetworks": AssetKind.HYPERNETWORK,
    "embeddings": AssetKind.EMBEDDING,
}
"""Folder, in any case of letters → what lies in it and below."""
MODEL_ENDINGS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
PICTURE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
MAX_PICTURE_BYTES = 200_000_000
MAX_KEY_PATH = 220
UNUSUAL = re.compile(r"[^\w. +@=-]", re.ASCII)


@dataclass(frozen=True, slots=True)
class TakenIn:
    """What became of one file; ``done`` is False for one that was left where it is."""

    path: str
    what: str
    done: bool
    note: str = ""


def directory_import(*, root: Path, team: Team, folder: str, public: bool = False) -> Iterator[TakenIn]:
    """Take in one file after the other.

    Args:
        folder: Of the team's files, for the pictures: what the mount path of the directory leads to.
        public: Whether its models are for everybody, or for the team.
    """
    for path in files_below(root):
        relative = path.relative_to(root).as_posix()
        kind = kind_of(relative)
        if kind is not None:
            yield _model(path, relative, kind, team, public=public)
        elif path.suffix.lower() in PICTURE_ENDINGS and not relative.lower().startswith("models/"):
            yield _picture(path, relative, team, folder)


def files_below(root: Path) -> Iterator[Path]:
    """Regular files in order of their paths, without hidden ones and without following links."""
    for where, folders, names in os.walk(root, followlinks=False):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(where) / name
            if not name.startswith(".") and path.is_file() and not path.is_symlink():
                yield path


def kind_of(relative: str) -> AssetKind | None:
    """What a file is by its folder, if it is weights."""
    plain = relative.lower()
    if not plain.endswith(MODEL_ENDINGS):
        return None
    return next(
        (AssetKind(kind) for folder, kind in MODEL_FOLDERS.items() if plain.startswith(f"{folder.lower()}/")), None
    )


def _model(path: Path, relative: str, kind: AssetKind, team: Team, *, public: bool) -> TakenIn:
    about = sidecars_of(path)
    with path.open("rb") as file:
        sha256 = sha256_of(file)
        known = Asset.objects.filter(kind=kind, state=AssetState.APPROVED, name=path.stem)
        for one in known:
            if sha256 in (one.sha256, one.original_sha256):
                asset_complete(asset=one, card=about.card, preview=about.preview)
                return TakenIn(relative, kind, True, " ".join(["was here already", *about.passed_over]))
        file.seek(0)
        config = path.with_suffix(".yaml")
        try:
            has_config = kind == AssetKind.CHECKPOINT and config.is_file()
            with config.open("rb") if has_config else nullcontext() as beside:
                asset = asset_receive(
                    file=file,
                    name=path.name,
                    kind=kind,
                    config=beside,
                    access=Access.PUBLIC if public else Access.TEAMS,
                    teams=() if public else (team,),
                    card=about.card,
                    preview=about.preview,
                )
            asset = asset_process(asset.pk)
        except PlatformError as error:
            return TakenIn(relative, kind, False, error.message)
    said = " ".join(filter(None, [asset.reason, *about.passed_over]))
    return TakenIn(relative, kind, asset.state == AssetState.APPROVED, said)


def _picture(path: Path, relative: str, team: Team, folder: str) -> TakenIn:
    """The object first, under a key made of the path, then its row: a run that was killed is repaired by the next."""
    if path.stat().st_size > MAX_PICTURE_BYTES:
        return TakenIn(relative, "picture", False, f"is larger than {MAX_PICTURE_BYTES} bytes")
    data = path.read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    key = imported_key(team, folder, plain_path(relative))
    known = ImportedPicture.objects.filter(file_key=key).values_list("sha256", flat=True).first()
    if known is not None:
        return TakenIn(relative, "picture", known == sha256, "was here already" if known == sha256 else "has changed")
    try:
        size = picture_from_bytes(data).picture
    except UnreadablePictureError as error:
        return TakenIn(relative, "picture", False, str(error))
    if default_storage.exists(key):
        default_storage.delete(key)
    default_storage.save(key, ContentFile(data))
    ImportedPicture.objects.create(
        team=team,
        path=relative.encode("utf-8", "replace").decode()[:500],
        file_key=key,
        sha256=sha256,
        size_bytes=len(data),
        width=size.width,
        height=size.height,
        infotext=info_and_items(data)[0].replace("\x00", ""),
        made_at=datetime.fromtimestamp(path.stat().st_mtime, UTC),
        created_at=Now(),
    )
    return TakenIn(relative, "picture", True)


def plain_path(relative: str) -> str:
    """The path as part of a key: usual names stay as they are, others become plain and are told apart by a hash."""
    parts = relative.split("/")
    if len(relative) <= MAX_KEY_PATH and all(len(part) <= MAX_PART and PART.fullmatch(part) for part in parts):
        return relative
    stem, _, ending = parts[-1].rpartition(".")
    told_apart = hashlib.sha256(relative.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    folder = f"{_plain(parts[0])}/" if len(parts) > 1 else ""
    return f"{folder}{_plain(stem)}-{told_apart}.{ending.lower()}"


def _plain(part: str) -> str:
    return UNUSUAL.sub("_", part)[:40].strip(" .+@=-") or "_"
