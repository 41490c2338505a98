"""Identifiers that sort by the time they were made."""

from __future__ import annotations

import os
import threading
import time
import uuid

_lock = threading.Lock()
_last = 0


def uuid7() -> uuid.UUID:
    """A time-ordered UUID (RFC 9562, version 7), so that new rows append to their index and pages can be keyset-paged.

    Those of one process are in the order they were made in, also within a millisecond and when the clock is put back: the
    74 random bits then count on from the last (RFC 9562, section 6.2, method 2).
    """
    global _last
    random = int.from_bytes(os.urandom(10), "big") & (2**74 - 1)
    number = time.time_ns() // 1_000_000 << 74 | random
    with _lock:
        if number <= _last:
            number = _last + 1 + (random & (2**32 - 1))
        _last = number
    milliseconds, random = number >> 74 & (2**48 - 1), number & (2**74 - 1)
    value = milliseconds << 80 | 0x7 << 76 | (random >> 62) << 64 | 0b10 << 62 | random & (2**62 - 1)
    return uuid.UUID(int=value)
