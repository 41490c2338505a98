"""A data directory of A1111 or PAI-EAS, taken in: its models become assets, its pictures files of a team, with their infotexts.

Nothing of the directory is changed, no link in it is followed. Doing it again takes in what is new.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import IO, Any

from django.db.models import Q

from accounts.models import Team
from assets.hashing import sha256_of
from assets.intake import asset_process, asset_receive
from assets.models import Access, Asset, AssetKind, AssetState
from assets.services import asset_complete
from assets.sidecars import sidecars_of
from common.errors import PlatformError
from common.pictures import UnreadablePictureError
from renderjobs.inputs import picture_from_bytes
from renderjobs.models import FileOrigin, FileState, TeamFile
from renderjobs.outputs import imported_key
from renderjobs.team_files import file_keep, plain_path

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
FURTHER_FOLDERS = (
    "models/GFPGAN",
    "models/Codeformer",
    "outputs/txt2img-images",
    "outputs/txt2img-grids",
    "outputs/img2img-images",
    "outputs/img2img-grids",
    "outputs/extras-images",
)
"""Of the tree that the original makes on its first start, beside the folders of models that are used here."""
READINGS = 3
"""Of a model's bytes, when it is taken in."""
HERE_ALREADY = "was here already"
Progress = Callable[[int], object]
"""Called with the number of bytes that were dealt with since the last call."""


@dataclass(frozen=True, slots=True)
class TakenIn:
    """What became of one file; ``done`` is False for one that was left where it is."""

    path: str
    what: str
    done: bool
    note: str = ""


def tree_make(root: Path) -> None:
    """The folders of a data directory, as the original makes them on its first start; those that are there stay."""
    for folder in (*MODEL_FOLDERS, *FURTHER_FOLDERS):
        (root / folder).mkdir(parents=True, exist_ok=True)


def directory_import(*, root: Path, team: Team, folder: str, public: bool = False) -> Iterator[TakenIn]:
    """Take in one file after the other.

    Args:
        folder: Of the team's files, for the pictures: what the mount path of the directory leads to.
        public: Whether its models are for everybody, or for the team.
    """
    for path in files_below(root):
        if sort_of(path.relative_to(root).as_posix()) != Sort.OTHER:
            yield file_import(path, root=root, team=team, folder=folder, public=public)


class Sort(Enum):
    MODEL = "model"
    UNUSED_MODEL = "weights"
    PICTURE = "picture"
    OTHER = "other"


def sort_of(relative: str) -> Sort:
    """What a file is, as far as its path tells."""
    plain = relative.lower()
    if kind_of(relative) is not None:
        return Sort.MODEL
    if plain.startswith("models/"):
        return Sort.UNUSED_MODEL if plain.endswith(MODEL_ENDINGS) else Sort.OTHER
    return Sort.PICTURE if plain.endswith(PICTURE_ENDINGS) else Sort.OTHER


def file_import(
    path: Path, *, root: Path, team: Team, folder: str, public: bool, progress: Progress = lambda _: None
) -> TakenIn:
    """Take in one file of a model or a picture, or say why it is left."""
    relative = path.relative_to(root).as_posix()
    kind = kind_of(relative)
    try:
        if kind is not None:
            return _model(path, relative, kind, team, public=public, progress=progress)
        if sort_of(relative) == Sort.UNUSED_MODEL:
            return TakenIn(relative, Sort.UNUSED_MODEL.value, False, "Models of this folder are not used here.")
        return _picture(path, relative, team, folder)
    except FileNotFoundError:
        return TakenIn(relative, sort_of(relative).value, False, "It went while the directory was read.")
    except PermissionError:
        return TakenIn(relative, sort_of(relative).value, False, "The platform may not read it.")


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


def _model(path: Path, relative: str, kind: AssetKind, team: Team, *, public: bool, progress: Progress) -> TakenIn:
    """Read three times: to know it, to copy it, to examine the copy. A third of the bytes are told each time."""
    about = sidecars_of(path)
    with path.open("rb") as opened:
        file: Any = Told(opened, progress)
        sha256 = sha256_of(file)
        reach = Q(access=Access.PUBLIC) if public else Q(access=Access.PUBLIC) | Q(access=Access.TEAMS, teams=team)
        for one in Asset.objects.filter(reach, kind=kind, state=AssetState.APPROVED, name=path.stem):
            if sha256 in (one.sha256, one.original_sha256):
                asset_complete(asset=one, card=about.card, preview=about.preview)
                return TakenIn(relative, kind, True, " ".join([HERE_ALREADY, *about.passed_over]))
        file.seek(0)
        config = path.with_suffix(".yaml")
        try:
            has_config = kind == AssetKind.CHECKPOINT and config.is_file() and not config.is_symlink()
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
            asset = asset_process(asset.pk, progress=lambda size: progress(size // READINGS))
        except PlatformError as error:
            return TakenIn(relative, kind, False, error.message)
    said = " ".join(filter(None, [asset.reason, *about.passed_over]))
    return TakenIn(relative, kind, asset.state == AssetState.APPROVED, said)


class Told:
    """A file that tells how much of it was read."""

    def __init__(self, file: IO[bytes], progress: Progress) -> None:
        self._file, self._progress = file, progress

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._progress(len(data) // READINGS)
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _picture(path: Path, relative: str, team: Team, folder: str) -> TakenIn:
    if path.stat().st_size > MAX_PICTURE_BYTES:
        return TakenIn(relative, "picture", False, f"is larger than {MAX_PICTURE_BYTES} bytes")
    data = path.read_bytes()
    key = imported_key(team, folder, plain_path(relative))
    if TeamFile.objects.filter(file_key=key, state=FileState.STORED, sha256=hashlib.sha256(data).hexdigest()).exists():
        return TakenIn(relative, "picture", True, HERE_ALREADY)
    try:
        file_keep(
            team=team,
            key=key,
            path=relative,
            data=data,
            picture=picture_from_bytes(data).picture,
            origin=FileOrigin.IMPORTED,
            made_at=datetime.fromtimestamp(path.stat().st_mtime, UTC),
        )
    except UnreadablePictureError as error:
        return TakenIn(relative, "picture", False, str(error))
    except PlatformError as error:
        return TakenIn(relative, "picture", False, error.message)
    return TakenIn(relative, "picture", True)
