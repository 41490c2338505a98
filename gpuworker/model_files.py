"""Storage → this machine's disk, by sha-256: weights and input pictures. A copy is hashed while made, and used when whole."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import IO

from django.conf import settings
from django.core.files.storage import Storage, default_storage, storages

from assets.models import Asset, AssetState
from gpuworker.contract import AnyRecipe, WeightsFile
from renderjobs.models import InputFile

CHUNK_BYTES = 8 * 1024 * 1024


class MissingFileError(Exception):
    """The recipe names a file that is not there any more; trying again does not help."""

    code = "weights_missing"
    retryable = False


class WrongHashError(Exception):
    """The stored object is not the file that was approved."""


def files_of(recipes: Iterable[AnyRecipe], team_ids: Collection[int]) -> tuple[dict[str, WeightsFile], dict[str, Path]]:
    """Every file the recipes name, by its hash: weights, and the pictures that these teams sent.

    Raises:
        MissingFileError: A row is gone.
        WrongHashError, OSError: As ``weights_file``.
    """
    recipes = list(recipes)
    weights = {use.sha256 for recipe in recipes for use in recipe.weights()}
    pictures = {picture.sha256 for recipe in recipes for picture in recipe.inputs()}
    usable = Asset.objects.filter(sha256__in=weights, state__in=(AssetState.APPROVED, AssetState.RETIRED))
    assets = {asset.sha256: asset for asset in usable} if weights else {}
    sent = InputFile.objects.filter(sha256__in=pictures, team__in=team_ids) if pictures else ()
    inputs = {row.sha256: row for row in sent}
    for sha256 in (weights - assets.keys()) | (pictures - inputs.keys()):
        raise MissingFileError(f"No file with sha-256 {sha256} is known any more.")
    return (
        {sha256: weights_file(asset) for sha256, asset in assets.items()},
        {sha256: input_file(row) for sha256, row in inputs.items()},
    )


def input_file(row: InputFile) -> Path:
    """Raises: as ``weights_file``."""
    folder = settings.WORKER_CACHE_DIR / "inputs"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / row.sha256
    if not path.exists():
        _copy(row.file_key, path, sha256=row.sha256, storage=default_storage)
    return path


def weights_file(asset: Asset) -> WeightsFile:
    """The asset on this machine's disk, copied there first if need be.

    Raises:
        WrongHashError: The storage holds other bytes than the asset's hash says.
        OSError: Storage or disk failed; trying again may help.
    """
    folder = settings.WORKER_CACHE_DIR
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{asset.sha256}.safetensors"
    if not path.exists():
        _copy(asset.file_key, path, sha256=asset.sha256)
    config_path = None
    if asset.config_key:
        config_path = path.with_suffix(".yaml")
        if not config_path.exists():
            _copy(asset.config_key, config_path)
    return WeightsFile(path, config_path)


def _copy(key: str, path: Path, *, sha256: str | None = None, storage: Storage | None = None) -> None:
    """Copy to a draft beside the target and rename it when it is complete and right."""
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
