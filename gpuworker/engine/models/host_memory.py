"""Weights in the machine's memory (H8): models that left the card, and the file that is needed next. One limit in bytes for both.

A model that left comes back by a copy; least recently used goes first. A machine without a card has one memory: there nothing is
parked, and the tensors of a file that was read ahead become the model's own. What the models are is not known here.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gpuworker.engine.models.cache import ByteCache
from gpuworker.engine.models.tensor_files import Tensors, read_separately

logger = logging.getLogger(__name__)
ALIGNED_BYTES = 64


@dataclass(frozen=True, slots=True)
class Parked:
    """A model whose tensors are here."""

    value: Any
    modules: Sequence[torch.nn.Module]
    size_bytes: int

    def moved_to(self, device: torch.device) -> Any:
        replace_tensors(self.modules, lambda tensor: tensor.to(device, non_blocking=True))
        return self.value


class HostMemory:
    """The rendering thread parks and takes; another one reads ahead."""

    def __init__(self, max_bytes: int, *, pinned: bool) -> None:
        """Args: pinned: So that copies to the card need no detour; there must be one."""
        self.max_bytes = max_bytes
        self._pinned = pinned
        self._lock = threading.Lock()
        self._parked: ByteCache[Parked] = ByteCache(max_bytes, size_of=lambda parked: parked.size_bytes)
        self._ahead: tuple[Path, int, Future[Tensors]] | None = None

    @property
    def used_bytes(self) -> int:
        return self._parked.used_bytes + (self._ahead[1] if self._ahead else 0)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._parked

    def parked(self) -> list[tuple[Hashable, Parked]]:
        """What is here at the moment; another thread may ask."""
        return self._parked.kept()

    def park(self, key: Hashable, value: Any, modules: Sequence[torch.nn.Module]) -> None:
        """Move the tensors of a model here, in place. One that is too large, or finds no memory, is not kept."""
        size_bytes = sum(_padded(tensor.nbytes) for tensor in tensors_of(modules))
        with self._lock:
            if size_bytes > self.max_bytes:
                return
            self._make_room(size_bytes)
            try:
                replace_tensors(modules, _Buffer(size_bytes, pinned=self._pinned).copy_of)
            except (RuntimeError, MemoryError):
                logger.exception("A model that leaves the card could not be kept in the machine's memory")
                return
            if self._pinned:
                torch.cuda.synchronize()
            self._parked.get_or_make(key, lambda: Parked(value, modules, size_bytes))

    def take(self, key: Hashable) -> Parked | None:
        """A parked model, which is the caller's from now on."""
        with self._lock:
            return self._parked.pop(key)

    def read_ahead(self, path: Path) -> None:
        """Read a file's tensors, to be taken by ``read``. Only the last one that was read ahead is kept."""
        size_bytes = path.stat().st_size
        with self._lock:
            if size_bytes > self.max_bytes or (self._ahead and self._ahead[0] == path):
                return
            self._ahead = None
            self._make_room(size_bytes)
            future: Future[Tensors] = Future()
            self._ahead = path, size_bytes, future
        try:
            future.set_result(read_separately(path))
        except BaseException as error:
            future.set_exception(error)

    def read(self, path: Path) -> Tensors:
        """A file's tensors, the caller's own: those that were read ahead, or read now.

        Raises:
            CheckpointError: The file is not a complete safetensors file.
        """
        with self._lock:
            found = self._ahead if self._ahead and self._ahead[0] == path else None
            self._ahead = None if found else self._ahead
        return found[2].result() if found else read_separately(path)

    def bytes_ahead(self, *, besides: Path) -> int:
        """Of another file that was read ahead and not taken yet."""
        ahead = self._ahead
        return ahead[1] if ahead and ahead[0] != besides else 0

    def _make_room(self, new_bytes: int) -> None:
        self._parked.make_room(new_bytes + (self._ahead[1] if self._ahead else 0))


class _Buffer:
    """One piece of memory for all tensors of a model: to pin many small ones takes long."""

    def __init__(self, size_bytes: int, *, pinned: bool) -> None:
        self._data = torch.empty(size_bytes, dtype=torch.uint8, pin_memory=pinned)
        self._used = 0

    def copy_of(self, tensor: torch.Tensor) -> torch.Tensor:
        begin, self._used = self._used, self._used + _padded(tensor.nbytes)
        copy = self._data[begin : begin + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        return copy.copy_(tensor, non_blocking=True)


def _padded(size_bytes: int) -> int:
    return -(-size_bytes // ALIGNED_BYTES) * ALIGNED_BYTES


def tensors_of(modules: Sequence[torch.nn.Module]) -> list[torch.Tensor]:
    """Weights and buffers, each once however many names it has."""
    found: dict[Hashable, torch.Tensor] = {}
    for _, _, tensor in _places(modules):
        found.setdefault(_identity(tensor), tensor)
    return list(found.values())


@torch.inference_mode(False)
@torch.no_grad()
def replace_tensors(modules: Sequence[torch.nn.Module], other: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Put another tensor in the place of each; what shared its memory shares it again.

    The modules stay the same objects, so what was compiled for them, and what knows their layers, stays valid.
    """
    others: dict[Hashable, torch.Tensor] = {}
    for table, name, tensor in _places(modules):
        key = _identity(tensor)
        if key not in others:
            others[key] = other(tensor.detach())
        is_weight = isinstance(tensor, torch.nn.Parameter)
        table[name] = torch.nn.Parameter(others[key], requires_grad=False) if is_weight else others[key]


def _places(modules: Sequence[torch.nn.Module]) -> list[tuple[dict[str, Any], str, torch.Tensor]]:
    return [
        (table, name, tensor)
        for module in modules
        for owner in module.modules()
        for table in (owner._parameters, owner._buffers)
        for name, tensor in table.items()
        if tensor is not None
    ]


def _identity(tensor: torch.Tensor) -> Hashable:
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()
