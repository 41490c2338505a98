"""sha-256 of files that may be larger than memory, while they are written and after. Knows nothing of assets."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from typing import IO, Any

from django.core.files.base import File

CHUNK_BYTES = 4 * 1024 * 1024


def sha256_of(file: IO[bytes], progress: Callable[[int], Any] = lambda _: None) -> str:
    """Hash the whole file; ``progress`` is called with the number of bytes since the last call."""
    digest = hashlib.sha256()
    file.seek(0)
    while chunk := file.read(CHUNK_BYTES):
        digest.update(chunk)
        progress(len(chunk))
    return digest.hexdigest()


class HashedStream(File):
    """A file as the storages want it, hashed while a storage reads it; never whole in memory."""

    DEFAULT_CHUNK_SIZE = CHUNK_BYTES

    def __init__(self, file: IO[bytes]):
        super().__init__(file, name="")
        self._digest = hashlib.sha256()
        self._hashed_bytes = 0
        file.seek(0, os.SEEK_END)
        self.size = file.tell()
        file.seek(0)

    def __bool__(self) -> bool:
        """A file without a name would be false."""
        return True

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def read(self, size: int = -1) -> bytes:
        """Object stores read a part twice, for a checksum and to send it; each byte is hashed once."""
        position = self.file.tell()
        data = self.file.read(size)
        seen = self._hashed_bytes - position
        if 0 <= seen < len(data):
            self._digest.update(data[seen:])
            self._hashed_bytes += len(data) - seen
        return data
