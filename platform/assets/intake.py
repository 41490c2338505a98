"""From upload to approval: received → hashed → scanned → recognised → approved, or quarantined with the reason.

Each step is safe to repeat, so a process killed in the middle is finished by the next call of ``asset_process``. The object
of an approved asset lies under its hash and is never overwritten.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Callable
from typing import IO, Any

import yaml
from django.core.files.base import ContentFile
from django.core.files.storage import Storage, storages
from django.db import IntegrityError, transaction
from django.db.models.functions import Now

from accounts.models import Team, User
from assets.models import Access, Asset, AssetKind, AssetState
from assets.scanning import UnsafeFileError, header_read
from common.errors import FieldError, InvalidRequestError
from gpuworker.contract.families import recognise

logger = logging.getLogger(__name__)
CHUNK_BYTES = 4 * 1024 * 1024
MAX_CONFIG_BYTES = 256 * 1024
RENDERABLE_FAMILIES = ("sd1",)
"""Checkpoint families that this version's engine renders."""
FAMILIES_OF_KIND = {
    AssetKind.VAE: ("vae",),
    AssetKind.LORA: ("lora",),
    AssetKind.EMBEDDING: ("embedding",),
    AssetKind.CONTROLNET: ("controlnet",),
    AssetKind.UPSCALER: ("upscaler",),
    AssetKind.HYPERNETWORK: ("hypernetwork",),
}


def asset_storage() -> Storage:
    return storages["assets"]


def asset_receive(
    *,
    file: IO[bytes],
    name: str,
    kind: str,
    config: IO[bytes] | None = None,
    access: str = Access.PUBLIC,
    teams: tuple[Team, ...] = (),
    users: tuple[User, ...] = (),
    uploaded_by: User | None = None,
) -> Asset:
    """Store an upload in quarantine and write its row; nothing of it can be used before ``asset_process`` approves it.

    Raises:
        InvalidRequestError: The name or the YAML cannot be used; nothing is stored.
    """
    stem = clean_stem(name)
    configuration = config_text(config) if config else None
    asset = Asset.objects.create(kind=kind, name=stem, access=access, uploaded_by=uploaded_by)
    asset.teams.set(teams)
    asset.users.set(users)
    folder = f"quarantine/{asset.pk}"
    file.seek(0)
    asset.file_key = asset_storage().save(f"{folder}/upload", _ChunkedFile(file))
    asset.size_bytes = asset_storage().size(asset.file_key)
    if configuration is not None:
        asset.config_key = asset_storage().save(f"{folder}/config.yaml", ContentFile(configuration))
    asset.save(update_fields=["file_key", "size_bytes", "config_key"])
    return asset


def asset_process(asset_id: int, *, progress: Callable[[int], Any] = lambda _: None) -> Asset:
    """Walk the asset to approval or quarantine.

    Args:
        progress: Called with the number of bytes hashed since the last call.
    Returns:
        The asset; an already approved one of the same kind, name and hash takes the place of a repeated upload.
    """
    asset = Asset.objects.get(pk=asset_id)
    if asset.state in (AssetState.APPROVED, AssetState.QUARANTINED, AssetState.RETIRED):
        return asset
    try:
        with asset_storage().open(asset.file_key) as file:
            _step(asset, AssetState.HASHED, sha256=hashed(file, progress))
            header = header_read(file, size_bytes=asset.size_bytes)
            _step(asset, AssetState.SCANNED)
        _step(asset, AssetState.RECOGNISED, family=family_of(asset.kind, header.shapes))
    except UnsafeFileError as error:
        return _quarantine(asset, error.message)
    return _approve(asset)


def clean_stem(name: str) -> str:
    """The file's stem without a path or anything a path could be made of.

    Raises:
        InvalidRequestError: Nothing usable is left.
    """
    stem = re.sub(r"\.(safetensors|ckpt|pt|pth|bin)$", "", re.split(r"[/\\]", name.strip())[-1], flags=re.IGNORECASE)
    stem = "".join(char for char in stem if char.isprintable() and char not in '<>:"|?*,[]').strip(" .")
    if not stem or len(stem) > 200:
        raise InvalidRequestError([FieldError("name", f"{name[:80]!r} cannot be used as a name.", name)])
    return stem


def hashed(file: IO[bytes], progress: Callable[[int], Any]) -> str:
    digest = hashlib.sha256()
    file.seek(0)
    while chunk := file.read(CHUNK_BYTES):
        digest.update(chunk)
        progress(len(chunk))
    return digest.hexdigest()


