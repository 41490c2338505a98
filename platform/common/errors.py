"""The web side's error tree. An error knows its stable code, its HTTP status and the field that caused it; doors translate it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class FieldError:
    """One thing that is wrong with a request."""

    field: str
    """The field's name as the caller wrote it."""
    message: str
    """What, which value, what would be accepted; one sentence with a full stop."""
    value: Any = None


class PlatformError(Exception):
    """Anything the caller can be told about."""

    code = "error"
    status = 400

    def __init__(self, message: str, *, field: str | None = None, value: Any = None):
        super().__init__(message)
        self.message = message
        self.field = field
        self.value = value

    def members(self) -> dict[str, Any]:
        """What a problem says beside its sentence, by name; plain JSON."""
        return {}

    def headers(self) -> dict[str, str]:
        """Of the answer."""
        return {}


class InvalidRequestError(PlatformError):
    """The request cannot be accepted as it is; ``errors`` names every field that is wrong."""

    code = "invalid_request"
    status = 422

    def __init__(self, errors: Sequence[FieldError]):
        first = errors[0]
        super().__init__(first.message, field=first.field, value=first.value)
        self.errors = tuple(errors)


class NotFoundError(PlatformError):
    """No such object, or one of another team: the two are never told apart."""

    code = "not_found"
    status = 404


class ConflictError(PlatformError):
    code = "conflict"
    status = 409


class ForbiddenError(PlatformError):
    code = "forbidden"
    status = 403


class UnavailableError(PlatformError):
    """The platform lacks something right now that the request needs; trying again later may help."""

    code = "unavailable"
    status = 503
