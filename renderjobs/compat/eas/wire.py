"""The query of a queue call: parameters in underscores are the protocol's, every other one is a tag. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import parse_qsl

from renderjobs.compat.eas.errors import EasError
from renderjobs.models.eas import QueueKind

MAX_TAGS, MAX_TAG_KEY, MAX_TAG_VALUE = 64, 128, 1024
MAX_PARAMETERS = 1000
MAX_REQUEST_ID = 200
MAX_INDEXES = 10_000
LARGEST = 2**63 - 1
MAX_DIGITS = 40
"""Of a number; more than Python reads is no number either."""
NEWEST = -1
"""As ``_index_``: what comes from now on, or the newest only."""
DEFAULT_GROUP = "eas"
REQUEST_ID = "requestId"
DURATION = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)")
UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
UID_HEADER = "X-EAS-QueueService-Redis-Uid"
GROUP_HEADER = "X-EAS-QueueService-Redis-Gid"
PRIORITY_HEADER = "X-EAS-QueueService-Redis-Priority"
REQUEST_ID_HEADER = "X-Eas-Queueservice-Request-Id"
HEARD = "renderkiln.silent_seconds"
"""Among an ASGI scope's extensions: a function that returns for how many seconds nothing arrived from the client."""


@dataclass(frozen=True, slots=True)
class Query:
    """What a query string says."""

    own: Mapping[str, str]
    """The protocol's parameters, with their underscores."""
    tags: Mapping[str, str]

    @classmethod
    def of(cls, text: str) -> Query:
        """Raises: EasError: A tag cannot be kept, or there are too many parameters."""
        try:
            pairs = parse_qsl(text, keep_blank_values=True, max_num_fields=MAX_PARAMETERS)
        except ValueError:
            raise EasError(400, f"There are more than {MAX_PARAMETERS} parameters.") from None
        own = {key: value for key, value in pairs if key.startswith("_")}
        tags = {key: value for key, value in pairs if not key.startswith("_")}
        for key, value in pairs:
            if "\0" in key + value or not _is_text(key + value):
                raise EasError(400, f"Parameter {key[:40]!r} holds what is no text.")
            if len(key) > MAX_TAG_KEY or (key in tags and len(value) > MAX_TAG_VALUE):
                raise EasError(
                    400, f"Tag {key[:40]!r} is too long; {MAX_TAG_KEY} and {MAX_TAG_VALUE} characters are accepted."
                )
        if len(tags) > MAX_TAGS:
            raise EasError(400, f"There are {len(tags)} tags; at most {MAX_TAGS} are accepted.")
        return cls(own, tags)

    def check_request_id(self) -> None:
        """Raises: EasError: The client's own cannot stand in the header that answers it."""
        text = self.tags.get(REQUEST_ID, "")
        if len(text) > MAX_REQUEST_ID or not (text.isascii() and text.isprintable() and text == text.strip()):
            raise EasError(400, f"{REQUEST_ID} is at most {MAX_REQUEST_ID} printable ASCII characters.")

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.own.get(name)
        return default if value is None else value.lower() in ("true", "1", "t")

    def number(self, name: str, default: int, *, first: int = 0) -> int:
        """Raises: EasError: It is no number, or out of range."""
        text = self.own.get(name, "")
        if not text:
            return default
        try:
            value = int(text)
        except ValueError:
            value = first - 1
        if not first <= value <= LARGEST:
            raise EasError(400, f"{name} is {text[:40]!r}; a whole number from {first} is accepted.")
        return value

    def indexes(self) -> list[int]:
        """Raises: EasError: ``_indexes_`` is no list of indexes."""
        words = [word for word in self.own.get("_indexes_", "").split(",") if word.strip()]
        if not words or len(words) > MAX_INDEXES or not all(map(_is_number, words)):
            raise EasError(400, f"_indexes_ must be 1 to {MAX_INDEXES} indexes, separated by commas.")
        return [min(int(word), LARGEST) for word in words]

    def seconds(self, name: str, default: float) -> float:
        """A duration as Go writes it; a bare number counts as seconds.

        Raises:
            EasError: It is none.
        """
        text = self.own.get(name, "").strip()
        if not text:
            return default
        try:
            return max(0.0, float(text))
        except ValueError:
            parts = DURATION.findall(text)
            if "".join(number + unit for number, unit in parts) != text:
                message = f"{name} is {text[:40]!r}; accepted is a duration such as 5s, 500ms or 1m30s."
                raise EasError(400, message) from None
            return sum(float(number) * UNITS[unit] for number, unit in parts)


def _is_number(word: str) -> bool:
    return word.strip().isdecimal() and len(word) <= MAX_DIGITS


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def addressed(rest: str) -> tuple[str, str]:
    """Queue and web path that are meant by what follows a service's name; slashes too many at its ends say nothing."""
    path = rest.strip("/")
    if path == QueueKind.SINK:
        return QueueKind.SINK.value, ""
    return QueueKind.INPUT.value, f"/{path}" if path else ""


def member_of(headers: Mapping[str, str]) -> tuple[str, str]:
    """Group and uid of the caller, which plain HTTP clients do not send.

    Raises:
        EasError: One cannot be kept.
    """
    group, uid = headers.get(GROUP_HEADER) or DEFAULT_GROUP, headers.get(UID_HEADER) or ""
    if len(group) > 200 or len(uid) > 200 or "\0" in group + uid:
        raise EasError(400, "A consumer's group and id have at most 200 characters.")
    return group, uid
