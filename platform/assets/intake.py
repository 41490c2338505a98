"""From upload to approval: received → hashed (→ converted) → scanned → recognised → approved, or quarantined with the reason.

Every step may be repeated, by the same process or by two at once: a state is only ever moved forward, and an object gets its
final place in one step. So a process killed anywhere is finished by the next call of ``asset_process``. The object of an
approved asset lies under its hash and is never changed.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import unicodedata
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

import yaml
from django.conf import settings
from django.core.files.base import ContentFile, File
from django.core.files.storage import Storage, storages
from django.db import IntegrityError, transaction
from django.db.models.functions import Now

from accounts.models import Team, User
from assets.cards import Card, card_from_header
from assets.companions import COMPANIONS, companion_family, companion_metadata
from assets.conversion import convert, needs_conversion
from assets.hashing import CHUNK_BYTES, HashedStream, sha256_of
from assets.listing import alias, embedding_facts, embeddings_inside, listed_hash, shown_metadata
from assets.models import Access, Asset, AssetKind, AssetQuerySet, AssetState, Upload
from assets.previews import preview_from_text, preview_remove, preview_set
from assets.recognition import recognised, refuse_quantised
from assets.scanning import UnsafeFileError, header_read
from common.database import now_plus
from common.errors import FieldError, InvalidRequestError

logger = logging.getLogger(__name__)
MAX_CONFIG_BYTES = 64 * 1024
MAX_CONFIG_DEPTH = 32
"""Configurations of models have about six levels; PyYAML's time grows with the square of the depth."""
MAX_REASON_CHARACTERS = 500
UPLOAD_TIME = timedelta(hours=6)
"""An upload that has not ended by then was cut off."""
UNDERWAY = (AssetState.RECEIVED, AssetState.HASHED, AssetState.SCANNED, AssetState.RECOGNISED)
SETTLED = (AssetState.APPROVED, AssetState.RETIRED)
CONVERTED = "converted"
"""A draft's name after its conversion, beside the ``upload``."""
SEPARATORS = re.compile(r"[/\\\u2044\u2215\u29f5\u29f8]")
"""Slashes and what looks like one; full-width forms become plain ones before."""
YAML_OPENS = (
    yaml.BlockMappingStartToken,
    yaml.BlockSequenceStartToken,
    yaml.FlowMappingStartToken,
    yaml.FlowSequenceStartToken,
)
YAML_CLOSES = (yaml.BlockEndToken, yaml.FlowMappingEndToken, yaml.FlowSequenceEndToken)
YAML_ERRORS = (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, OverflowError, RecursionError)
"""PyYAML lets its constructors' own exceptions through, for instance of the date 2020-99-99."""


Room = Callable[[tuple[Team, ...], User | None, int], None]
_room_checks: list[Room] = []
"""Asked before a file is taken in for teams: (teams, who brings it, its bytes). Each may refuse."""


def room_check_register(check: Room) -> None:
    if check not in _room_checks:
        _room_checks.append(check)


class _Overtaken(Exception):
    """Another process has ended the intake of this asset in the meantime."""


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
    card: Card | None = None,
    preview: bytes = b"",
) -> Asset:
    """Store an upload in quarantine and write its row; nothing of it can be used before ``asset_process`` approves it.

    Args:
        card: What is known about the file; what is not, is taken from the file itself.
        preview: Its picture, as ``preview_made`` returns it.
    Raises:
        InvalidRequestError: The name or the YAML cannot be used; nothing is stored.
        PlatformError: There is no room for it with one of the teams; nothing is stored.
    """
    configuration = config_text(config) if config else None
    asset = asset_announce(
        name=name,
        kind=kind,
        size_bytes=size_of(file),
        access=access,
        teams=teams,
        users=users,
        uploaded_by=uploaded_by,
        card=card,
    )
    try:
        preview_set(asset=asset, made=preview)
        return draft_store(asset, file, configuration)
    except BaseException:
        asset_discard(asset)
        raise


