"""What the machine has left, as the kernel tells it; cheap enough for every heartbeat. Nothing where it cannot be told."""

from __future__ import annotations

import os
from pathlib import Path


def memory() -> dict[str, int]:
    """Bytes: ``ram_total`` and ``ram_available`` of the machine, ``ram_used`` of this process."""
    found = {}
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        found["ram_total"] = _kilobytes(lines["MemTotal"])
        found["ram_available"] = _kilobytes(lines["MemAvailable"])
        resident_pages = int(Path("/proc/self/statm").read_text().split()[1])
        found["ram_used"] = resident_pages * os.sysconf("SC_PAGE_SIZE")
    except (OSError, KeyError, ValueError, IndexError):
        pass  # not Linux
    return found


def _kilobytes(text: str) -> int:
    return int(text.split()[0]) * 1024
