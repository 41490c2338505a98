"""Files on this machine's disk up to a total size: least recently used goes first, never one in use. Several processes share it.

A file in use is locked (shared) by whoever uses it; only a file that can be locked alone is removed. When a file was used last is
its own modification time. What the files hold is not known here.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import IO

CONFIG_SUFFIX = ".yaml"
"""A neighbour that goes with its file, and is covered by its lock."""


def used(path: Path, make: Callable[[], None]) -> IO[bytes]:
    """The file, opened and locked until it is closed.

    Args:
        make: Puts it there, whole; called where it is not there, and again where another process removed it meanwhile.
    """
    while True:
        if not path.exists():
            make()
        try:
            file = path.open("rb")
        except FileNotFoundError:
            continue
        fcntl.flock(file, fcntl.LOCK_SH)
        if _is_still(path, file):
            os.utime(path)
            return file
        file.close()


def make_room(folder: Path, *, new_bytes: int, max_bytes: int) -> int:
    """Remove what was used longest ago until ``new_bytes`` more fit into the limit, and onto the disk.

    Returns:
        The bytes that are there then; files in use may leave more than the limit.
    """
    files = sorted(_files(folder), key=lambda entry: entry[1].st_mtime_ns)
    used_bytes = sum(status.st_size for _, status in files)
    limit = min(max_bytes, used_bytes + shutil.disk_usage(folder).free) - new_bytes
    for path, status in files:
        if used_bytes <= limit:
            break
        if _removed(path):
            used_bytes -= status.st_size
    return used_bytes


def _files(folder: Path) -> list[tuple[Path, os.stat_result]]:
    """All in the folder and below; drafts of copies that a killed process left there, too."""
    found = []
    for place, _, names in os.walk(folder):
        for path in (Path(place) / name for name in names if not name.endswith(CONFIG_SUFFIX)):
            try:
                found.append((path, path.stat()))
            except FileNotFoundError:
                continue  # another process was faster
    return found


def _removed(path: Path) -> bool:
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return False
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        if not _is_still(path, file):
            return False
        path.with_suffix(CONFIG_SUFFIX).unlink(missing_ok=True)
        path.unlink()
    return True


def _is_still(path: Path, file: IO[bytes]) -> bool:
    """Whether the name leads to what was opened, and not to nothing or a newer copy."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
