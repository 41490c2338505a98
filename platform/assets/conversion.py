"""Pickled files of tensors (``.pt``, ``.pth``, ``.ckpt``, ``.bin``) and zipped folders become safetensors, before anything else.

A pickle is unpickled by ``unpickling`` in a process that has no environment, no inherited files and little of the machine. What it
writes is checked here as an upload is. Nothing of torch is imported on this side.
"""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

from assets.folders import archive_merge, archive_refuse_growth, is_folder_archive
from assets.scanning import UnsafeFileError, header_read

SCRIPT = Path(__file__).with_name("unpickling.py")
REFUSED = 3
"""The script's exit status when the file is at fault."""
LEGACY_BEGINNING = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""A pickled magic number: how files of PyTorch before 1.6 begin."""
PICKLE_BEGINNINGS = tuple(b"\x80" + bytes([protocol]) for protocol in (2, 3, 4, 5))
ZIP_BEGINNING = b"PK\x03\x04"
BASE_MEMORY_BYTES = 8 * 1024**3
"""Address space, not memory: torch alone maps several gigabytes."""
MEMORY_PER_BYTE = 4
BASE_FILE_BYTES = 16 * 1024**2
FILE_PER_BYTE = 2
BASE_SECONDS = 120
BYTES_PER_SECOND = 16 * 1024**2
MAX_REASON_CHARACTERS = 300
MAX_ARCHIVE_ENTRIES = 100_000
MAX_DIRECTORY_BYTES = 32 * 1024**2
"""Some 300 bytes for each of that many entries."""


def needs_conversion(file: IO[bytes]) -> bool:
    """Whether the file begins as PyTorch's pickles and zip archives do, and so cannot be read as it is."""
    file.seek(0)
    beginning = file.read(9)
    # A header's length may read like a pickle's first bytes; the brace behind it cannot.
    return not beginning.endswith(b"{") and beginning.startswith((ZIP_BEGINNING, *PICKLE_BEGINNINGS))


def convert(source: Path, target: Path) -> None:
    """Write the tensors of ``source`` to ``target`` as safetensors; the same file gives the same bytes.

    Raises:
        UnsafeFileError: The file is not one of tensors alone. There is no ``target`` then.
    """
    with TemporaryDirectory(prefix="conversion-", dir=target.parent) as folder:
        written = Path(folder) / "written"
        if is_folder_archive(_archive_names(source)):
            archive_merge(source, written)
        else:
            _unpickle(source, written)
        with written.open("rb") as file:
            header_read(file, size_bytes=written.stat().st_size)
        os.replace(written, target)


def _unpickle(source: Path, written: Path) -> None:
    what = _named(source)
    if reason := _unpickled(source, written):
        raise UnsafeFileError(f"The file is {what} and cannot be converted: {reason}")


def _named(source: Path) -> str:
    """What kind of pickle it is, as people call it.

    Raises:
        UnsafeFileError: One that PyTorch never wrote; no process is worth starting for it.
    """
    with source.open("rb") as file:
        beginning = file.read(len(LEGACY_BEGINNING))
    if beginning.startswith(ZIP_BEGINNING):
        if not any(name.endswith("/data.pkl") for name in _archive_names(source)):
            raise UnsafeFileError(
                "The file is a zip archive, but neither one that PyTorch writes nor a folder of diffusers or transformers."
            )
        return "a zip archive, as PyTorch pickles are,"
    if beginning != LEGACY_BEGINNING:
        raise UnsafeFileError("The file is a Python pickle, but not one that PyTorch writes.")
    return "a Python pickle"


def _archive_names(source: Path) -> list[str]:
    """Of a zip archive's entries; none where it is no archive, or one no model comes in.

    Raises:
        UnsafeFileError: It unpacks to far more than it is.
    """
    try:
        with _BoundedFile(source) as file, zipfile.ZipFile(file) as archive:
            archive_refuse_growth(archive, size_bytes=source.stat().st_size)
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return []
    return names if len(names) <= MAX_ARCHIVE_ENTRIES else []


class _BoundedFile(io.FileIO):
    """``zipfile`` reads a directory at once, whatever length the archive gives it."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > MAX_DIRECTORY_BYTES:
            raise zipfile.BadZipFile(f"A directory of {size} bytes.")
        return super().read(size)  # type: ignore[arg-type]


def _unpickled(source: Path, written: Path) -> str:
    """Run the script; the reason it gives for a refusal, or nothing."""
    size = source.stat().st_size
    seconds = BASE_SECONDS + size // BYTES_PER_SECOND
    limits = (BASE_MEMORY_BYTES + MEMORY_PER_BYTE * size, seconds, BASE_FILE_BYTES + FILE_PER_BYTE * size)
    said = written.with_name("said")
    with said.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-I", str(SCRIPT), str(source.absolute()), str(written.absolute()), *map(str, limits)],
            env={"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
            cwd=written.parent,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            status = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return f"it takes longer than {seconds} seconds."
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    if status == 0:
        return ""
    if status == REFUSED:
        return said.read_text(errors="replace").strip()[:MAX_REASON_CHARACTERS]
    return "reading it failed, or takes more of the machine than such a file may."
