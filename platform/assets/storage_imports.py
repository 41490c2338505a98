"""Weights that lie in the asset storage already, below ``imports/``, put there by the store's own tools; they stay as they are.

Each is read, hashed and examined like an upload. What lies beside them (cards, pictures) is not read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from accounts.models import Team, User
from assets.intake import asset_process, asset_receive, asset_storage
from assets.models import Access, Asset
from common.errors import FieldError, InvalidRequestError

FOLDER = "imports"
ENDINGS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".zip")


def weights_below(prefix: str) -> list[str]:
    """The key of the object of that name, or the keys of all weights below it, in order.

    Raises:
        InvalidRequestError: It leads elsewhere, or there are none.
    """
    parts = [part for part in prefix.split("/") if part]
    if any(part in (".", "..") or "\x00" in part or "\\" in part for part in parts):
        raise InvalidRequestError([FieldError("file", f"{prefix!r} leads out of {FOLDER}/ of the storage.", prefix)])
    top = "/".join([FOLDER, *parts])
    found = [top] if _is_weights(top) and asset_storage().exists(top) else sorted(_below(top))
    if not found:
        accepted = ", ".join(ENDINGS)
        raise InvalidRequestError([FieldError("file", f"There is no {accepted} below {top}/ of the storage.", prefix)])
    return found


def _below(folder: str) -> Iterator[str]:
    try:
        folders, names = asset_storage().listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return
    yield from (f"{folder}/{name}" for name in names if _is_weights(name))
    for inner in folders:
        yield from _below(f"{folder}/{inner}")


def _is_weights(name: str) -> bool:
    return name.lower().endswith(ENDINGS)


def object_import(
    key: str,
    *,
    kind: str,
    name: str = "",
    access: str = Access.PUBLIC,
    teams: tuple[Team, ...] = (),
    users: tuple[User, ...] = (),
    progress: Callable[[int], Any] = lambda _: None,
) -> Asset:
    """Raises: InvalidRequestError: The name cannot be used; nothing is stored."""
    with asset_storage().open(key) as file:
        asset = asset_receive(
            file=file,  # type: ignore[arg-type]
            name=name or key.rpartition("/")[2],
            kind=kind,
            access=access,
            teams=teams,
            users=users,
        )
    return asset_process(asset.pk, progress=progress)
