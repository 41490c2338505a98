"""A frame on the wire: protobuf (package ``streaming``, proto3) and JSON. Pure.

Written by hand: the three messages have seven fields, and the published SDK pins a protobuf library of its own.

Source: ``queueservice.proto`` of the SDK ``eas_prediction``.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

PROTOBUF = "application/vnd.google.protobuf"
VARINT, BYTES = 0, 2


@dataclass(frozen=True, slots=True)
class Frame:
    index: int
    tags: Mapping[str, str] = field(default_factory=dict)
    data: bytes = b""

    def to_protobuf(self) -> bytes:
        head = _key(1, VARINT) + _varint(self.index) if self.index else b""
        return head + _map(2, self.tags) + (_bytes(3, self.data) if self.data else b"")

    def to_json(self) -> dict[str, Any]:
        return {"index": self.index, "tags": dict(self.tags), "data": base64.b64encode(self.data).decode()}


def list_to_protobuf(frames: Iterable[Frame]) -> bytes:
    """The list's one field really is called ``index``."""
    return b"".join(_bytes(1, frame.to_protobuf()) for frame in frames)


def attributes_to_protobuf(attributes: Mapping[str, str]) -> bytes:
    return _map(1, attributes)


def _map(number: int, pairs: Mapping[str, str]) -> bytes:
    return b"".join(_bytes(number, _bytes(1, key.encode()) + _bytes(2, value.encode())) for key, value in pairs.items())


def _bytes(number: int, value: bytes) -> bytes:
    return _key(number, BYTES) + _varint(len(value)) + value


def _key(number: int, kind: int) -> bytes:
    return _varint(number << 3 | kind)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