@transaction.atomic
def asset_announce(
    *,
    name: str,
    kind: str,
    size_bytes: int,
    access: str = Access.PUBLIC,
    teams: tuple[Team, ...] = (),
    users: tuple[User, ...] = (),
    uploaded_by: User | None = None,
    card: Card | None = None,
) -> Asset:
    """The row of a file that is still to come, with the size that is announced.

    Raises:
        InvalidRequestError: The name cannot be used.
        PlatformError: There is no room for it with one of the teams.
    """
    stem = clean_stem(name)
    if access == Access.TEAMS:
        for check in _room_checks:
            check(teams, uploaded_by, size_bytes)
    said = (card or Card()).values()
    asset = Asset.objects.create(
        kind=kind, name=stem, size_bytes=size_bytes, access=access, uploaded_by=uploaded_by, **said
    )
    asset.teams.set(teams)
    asset.users.set(users)
    return asset


def asset_process(asset_id: int, *, progress: Callable[[int], Any] = lambda _: None) -> Asset:
    """Walk the asset to approval or quarantine.

    Args:
        progress: Called with the number of bytes hashed since the last call.
    Returns:
        The asset; an already approved one of the same kind, name and hash takes the place of a repeated upload. Its state
        is still ``received`` while the upload goes on.
    Raises:
        Asset.DoesNotExist: There is no such upload, or it was a repeated one.
    """
    asset = Asset.objects.get(pk=asset_id)
    if asset.state not in UNDERWAY:
        return _cleaned(asset)
    try:
        if not asset.sha256:
            return _unfinished_upload(asset)
        _examine(asset, progress)
        return _approve(asset)
    except UnsafeFileError as error:
        return asset_quarantine(asset, error.message)
    except _Overtaken:
        return _ended_elsewhere(asset)


def size_of(file: IO[bytes]) -> int:
    """Of a file that can be read from its beginning."""
    file.seek(0, os.SEEK_END)
    size = file.tell()
    file.seek(0)
    return size


def clean_stem(name: str) -> str:
    """The file's stem without a path or anything a path could be made of.

    Raises:
        InvalidRequestError: Nothing usable is left.
    """
    last = SEPARATORS.split(unicodedata.normalize("NFKC", name).strip())[-1]
    stem = re.sub(r"\.(safetensors|ckpt|pt|pth|bin|zip)$", "", last, flags=re.IGNORECASE)
    stem = "".join(char for char in stem if char.isprintable() and char not in '<>:"|?*,[]').strip(" .")
    if not stem or len(stem) > 200:
        raise InvalidRequestError([FieldError("name", f"{name[:80]!r} cannot be used as a name.", name)])
    return stem


def config_text(config: IO[bytes]) -> bytes:
    """Raises: InvalidRequestError: Too long, or not a YAML map."""
    text = config.read(MAX_CONFIG_BYTES + 1)
    if len(text) > MAX_CONFIG_BYTES:
        raise InvalidRequestError([FieldError("config", f"The YAML is longer than {MAX_CONFIG_BYTES} bytes.")])
    try:
        _refuse_costly_yaml(text)
        parsed = yaml.safe_load(text)
    except YAML_ERRORS as error:
        raise InvalidRequestError([FieldError("config", "The YAML cannot be read.")]) from error
    if not isinstance(parsed, dict):
        raise InvalidRequestError([FieldError("config", "The YAML is not a map.")])
    return text


def _refuse_costly_yaml(text: bytes) -> None:
    """Raises: InvalidRequestError: Reading it could take more time or memory than there is."""
    depth = 0
    for token in yaml.scan(text):
        # A few aliases of aliases stand for gigabytes, and no model's configuration has one.
        if isinstance(token, yaml.AliasToken):
            raise InvalidRequestError([FieldError("config", "The YAML has aliases, which are not accepted.")])
        depth += isinstance(token, YAML_OPENS) - isinstance(token, YAML_CLOSES)
        if depth > MAX_CONFIG_DEPTH:
            raise InvalidRequestError([FieldError("config", f"The YAML has more than {MAX_CONFIG_DEPTH} levels.")])


