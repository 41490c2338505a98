"""Where a run of the whole suite keeps its temporary files: in memory where there is enough, so that no test waits for a disk."""

from __future__ import annotations

import os
import shutil
import tempfile

MEMORY = "/dev/shm"  # noqa: S108 the folders in it are made by tempfile and pytest, for one account only
NEEDED_BYTES = 6 << 30


def scratch() -> str:
    roomy = os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > NEEDED_BYTES
    return MEMORY if roomy else tempfile.gettempdir()


if __name__ == "__main__":
    print(scratch())
