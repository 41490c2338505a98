"""Reading safetensors, front to back. What the tensors are is not known here."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch

from gpuworker.engine.errors import CheckpointError

Tensors = dict[str, torch.Tensor]
METADATA = "__metadata__"
_TENSOR_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def read_safetensors(path: Path) -> Tensors:
    """Read a whole file front to back into one buffer; the tensors are views of it.

    Mapped reads fetch a cold file page by page, which is several times slower than one pass over it.

    Raises:
        CheckpointError: The file is not a complete safetensors file.
    """
    with _opened(path) as (file, header, size_bytes):
        data = torch.empty(size_bytes, dtype=torch.uint8)
        _fill(file, data)
        return {name: _view(data, entry) for name, entry in header.items() if name != METADATA}


def read_metadata(path: Path) -> dict[str, str]:
    """Raises: CheckpointError: The file is not a complete safetensors file."""
    with _opened(path) as (_, header, _):
        return header.get(METADATA) or {}


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Raises: CheckpointError: The file is not a complete safetensors file."""
    with _opened(path) as (_, header, _):
        return {name: tuple(entry["shape"]) for name, entry in header.items() if name != METADATA}


def read_separately(path: Path) -> Tensors:
    """The same, but each tensor owns its memory: whoever takes tensors out of the dictionary one by one frees it on the way.

    Raises:
        CheckpointError: The file is not a complete safetensors file.
    """
    tensors: Tensors = {}
    with _opened(path) as (file, header, size_bytes):
        header.pop(METADATA, None)
        position, start = 0, file.tell()
        for name, entry in sorted(header.items(), key=lambda item: tuple(item[1]["data_offsets"])):
            begin, end = entry["data_offsets"]
            if not 0 <= begin <= end <= size_bytes:
                raise ValueError("a tensor lies outside the file")
            if begin != position:
                file.seek(start + begin)
            data = torch.empty(end - begin, dtype=torch.uint8)
            _fill(file, data)
            tensors[name] = data.view(_TENSOR_TYPES[entry["dtype"]]).view(entry["shape"])
            position = end
    return tensors


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BufferedReader, dict[str, Any], int]]:
    """The file at the first byte of its data, the tensors its header lists, and the length of the data."""
    try:
        with path.open("rb") as file:
            (header_bytes,) = struct.unpack("<Q", file.read(8))
            size_bytes = path.stat().st_size - 8 - header_bytes
            if size_bytes < 0:
                raise ValueError("its header is longer than the file")
            header: dict[str, Any] = json.loads(file.read(header_bytes))
            yield file, header, size_bytes
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"{path.name} is not a complete safetensors file: {error}.") from error


def _fill(file: BufferedReader, data: torch.Tensor) -> None:
    if data.numel() and file.readinto(data.numpy().data) != data.numel():
        raise ValueError("it ends early")


def _view(data: torch.Tensor, entry: dict[str, Any]) -> torch.Tensor:
    begin, end = entry["data_offsets"]
    if not 0 <= begin <= end <= data.numel():
        raise ValueError("a tensor lies outside the file")
    dtype, raw = _TENSOR_TYPES[entry["dtype"]], data[begin:end]
    aligned = raw if begin % dtype.itemsize == 0 else raw.clone()
    return aligned.view(dtype).view(entry["shape"])
