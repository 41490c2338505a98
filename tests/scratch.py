"""Makes a folder for the temporary files of a whole run: in memory where there is enough, so that no test waits for a disk."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

MEMORY = "/dev/shm"  # noqa: S108 what is made in it is made by tempfile
NEEDED_BYTES = 8 << 30


def scratch() -> Path:
    roomy = os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > NEEDED_BYTES
    folder = Path(tempfile.mkdtemp(prefix="rk-", dir=MEMORY if roomy else None))
    folder.chmod(0o711)  # PostgreSQL runs under an account of its own
    return folder


if __name__ == "__main__":
    print(scratch())
