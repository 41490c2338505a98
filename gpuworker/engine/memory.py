"""What passes take of the memory, and what is left for them: the card's, or the machine's where there is none."""

from __future__ import annotations

from pathlib import Path

import torch

SPARED = 0.1
"""Of what is free, a share that no pass is planned into: fragments, other processes."""
OWN_STATUS, RESET_PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PassMemory:
    """Begins before a pass, tells after it. On a machine without a card it needs Linux; else nothing can be told."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before = 0

    def total_bytes(self) -> int:
        """Of the card."""
        return torch.cuda.get_device_properties(self._device).total_memory

    def begin(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            self._before = torch.cuda.memory_allocated(self._device)
            return
        try:
            RESET_PEAK.write_text("5")
            self._before = _own_bytes("VmRSS")
        except (OSError, KeyError):
            self._before = 0

    def taken_bytes(self) -> int:
        """The most that was in use since the beginning, beside what was in use before; 0 where that cannot be told."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device) - self._before
        try:
            return max(0, _own_bytes("VmHWM") - self._before) if self._before else 0
        except (OSError, KeyError):
            return 0

    def room_bytes(self) -> int | None:
        """What a pass could take now. While one runs, what that holds is not counted in."""
        if self._device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(self._device)
            unused = torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)
            return int((free + unused) * (1 - SPARED))
        try:
            return int(_bytes_in(Path("/proc/meminfo"), "MemAvailable") * (1 - SPARED))
        except (OSError, KeyError):
            return None


def _own_bytes(name: str) -> int:
    return _bytes_in(OWN_STATUS, name)


def _bytes_in(path: Path, name: str) -> int:
    lines = dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
    return int(lines[name].split()[0]) * 1024