def draft_store(asset: Asset, file: IO[bytes], configuration: bytes | None) -> Asset:
    """Keep the bytes in quarantine. The row's hash is written last: without one, the upload has not ended."""
    folder = draft_folder(asset)
    stream = HashedStream(file)
    asset.file_key = asset_storage().save(f"{folder}/upload", stream)
    if configuration is not None:
        asset.config_key = asset_storage().save(f"{folder}/config.yaml", ContentFile(configuration))
    asset.size_bytes, asset.sha256 = stream.size, stream.sha256
    asset.save(update_fields=["file_key", "config_key", "size_bytes", "sha256"])
    return asset


def _unfinished_upload(asset: Asset) -> Asset:
    if Upload.objects.filter(asset=asset).exists():
        return asset  # arrives in parts; ``uploads`` says when it was given up
    if Asset.objects.filter(pk=asset.pk, created_at__gt=now_plus(-UPLOAD_TIME.total_seconds())).exists():
        return asset
    raise UnsafeFileError("The upload was cut off; upload the file again.")


def _examine(asset: Asset, progress: Callable[[int], Any]) -> None:
    """Hash, convert where needed, scan and recognise what lies in the storage.

    Raises:
        UnsafeFileError: It cannot be used.
    """
    with _opened(asset) as file:
        if sha256_of(file, progress) != asset.sha256:
            raise UnsafeFileError("The stored file is not what was uploaded; upload it again.")
        _step(asset, AssetState.HASHED)
        if needs_conversion(file):
            _replace_by_conversion(asset, file)
    with _opened(asset) as file:
        header = header_read(file, size_bytes=asset.size_bytes)
        if not asset.original_sha256:
            asset.listed_hash = listed_hash(asset.kind, file, sha256=asset.sha256, metadata=header.metadata)
        _step(asset, AssetState.SCANNED, listed_hash=asset.listed_hash)
    if asset.kind in COMPANIONS:
        family, facts = companion_family(asset.kind, header), companion_metadata(asset.kind, asset.name, header)
        _step(asset, AssetState.RECOGNISED, family=family, metadata=facts)
        return
    refuse_quantised(asset.kind, header)
    found = recognised(asset.kind, header.shapes)
    other_name, metadata = alias(asset.kind, header.metadata), shown_metadata(asset.kind, header.metadata)
    if asset.kind == AssetKind.CHECKPOINT:
        metadata = {**metadata, "input_channels": found.input_channels}
    if asset.kind == AssetKind.CONTROLNET:
        metadata = {**metadata, "base": found.base}
    if asset.kind == AssetKind.EMBEDDING:
        metadata = {**metadata, **embedding_facts(header.shapes, header.metadata)}
    _step(
        asset,
        AssetState.RECOGNISED,
        family=found.family,
        alias=other_name,
        metadata=metadata,
        embeddings_inside=embeddings_inside(asset.kind, header.shapes),
        **missing_of_card(asset, card_from_header(header.metadata)),
    )
    if not asset.preview_key and (picture := header.metadata.get("modelspec.thumbnail")):
        with suppress(InvalidRequestError):
            preview_set(asset=asset, made=preview_from_text(picture))


def missing_of_card(asset: Asset, card: Card) -> dict[str, Any]:
    """What the card says and the asset's own does not."""
    own = asset.card
    return {name: value for name, value in own.or_else(card).values().items() if value != getattr(own, name)}


def _replace_by_conversion(asset: Asset, file: IO[bytes]) -> None:
    """From here on the row means the converted file; what was uploaded is remembered by its hashes.

    Raises:
        UnsafeFileError: The file is more than tensors, or no model.
        _Overtaken: Another process has ended the intake, or has converted the file and will end it.
    """
    storage, key = asset_storage(), f"{draft_folder(asset)}/{CONVERTED}"
    with TemporaryDirectory(prefix="intake-", dir=settings.FILE_UPLOAD_TEMP_DIR) as folder:
        target = Path(folder) / "target"
        convert(_local_copy(file, Path(folder)), target)
        with target.open("rb") as converted:
            stream = HashedStream(converted)
            values: dict[str, Any] = {"file_key": storage.save(key, stream)}
    values |= {
        "sha256": stream.sha256,
        "size_bytes": stream.size,
        "original_sha256": asset.sha256,
        "listed_hash": listed_hash(asset.kind, file, sha256=asset.sha256, metadata=None),
    }
    if not Asset.objects.filter(pk=asset.pk, state__in=UNDERWAY, original_sha256="").update(**values):
        # What the other process wrote may have this very key; then it is its draft, and has the same bytes.
        if not Asset.objects.filter(pk=asset.pk, file_key=values["file_key"]).exists():
            storage.delete(values["file_key"])
        raise _Overtaken
    for field, value in values.items():
        setattr(asset, field, value)


