"""Asset storage → this machine's disk, by sha-256. A copy is hashed while it is made and used only if it is whole."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from typing import IO

from django.conf import settings
from django.core.files.storage import storages

from assets.models import Asset
from gpuworker.contract import CheckpointFile

CHUNK_BYTES = 8 * 1024 * 1024


class WrongHashError(Exception):
    """The stored object is not the file that was approved."""


def checkpoint_file(asset: Asset) -> CheckpointFile:
    """The checkpoint on this machine's disk, copied there first if need be.

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
    return CheckpointFile(sha256=asset.sha256, path=path, config_path=config_path)


def _copy(key: str, path: Path, *, sha256: str | None = None) -> None:
    """Copy to a draft beside the target and rename it when it is complete and right."""
    handle, draft = tempfile.mkstemp(dir=path.parent, prefix=".copy-")
    try:
        with os.fdopen(handle, "wb") as target, storages["assets"].open(key) as source:
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
