"""Trying again after errors that may pass, with growing pauses."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from django.db import InterfaceError, OperationalError, close_old_connections

TRIES = 5


def retried(
    work: Callable[[], Any], *, errors: tuple[type[Exception], ...] = (OperationalError, InterfaceError)
) -> Any:
    """Run ``work`` again, a few times with growing pauses, after an error that may pass."""
    for attempt in pauses():
        try:
            return work()
        except errors:
            if attempt is None:
                raise
            time.sleep(attempt)
            close_old_connections()
    raise AssertionError("unreachable")


def pauses() -> Iterable[float | None]:
    """0.2, 0.4, 0.8 … seconds, then None for the last try."""
    return [*(0.2 * 2**exponent for exponent in range(TRIES - 1)), None]
