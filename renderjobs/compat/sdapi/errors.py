"""This door's error bodies: A1111's four keys for what a handler raises, FastAPI's ``detail`` list for wrong fields."""

from __future__ import annotations

import functools
import json
import logging
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

from django.core.exceptions import RequestDataTooBig
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.http.response import HttpResponseBase

from common.errors import InvalidRequestError, PlatformError
from renderjobs.compat.eas.call_log import request_logged

logger = logging.getLogger(__name__)


class WireError(Exception):
    """One field or the body as a whole is not what the contract says; answered with 422 and FastAPI's ``detail``."""

    def __init__(self, *details: dict[str, Any]):
        super().__init__(details[0]["msg"])
        self.details = details


class HandlerError(Exception):
    """What A1111's handlers raise: a status and a text. ``reason`` is ours, where A1111's words leave it open."""

    def __init__(self, status: int, detail: str, *, error: str = "HTTPException", reason: str = ""):
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.error = error
        self.reason = reason


def field_detail(field: str, message: str, kind: str, place: str = "body") -> dict[str, Any]:
    return {"loc": [place, *field.split(".")], "msg": message, "type": kind}


def json_detail(error: json.JSONDecodeError) -> dict[str, Any]:
    context = {"msg": error.msg, "doc": error.doc, "pos": error.pos, "lineno": error.lineno, "colno": error.colno}
    return {"loc": ["body", error.pos], "msg": str(error), "type": "value_error.jsondecode", "ctx": context}


def answer_of(error: Exception) -> HttpResponse:
    """The response for anything a view of this door raised."""
    match error:
        case WireError():
            return JsonResponse({"detail": list(error.details)}, status=422)
        case InvalidRequestError():
            details = [field_detail(item.field, item.message, "value_error") for item in error.errors]
            return JsonResponse({"detail": details}, status=422)
        case HandlerError(error="HTTPException"):
            return four_keys(error.status, "HTTPException", detail=error.detail, errors=error.reason)
        case HandlerError():
            return four_keys(error.status, error.error, errors=error.detail)
        case PlatformError():
            response = four_keys(error.status, "HTTPException", detail=error.message)
            for name, value in error.headers().items():
                response[name] = value
            return response
        case RequestDataTooBig():
            return four_keys(413, "HTTPException", detail="The request body is too large.")
    reference = uuid.uuid4().hex[:12]
    logger.exception("sdapi request failed, reference %s", reference, exc_info=error)
    return four_keys(500, "InternalError", errors=f"The request failed; reference {reference}.")


def four_keys(status: int, error: str, *, detail: str = "", errors: str = "") -> JsonResponse:
    return JsonResponse({"error": error, "detail": detail, "body": "", "errors": errors}, status=status)


def speaks_sdapi(*methods: str) -> Callable[..., Callable[..., Awaitable[HttpResponseBase]]]:
    """Wrap an async view: allowed methods, and every exception in this door's shape."""

    def wrap(view: Callable[..., Awaitable[HttpResponseBase]]) -> Callable[..., Awaitable[HttpResponseBase]]:
        @functools.wraps(view)
        async def guarded(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
            if request.method not in methods:
                return JsonResponse({"detail": "Method Not Allowed"}, status=405, headers={"Allow": ", ".join(methods)})
            began = time.monotonic()
            try:
                response = await view(request, *args, **kwargs)
            except Exception as error:
                response = answer_of(error)
            request_logged(request, status=response.status_code, began=began)
            return response

        # Tokens, not cookies, authenticate this door.
        guarded.csrf_exempt = True  # type: ignore[attr-defined]
        return guarded

    return wrap
