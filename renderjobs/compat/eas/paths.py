"""Paths as callers know them ↔ folders of a team's stored files. Pure.

A mount path is a name for a folder, as on the original: what lies behind ``/code/stable-diffusion-webui/data`` there is the folder
``data`` of the team here. Nothing a caller writes leads out of it.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping

from common.errors import FieldError, InvalidRequestError

HOME = "/code/stable-diffusion-webui"
"""Where the original's relative paths begin."""
MAX_PATH, MAX_PART = 240, 100
PART = re.compile(r"[A-Za-z0-9_][\w. +@=-]*", re.ASCII)
"""One folder's name: plain letters, so that no two names look alike and none is hidden, a drive or a device. Commas join paths."""


def folder_of(save_dir: str, mounts: Mapping[str, str]) -> tuple[str, str]:
    """The path to answer with, as it was given, and the folder behind it (relative to the team's files).

    Raises:
        ValueError: It lies outside every mount path, or holds what cannot be a folder's name.
    """
    given = save_dir.rstrip("/") or "/"
    if len(given) > MAX_PATH:
        raise ValueError(f"save_dir has {len(given)} characters; at most {MAX_PATH} are accepted.")
    if not given.startswith("/"):
        if inside := _within(f"{HOME}/{given}", mounts):
            return given, inside
        return given, _joined("", given)
    if inside := _within(given, mounts):
        return given, inside
    known = ", ".join(sorted(mounts)) or "none"
    raise ValueError(f"save_dir {given[:80]!r} lies outside the mount paths of this service: {known}.")


def _within(path: str, mounts: Mapping[str, str]) -> str | None:
    for mount in sorted(mounts, key=len, reverse=True):
        if path == mount or path.startswith(f"{mount}/"):
            return _joined(mounts[mount], path[len(mount) :])
    return None


def _joined(folder: str, rest: str) -> str:
    """Raises: ValueError: A part of ``rest`` cannot be a folder's name."""
    parts = [part for part in rest.split("/") if part not in ("", ".")]
    for part in parts:
        if len(part) > MAX_PART or not PART.fullmatch(part) or part.endswith((".", " ")):
            raise ValueError(f"save_dir holds {part[:40]!r}, which cannot be a folder's name here.")
    return posixpath.join(folder, *parts) if parts else folder


def mounts_checked(mounts: object) -> dict[str, str]:
    """Mount path → folder, both in their plain form.

    Raises:
        InvalidRequestError: One of them cannot be used.
    """
    if not isinstance(mounts, Mapping) or len(mounts) > 20:
        raise InvalidRequestError([FieldError("mounts", "Mounts are an object of at most 20 mount paths and folders.")])
    checked: dict[str, str] = {}
    for path, folder in mounts.items():
        try:
            if not isinstance(folder, str) or not str(path).startswith("/") or not path.strip("/"):
                raise ValueError(f"Mount {path!r} must be an absolute path below / with a folder's name.")
            plain = "/" + _joined("", path)
            checked[plain] = _joined("", folder)
        except ValueError as error:
            raise InvalidRequestError([FieldError("mounts", str(error).replace("save_dir", "mounts"))]) from error
        if not checked[plain]:
            raise InvalidRequestError([FieldError("mounts", f"Mount {path!r} names no folder.")])
    return checked
