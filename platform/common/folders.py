"""One page of what lies in a folder of a storage, with one question to it, however much lies there and below.

Django's own ``listdir`` reads a folder whole; on an object store that is a request per thousand objects.
"""

from __future__ import annotations

import heapq
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from django.core.files.storage import FileSystemStorage, Storage

BEYOND = "\U0010ffff"
"""Sorts after every name: listing after a folder and this goes on behind all that lies in the folder."""


@dataclass(frozen=True, slots=True)
class Entry:
    name: str
    is_folder: bool
    size_bytes: int = 0
    modified_at: datetime | None = None

    @property
    def place(self) -> str:
        """Where it stands in the order of names, in which object stores list: a folder's name ends in a slash."""
        return f"{self.name}/" if self.is_folder else self.name


@dataclass(frozen=True, slots=True)
class FolderPage:
    entries: tuple[Entry, ...]
    after: str
    """What to ask for as ``after`` to go on; empty at the end."""


def folder_page(storage: Storage, folder: str, *, begins: str = "", after: str = "", limit: int = 100) -> FolderPage:
    """Files and folders directly in ``folder``, in the order of their names; of one that does not exist, none.

    Args:
        folder: Checked by the caller, with ``/`` between its parts and none at its ends.
        begins: Only names that begin so.
        after: Only names after this one.
    """
    list_page = _of_disk if isinstance(storage, FileSystemStorage) else _of_object_store
    found, more = list_page(storage, folder, begins, after, limit)
    return FolderPage(tuple(found), found[-1].place if more and found else "")


def _of_disk(storage: Any, folder: str, begins: str, after: str, limit: int) -> tuple[list[Entry], bool]:
    try:
        with os.scandir(storage.path(folder)) as listed:
            there = (
                (f"{one.name}/" if one.is_dir() else one.name, one)
                for one in listed
                if one.name.startswith(begins) and not one.is_symlink()
            )
            next_ones = heapq.nsmallest(
                limit + 1, (pair for pair in there if pair[0] > after), key=lambda pair: pair[0]
            )
            return [entry for _, one in next_ones[:limit] if (entry := _entry(one))], len(next_ones) > limit
    except (FileNotFoundError, NotADirectoryError):
        return [], False


def _entry(one: os.DirEntry[str]) -> Entry | None:
    """None for a file that went while the folder was read."""
    if one.is_dir():
        return Entry(one.name, is_folder=True)
    try:
        facts = one.stat(follow_symlinks=False)
    except FileNotFoundError:
        return None
    return Entry(one.name, False, facts.st_size, datetime.fromtimestamp(facts.st_mtime, UTC))


def _of_object_store(storage: Any, folder: str, begins: str, after: str, limit: int) -> tuple[list[Entry], bool]:
    prefix = "/".join(part for part in (storage.location.strip("/"), folder) if part) + "/"
    start = f"{prefix}{after}{BEYOND if after.endswith('/') else ''}" if after else ""
    answer = storage.connection.meta.client.list_objects_v2(
        Bucket=storage.bucket_name,
        Prefix=f"{prefix}{begins}",
        Delimiter="/",
        MaxKeys=limit,
        **({"StartAfter": start} if start else {}),
    )
    folders = [
        Entry(one["Prefix"][len(prefix) :].rstrip("/"), is_folder=True) for one in answer.get("CommonPrefixes", ())
    ]
    files = [
        Entry(one["Key"][len(prefix) :], False, one["Size"], one["LastModified"])
        for one in answer.get("Contents", ())
        if one["Key"] != prefix  # some tools make an object of a folder's own name
    ]
    return sorted([*folders, *files], key=lambda entry: entry.place), bool(answer.get("IsTruncated"))
