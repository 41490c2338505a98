"""Storage → this machine's disk, by sha-256: weights and input pictures. A copy is hashed while made, and used when whole."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import IO

from django.conf import settings
from django.core.files.storage import Storage, default_storage, storages

from assets.models import Asset, AssetState
from gpuworker.contract import AnyRecipe, WeightsFile
from gpuworker.contract.texts import TextRecipe
from gpuworker.disk_cache import CONFIG_SUFFIX, make_room, used
from renderjobs.models import InputFile

CHUNK_BYTES = 8 * 1024 * 1024


class MissingFileError(Exception):
    """The recipe names a file that is not there any more; trying again does not help."""

    code = "weights_missing"
    retryable = False


class WrongHashError(Exception):
    """The stored object is not the file that was approved."""


@contextmanager
def files_kept(
    recipes: Iterable[AnyRecipe | TextRecipe], team_ids: Collection[int]
) -> Iterator[tuple[dict[str, WeightsFile], dict[str, Path]]]:
    """Every file the recipes name, by its hash, on this machine's disk for as long as the context lasts.

    Weights, and the pictures that these teams sent.

    Raises:
        MissingFileError: A row is gone.
        WrongHashError: The storage holds other bytes than the hash says.
        OSError: Storage or disk failed; trying again may help.
    """
    assets, inputs = _rows(list(recipes), team_ids)
    with ExitStack() as kept:
        yield (
            {sha256: _weights_file(asset, kept) for sha256, asset in assets.items()},
            {sha256: _input_file(row, kept) for sha256, row in inputs.items()},
        )


def _rows(
    recipes: list[AnyRecipe | TextRecipe], team_ids: Collection[int]
) -> tuple[dict[str, Asset], dict[str, InputFile]]:
    weights = {use.sha256 for recipe in recipes for use in recipe.weights()}
    pictures = {picture.sha256 for recipe in recipes for picture in recipe.inputs()}
    usable = Asset.objects.filter(sha256__in=weights, state__in=(AssetState.APPROVED, AssetState.RETIRED))
    assets = {asset.sha256: asset for asset in usable} if weights else {}
    sent = InputFile.objects.filter(sha256__in=pictures, team__in=team_ids) if pictures else ()
    inputs = {row.sha256: row for row in sent}
    for sha256 in (weights - assets.keys()) | (pictures - inputs.keys()):
        raise MissingFileError(f"No file with sha-256 {sha256} is known any more.")
    return assets, inputs


def _input_file(row: InputFile, kept: ExitStack) -> Path:
    path = settings.WORKER_CACHE_DIR / "inputs" / row.sha256
    copy = partial(_copy, row.file_key, path, row.size_bytes, sha256=row.sha256, storage=default_storage)
    kept.enter_context(used(path, copy))
    return path


def _weights_file(asset: Asset, kept: ExitStack) -> WeightsFile:
    path = settings.WORKER_CACHE_DIR / f"{asset.sha256}.safetensors"
    copy = partial(_copy, asset.file_key, path, asset.size_bytes, sha256=asset.sha256)
    _read_ahead(kept.enter_context(used(path, copy)))
    if not asset.config_key:
        return WeightsFile(path)
    config_path = path.with_suffix(CONFIG_SUFFIX)
    if not config_path.exists():
        _copy(asset.config_key, config_path, 0)
    return WeightsFile(path, config_path)


def _read_ahead(file: IO[bytes]) -> None:
    """The system begins to read the file into its memory, unless it is there: while the pass before still renders (H8)."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)


def _copy(key: str, path: Path, size_bytes: int, *, sha256: str | None = None, storage: Storage | None = None) -> None:
    """Make room, copy to a draft beside the target and rename it when it is complete and right."""
    path.parent.mkdir(parents=True, exist_ok=True)
    make_room(settings.WORKER_CACHE_DIR, new_bytes=size_bytes, max_bytes=settings.WORKER_CACHE_BYTES)
    handle, draft = tempfile.mkstemp(dir=path.parent, prefix=".copy-")
    try:
        with os.fdopen(handle, "wb") as target, (storage or storages["assets"]).open(key) as source:
            digest = _copy_hashed(source, target)
        if sha256 is not None and digest != sha256:
            raise WrongHashError(f"Object {key} has sha-256 {digest}, expected {sha256}.")
        os.replace(draft, path)
    finally:
        Path(draft).unlink(missing_ok=True)


def _copy_hashed(source: IO[bytes], target: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while chunk := source.read(CHUNK_BYTES):
        digest.update(chunk)
        target.write(chunk)
    return digest.hexdigest()