def _local_copy(file: IO[bytes], folder: Path) -> Path:
    """The file as one that another process can open; object stores have none."""
    name = getattr(file, "name", None)
    if isinstance(name, str) and os.path.isabs(name) and os.path.isfile(name):
        return Path(name)
    copy = folder / "source"
    file.seek(0)
    with copy.open("wb") as target:
        shutil.copyfileobj(file, target, CHUNK_BYTES)
    return copy


def _opened(asset: Asset) -> File:
    """The draft, or the final object if a process was killed after it had placed it."""
    for key in (asset.file_key, _final_key(asset)):
        try:
            return asset_storage().open(key)
        except FileNotFoundError:
            continue
    raise UnsafeFileError("The uploaded file is gone; upload it again.")


def _step(asset: Asset, state: str, **values: Any) -> None:
    """Raises: _Overtaken: The asset is not under way any more; nothing is written."""
    if not Asset.objects.filter(pk=asset.pk, state__in=UNDERWAY).update(state=state, **values):
        raise _Overtaken


def _ended_elsewhere(asset: Asset) -> Asset:
    return Asset.objects.filter(pk=asset.pk).first() or _twins(asset).get()


def asset_quarantine(asset: Asset, reason: str) -> Asset:
    """Keep the row with its reason, remove the file."""
    # A tensor's name may hold what no database takes as text.
    shown = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in reason)
    try:
        _step(asset, AssetState.QUARANTINED, reason=shown[:MAX_REASON_CHARACTERS])
    except _Overtaken:
        return _ended_elsewhere(asset)
    logger.warning("Asset %s (%s) is quarantined: %s", asset.pk, asset.name, shown[:MAX_REASON_CHARACTERS])
    return _cleaned(Asset.objects.get(pk=asset.pk))


def _approve(asset: Asset) -> Asset:
    """Raises: UnsafeFileError: The same weights are here already, in a way that this upload cannot join."""
    _refuse_other_config(asset)
    if twin := _twins(asset).first():
        return _joined(asset, twin)
    short_hash = (asset.original_sha256 or asset.sha256)[:10]
    values = {"file_key": _placed_file(asset), "config_key": _placed_config(asset), "short_hash": short_hash}
    try:
        with transaction.atomic():
            _step(asset, AssetState.APPROVED, approved_at=Now(), **values)
            _become_default_if_first(asset)
    except IntegrityError:  # the same upload was approved a moment ago by another process
        return _joined(asset, _twins(asset).get())
    return _cleaned(asset)


def _twins(asset: Asset) -> AssetQuerySet:
    """What was approved before with the same bytes under the same name; at most one."""
    same = Asset.objects.filter(kind=asset.kind, name=asset.name, sha256=asset.sha256, state__in=SETTLED)
    return same.exclude(pk=asset.pk)


def _joined(asset: Asset, twin: Asset) -> Asset:
    """The twin stands for a repeated upload from now on, also for the teams and users that the upload names.

    Raises:
        UnsafeFileError: The twin is for other people; opening it to these is for a person to decide.
    """
    if twin.access not in (Access.PUBLIC, asset.access):
        raise UnsafeFileError(f"The same file is here under this name already, for some {twin.access} only.")
    _placed_file(asset)  # mends a stored file that was damaged or lost
    with transaction.atomic():
        if twin.access == asset.access:
            twin.teams.add(*asset.teams.all())
            twin.users.add(*asset.users.all())
        _hand_over_card(asset, twin)
        # Uploading a retired file again is asking for it back.
        Asset.objects.filter(pk=twin.pk, state=AssetState.RETIRED).update(state=AssetState.APPROVED)
    asset_discard(asset)
    return Asset.objects.get(pk=twin.pk)