def family_of(kind: str, shapes: dict[str, tuple[int, ...]]) -> str:
    """The family of the file's weights.

    Raises:
        UnsafeFileError: They are not of the kind that was declared, or this version cannot render them.
    """
    found = recognise(shapes)
    if found.family is None:
        raise UnsafeFileError(f"The weights are not recognised. {found.reason}")
    if kind == AssetKind.CHECKPOINT:
        if not found.is_checkpoint:
            raise UnsafeFileError(f"The file holds weights of kind {found.family}, not a checkpoint.")
        if found.missing:
            shown = ", ".join(found.missing[:3])
            raise UnsafeFileError(
                f"The file looks like {found.family} but lacks {len(found.missing)} tensors: {shown}."
            )
        if found.family not in RENDERABLE_FAMILIES or found.input_channels != 4:
            accepted = ", ".join(RENDERABLE_FAMILIES)
            raise UnsafeFileError(
                f"The file is a checkpoint of family {found.family} with {found.input_channels} input channels; "
                f"this version renders text-to-image checkpoints of family {accepted}."
            )
    elif found.family not in FAMILIES_OF_KIND[AssetKind(kind)]:
        raise UnsafeFileError(f"The file holds weights of kind {found.family}, not {kind}.")
    return found.family


def config_text(config: IO[bytes]) -> bytes:
    """Raises: InvalidRequestError: Too long, or not a YAML map."""
    text = config.read(MAX_CONFIG_BYTES + 1)
    if len(text) > MAX_CONFIG_BYTES:
        raise InvalidRequestError([FieldError("config", f"The YAML is longer than {MAX_CONFIG_BYTES} bytes.")])
    try:
        parsed = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequestError([FieldError("config", "The YAML cannot be read.")]) from error
    if not isinstance(parsed, dict):
        raise InvalidRequestError([FieldError("config", "The YAML is not a map.")])
    return text


def _step(asset: Asset, state: str, **values: Any) -> None:
    for name, value in values.items():
        setattr(asset, name, value)
    asset.state = state
    asset.save(update_fields=["state", *values])


def _quarantine(asset: Asset, reason: str) -> Asset:
    """Keep the row with its reason, remove the file."""
    for key in (asset.file_key, asset.config_key):
        if key:
            asset_storage().delete(key)
    _step(asset, AssetState.QUARANTINED, reason=reason, file_key="", config_key="")
    logger.warning("Asset %s (%s) is quarantined: %s", asset.pk, asset.name, reason)
    return asset


def _approve(asset: Asset) -> Asset:
    twin = Asset.objects.filter(
        kind=asset.kind, name=asset.name, sha256=asset.sha256, state__in=[AssetState.APPROVED, AssetState.RETIRED]
    ).first()
    if twin is not None:
        _discard(asset)
        if twin.state == AssetState.RETIRED:
            _step(twin, AssetState.APPROVED)  # uploading it again is asking for it back
        return twin
    draft_keys = (asset.file_key, asset.config_key)
    stored = f"{asset.kind}/{asset.sha256}"
    file_key = _settled(asset.file_key, f"{stored}.safetensors")
    config_key = _settled(asset.config_key, f"{stored}.yaml") if asset.config_key else ""
    try:
        with transaction.atomic():
            values = {"file_key": file_key, "config_key": config_key, "short_hash": asset.sha256[:10]}
            Asset.objects.filter(pk=asset.pk).update(state=AssetState.APPROVED, approved_at=Now(), **values)
    except IntegrityError:
        _discard(asset)  # the same upload was approved a moment ago by another process
        return Asset.objects.get(kind=asset.kind, name=asset.name, sha256=asset.sha256, state=AssetState.APPROVED)
    for key in draft_keys:
        if key.startswith("quarantine/"):
            asset_storage().delete(key)
    if asset.kind == AssetKind.CHECKPOINT:
        _become_default_if_first(asset.pk)
    return Asset.objects.get(pk=asset.pk)


def _settled(key: str, final: str) -> str:
    """Copy the draft to its content-addressed place, unless it lies there already."""
    storage = asset_storage()
    if not storage.exists(final):
        with storage.open(key) as draft:
            saved = storage.save(final, _ChunkedFile(draft))
        if saved != final:  # another process stored the same bytes in between
            storage.delete(saved)
    return final


def _discard(asset: Asset) -> None:
    for key in (asset.file_key, asset.config_key):
        if key.startswith("quarantine/"):
            asset_storage().delete(key)
    asset.delete()


def _become_default_if_first(asset_id: int) -> None:
    if Asset.objects.filter(kind=AssetKind.CHECKPOINT, is_default=True).exists():
        return
    try:
        with transaction.atomic():
            Asset.objects.filter(pk=asset_id).update(is_default=True)
    except IntegrityError:
        pass  # another checkpoint became the default first


class _ChunkedFile(ContentFile):
    """A stream of unknown length as the storages want it: read in chunks, never whole in memory."""

    def __init__(self, file: IO[bytes]):
        super().__init__(b"")
        self.file = file
        position = file.tell()
        file.seek(0, os.SEEK_END)
        self.size = file.tell()
        file.seek(position)

    def __bool__(self) -> bool:
        return True
