"""What stays in memory between passes, counted in bytes: least recently used goes first. Knows nothing of what it keeps."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class ByteCache(Generic[Value]):
    """Values by key, up to a total size. A value larger than the limit is kept until the next one comes."""

    def __init__(
        self,
        max_bytes: int,
        *,
        size_of: Callable[[Value], int],
        on_drop: Callable[[Hashable, Value], None] | None = None,
    ) -> None:
        """Args: on_drop: Called with what had to go."""
        self.max_bytes = max_bytes
        self.used_bytes = 0
        self._size_of = size_of
        self._on_drop = on_drop
        self._values: OrderedDict[Hashable, Value] = OrderedDict()

    def __contains__(self, key: Hashable) -> bool:
        return key in self._values

    def __len__(self) -> int:
        return len(self._values)

    def kept(self) -> list[tuple[Hashable, Value]]:
        """What is here at the moment; another thread may ask."""
        while True:
            try:
                return list(self._values.items())
            except RuntimeError:  # it changed in between
                continue

    def get_or_make(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """The kept value, or a new one, for which room is made after it was made: its size is not known before."""
        if key in self._values:
            self._values.move_to_end(key)
            return self._values[key]
        value = make()
        self._values[key] = value
        self.used_bytes += self._size_of(value)
        while self.used_bytes > self.max_bytes and len(self._values) > 1:
            self._drop_oldest()
        return value

    def make_room(self, new_bytes: int) -> None:
        """Let go of the oldest values until ``new_bytes`` more would fit."""
        while self._values and self.used_bytes + new_bytes > self.max_bytes:
            self._drop_oldest()

    def pop(self, key: Hashable) -> Value | None:
        """Hand a value over, if it is here."""
        if key not in self._values:
            return None
        value = self._values.pop(key)
        self.used_bytes -= self._size_of(value)
        return value

    def drop(self, keys: Iterable[Hashable]) -> None:
        """Let go of some."""
        for key in keys:
            value = self.pop(key)
            if value is not None and self._on_drop:
                self._on_drop(key, value)

    def _drop_oldest(self) -> None:
        self.drop([next(iter(self._values))])
