"""This door's errors: a status and plain text, which the client shows as ``PredictException(code, body)``."""

from __future__ import annotations

import functools
import logging
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from django.core.exceptions import DisallowedHost, RequestDataTooBig
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase

from common.errors import PlatformError

logger = logging.getLogger(__name__)


class EasError(Exception):
    """Anything a client of this door is told about. The client repeats a call six times: nothing was done."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status
        self.message = message


def answer_of(error: Exception) -> HttpResponse:
    """The response for anything a view of this door raised."""
    match error:
        case EasError():
            return plain(error.status, error.message)
        case PlatformError():
            return plain(error.status, error.message, error.headers())
        case RequestDataTooBig():
            return plain(413, "The request body is too large.")
        case DisallowedHost():
            return plain(400, "The host name is not one of this server.")
    reference = uuid.uuid4().hex[:12]
    logger.exception("EAS request failed, reference %s", reference, exc_info=error)
    return plain(500, f"The request failed; reference {reference}.")


def plain(status: int, text: str, headers: Mapping[str, str] | None = None) -> HttpResponse:
    return HttpResponse(text, status=status, content_type="text/plain; charset=utf-8", headers=headers)


def speaks_eas(view: Callable[..., Awaitable[HttpResponseBase]]) -> Callable[..., Awaitable[HttpResponseBase]]:
    """Wrap an async view: every exception in this door's shape; tokens, not cookies, authenticate it."""

    @functools.wraps(view)
    async def guarded(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        try:
            return await view(request, *args, **kwargs)
        except Exception as error:
            return answer_of(error)

    guarded.csrf_exempt = True  # type: ignore[attr-defined]
    return guarded