def _hand_over_card(asset: Asset, twin: Asset) -> None:
    """What was said about a repeated upload, where nothing was before."""
    said = Asset.objects.get(pk=asset.pk)
    changes = missing_of_card(twin, said.card)
    if said.preview_key and not twin.preview_key:
        changes["preview_key"] = said.preview_key
        Asset.objects.filter(pk=said.pk).update(preview_key="")
    if changes:
        Asset.objects.filter(pk=twin.pk).update(**changes)


def _refuse_other_config(asset: Asset) -> None:
    """Weights are addressed by their hash, so they have one YAML, whatever names they go by."""
    draft = _content(asset.config_key) if asset.config_key else None
    if draft is None:
        return
    same_weights = Asset.objects.filter(kind=asset.kind, sha256=asset.sha256, state__in=SETTLED)
    if same_weights.exists() and _content(_final_key(asset, "yaml")) != draft:
        raise UnsafeFileError("The same weights are here already without this YAML.")


def _content(key: str) -> bytes | None:
    try:
        with asset_storage().open(key) as file:
            return file.read()
    except FileNotFoundError:
        return None


def _final_key(asset: Asset, extension: str = "safetensors") -> str:
    return f"{asset.kind}/{asset.sha256}.{extension}"


def _placed_file(asset: Asset) -> str:
    final, storage = _final_key(asset), asset_storage()
    # An object of another size was left by a process or a disk that failed: this one replaces it.
    if not storage.exists(final) or storage.size(final) != asset.size_bytes:
        _place(asset.file_key, final)
    return final


def _placed_config(asset: Asset) -> str:
    if not asset.config_key:
        return ""
    final = _final_key(asset, "yaml")
    _place(asset.config_key, final)
    return final


def _place(draft: str, final: str) -> None:
    """Give the draft's bytes their final key; readers find the whole object there or none."""
    storage = asset_storage()
    try:
        source, target = storage.path(draft), storage.path(final)
    except NotImplementedError:  # an object store shows an object when it is complete
        with storage.open(draft) as file:
            storage.save(final, HashedStream(file))
        return
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    try:
        os.replace(source, target)
    except FileNotFoundError:  # another process, or one that was killed, has moved it
        if not storage.exists(final):
            raise


def _become_default_if_first(asset: Asset) -> None:
    if asset.kind != AssetKind.CHECKPOINT or Asset.objects.filter(kind=asset.kind, is_default=True).exists():
        return
    try:
        with transaction.atomic():
            Asset.objects.filter(pk=asset.pk).update(is_default=True)
    except IntegrityError:
        pass  # another checkpoint became the default first


def draft_folder(asset: Asset) -> str:
    return f"quarantine/{asset.pk}"


def _cleaned(asset: Asset) -> Asset:
    """The asset as its row is now, without a draft of it left."""
    _remove_drafts(asset)
    if asset.state == AssetState.QUARANTINED:
        Asset.objects.filter(pk=asset.pk).update(file_key="", config_key="")
    return Asset.objects.get(pk=asset.pk)


def asset_discard(asset: Asset) -> None:
    """Remove an upload that is not approved yet, with all that was stored of it."""
    _remove_drafts(asset)
    rows = Asset.objects.filter(pk=asset.pk, state__in=UNDERWAY)
    picture = rows.values_list("preview_key", flat=True).first()
    rows.delete()
    if picture:
        preview_remove(picture)


def _remove_drafts(asset: Asset) -> None:
    folder = draft_folder(asset)
    drafts = {f"{folder}/{name}" for name in ("upload", CONVERTED, "config.yaml", *_names_in(folder))}
    for key in drafts | {asset.file_key, asset.config_key}:
        if key.startswith(f"{folder}/"):
            asset_storage().delete(key)
    try:
        asset_storage().delete(folder)  # a folder only where the storage is a disk
    except OSError:
        logger.info("Folder %s is not empty and stays.", folder)


def _names_in(folder: str) -> list[str]:
    """What processes left there under names of their own; object stores need no such names."""
    try:
        return asset_storage().listdir(folder)[1]
    except (NotImplementedError, OSError):
        return []
