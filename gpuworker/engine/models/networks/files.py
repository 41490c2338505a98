"""Network files as they are read: the tensors of a LoRA by layer, or the layers of a hypernetwork. Knows no checkpoint.

Source: ``load_network`` in ``extensions-builtin/Lora/networks.py`` and ``Hypernetwork.load`` in
``modules/hypernetworks/hypernetwork.py`` of A1111 1.10.1.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from gpuworker.engine.models.tensor_files import read_safetensors

Tensors = dict[str, torch.Tensor]
HYPERNETWORK_KEY = re.compile(r"(\d+)\.([01])\.(.+)")
"""Width, 0 for keys or 1 for values, and the key A1111 gives the tensor: how the intake writes a hypernetwork."""
HYPERNETWORK_METADATA = "hypernetwork"
NUMBERS = ("alpha", "scale", "on_input")
"""Parts that are read as plain numbers, so that nothing waits for a device to tell them."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What a file holds for one layer."""

    tensors: Tensors = field(default_factory=dict)
    """Part, such as ``lora_down.weight`` → tensor."""
    numbers: dict[str, float] = field(default_factory=dict)

    def get(self, name: str) -> torch.Tensor | None:
        """In float32, in which everything is computed; None where the file has no such part."""
        tensor = self.tensors.get(name)
        return None if tensor is None else tensor.float()

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.tensors[name].float()


@dataclass(eq=False, slots=True, weakref_slot=True)
class LoadedNetwork:
    """One file in memory. It moves to a device as a whole and stays there."""

    layers: dict[str, Parts]
    """Key up to its first dot → parts; empty for a hypernetwork."""
    hypernetwork: dict[tuple[int, int], Tensors]
    """Width, 0 for keys or 1 for values → state of that network."""
    structure: Mapping[str, Any]
    """How a hypernetwork's networks are built, in A1111's words."""
    size_bytes: int

    def move_to(self, device: torch.device) -> None:
        """One copy per file: a copy per tensor would take longer than merging it."""
        groups = [parts.tensors for parts in self.layers.values()] + list(self.hypernetwork.values())
        moved: dict[int, torch.Tensor] = {}
        for tensors in groups:
            for name, tensor in tensors.items():
                if tensor.device.type != device.type:
                    tensors[name] = _moved(tensor, device, moved)


def load_network(path: Path) -> LoadedNetwork:
    """Raises: CheckpointError: The file is not a complete safetensors file."""
    tensors = read_safetensors(path)
    layers: dict[str, Parts] = {}
    hypernetwork: dict[tuple[int, int], Tensors] = {}
    for key, tensor in tensors.items():
        if match := HYPERNETWORK_KEY.fullmatch(key):
            hypernetwork.setdefault((int(match[1]), int(match[2])), {})[match[3]] = tensor
            continue
        layer, _, part = key.partition(".")
        parts = layers.setdefault(layer, Parts())
        if part in NUMBERS and tensor.numel() == 1:
            parts.numbers[part] = float(tensor.item())
        else:
            parts.tensors[part] = tensor
    size_bytes = sum(tensor.nbytes for tensor in tensors.values())
    structure = _structure(path) if hypernetwork else {}
    return LoadedNetwork(layers, hypernetwork, structure, size_bytes)


def _structure(path: Path) -> Mapping[str, Any]:
    """From the header's metadata; without any, A1111's defaults count."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        metadata = json.loads(file.read(length)).get("__metadata__", {})
    try:
        structure = json.loads(metadata.get(HYPERNETWORK_METADATA, "{}"))
    except ValueError:
        return {}
    return structure if isinstance(structure, dict) else {}


def _moved(tensor: torch.Tensor, device: torch.device, moved: dict[int, torch.Tensor]) -> torch.Tensor:
    """The tensor on the device as a view of its file's bytes there; ``moved`` holds those by their address here."""
    storage = tensor.untyped_storage()
    if storage.data_ptr() not in moved:
        moved[storage.data_ptr()] = torch.empty(0, dtype=torch.uint8).set_(storage).to(device)
    begin = tensor.storage_offset() * tensor.element_size()
    return moved[storage.data_ptr()][begin : begin + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
