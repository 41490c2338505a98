"""Is this file a safetensors file, whole and harmless? Told from its bytes, never from its name, and without executing any."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import IO, Any

from common.errors import PlatformError

MAX_HEADER_BYTES = 100 * 1024 * 1024
"""The limit of the safetensors library itself."""
MAX_DIMENSIONS = 64
"""PyTorch's limit; with ``MAX_SIDE`` it bounds the arithmetic a header can ask for."""
MAX_SIDE = 2**63 - 1
ITEM_BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2"), 8),
}
FOREIGN_BEGINNINGS = {
    b"PK\x03\x04": "a zip archive, as PyTorch pickles are",
    **dict.fromkeys((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"), "a Python pickle"),
    b"GGUF": "a GGUF file",
    b"\x1f\x8b": "a gzip archive",
}


class UnsafeFileError(PlatformError):
    """The file is not taken in; the message is the reason people read."""

    code = "unsafe_file"
    status = 422


@dataclass(frozen=True, slots=True)
class Header:
    """A verified safetensors header."""

    shapes: dict[str, tuple[int, ...]]
    metadata: dict[str, str]
    types: dict[str, str]
    """Of each tensor, as safetensors names them."""


def header_read(file: IO[bytes], *, size_bytes: int) -> Header:
    """Verify header, types, shapes and offsets of every tensor against the file's size.

    Raises:
        UnsafeFileError: With the first thing that is wrong.
    """
    file.seek(0)
    beginning = file.read(9)
    length = int.from_bytes(beginning[:8], "little")
    # The length comes first, so a small file may begin with the very bytes of a pickle: only what cannot be a header is foreign.
    if len(beginning) < 9 or not beginning.endswith(b"{") or length > MAX_HEADER_BYTES:
        raise UnsafeFileError(_foreign(beginning, size_bytes))
    if 8 + length > size_bytes:
        raise UnsafeFileError("The safetensors file is truncated inside its header.")
    file.seek(8)
    try:
        # Decoded here: given bytes, json would guess UTF-16 and so read another file than the safetensors library does.
        header = json.loads(file.read(length).decode(), object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        raise UnsafeFileError("The safetensors header is not valid JSON.") from error
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise UnsafeFileError("The safetensors metadata is not a map of texts.")
    shapes = _tensors(header, data_bytes=size_bytes - 8 - length)
    return Header(shapes, metadata, {name: header[name]["dtype"] for name in shapes})


def _foreign(beginning: bytes, size_bytes: int) -> str:
    for mark, what in FOREIGN_BEGINNINGS.items():
        if beginning.startswith(mark):
            return f"The file is {what}; only safetensors files are accepted."
    return f"The file is not a safetensors file: its {size_bytes} bytes do not begin with a header."


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Raises: ValueError: A key comes twice, so two readers could see two different files."""
    if len({key for key, _ in pairs}) != len(pairs):
        raise ValueError("duplicate key")
    return dict(pairs)


def _tensors(header: dict[str, Any], *, data_bytes: int) -> dict[str, tuple[int, ...]]:
    """Shapes by name, after every tensor's bytes were seen to lie side by side and to fill the file."""
    shapes, spans = {}, []
    for name, entry in header.items():
        shape, (begin, end) = _tensor(name, entry)
        shapes[name] = shape
        spans.append((begin, end))
    position = 0
    for begin, end in sorted(spans):
        if begin != position:
            raise UnsafeFileError("Tensors overlap or leave a gap in the file.")
        position = end
    if position != data_bytes:
        what = "truncated" if position > data_bytes else "followed by foreign bytes"
        raise UnsafeFileError(f"The file is {what}: its tensors take {position} bytes, it holds {data_bytes}.")
    return shapes


def _tensor(name: str, entry: Any) -> tuple[tuple[int, ...], tuple[int, int]]:
    wrong = UnsafeFileError(f"Tensor {name[:100]!r} is not described as safetensors demands.")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise wrong
    shape, offsets, dtype = entry["shape"], entry["data_offsets"], entry["dtype"]
    if not isinstance(dtype, str) or dtype not in ITEM_BITS:
        raise UnsafeFileError(f"Tensor {name[:100]!r} has the unknown type {str(dtype)[:100]!r}.")
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
        raise wrong
    if (offsets[1] - offsets[0]) * 8 != math.prod(shape) * ITEM_BITS[dtype]:
        raise wrong
    return tuple(shape), (offsets[0], offsets[1])


def _are_sizes(numbers: Any) -> bool:
    """A list of a tensor's possible sides or offsets; ``True`` counts as 1 in Python, but not here."""
    return (
        isinstance(numbers, list)
        and len(numbers) <= MAX_DIMENSIONS
        and all(type(number) is int and 0 <= number <= MAX_SIDE for number in numbers)
    )
