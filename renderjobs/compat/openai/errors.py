"""This door's error body, ``{"error": {"message", "type", "param", "code"}}``, and what becomes of our own errors in it."""

from __future__ import annotations

import functools
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from django.core.exceptions import RequestDataTooBig, TooManyFieldsSent, TooManyFilesSent
from django.http import HttpRequest, JsonResponse
from django.http.multipartparser import MultiPartParserError
from django.http.response import HttpResponseBase

from assets.models import AssetKind
from billing.errors import BudgetExceededError, QuotaExceededError
from common.errors import ForbiddenError, InvalidRequestError, PlatformError
from renderjobs.pinning import UnknownNameError

logger = logging.getLogger(__name__)
INVALID = "invalid_request_error"


class ApiError(Exception):
    """What is answered instead of pictures."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, kind: str = INVALID
    ):
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}
        self.headers: dict[str, str] = {}


def wrong(param: str, message: str, code: str = "invalid_value") -> ApiError:
    return ApiError(400, message, param=param, code=code)


def failed(message: str, code: str) -> ApiError:
    return ApiError(500, message, code=code, kind="server_error")


def api_error(error: Exception) -> ApiError:
    """Whatever a view raised, as this door says it."""
    match error:
        case ApiError():
            return error
        case UnknownNameError(kind=AssetKind.CHECKPOINT):
            message = f"The model '{error.name}' does not exist or you do not have access to it."
            return ApiError(404, message, param="model", code="model_not_found")
        case InvalidRequestError():
            return wrong(error.errors[0].field, error.errors[0].message)
        case BudgetExceededError():
            return ApiError(429, error.message, code="insufficient_quota", kind="insufficient_quota")
        case QuotaExceededError():
            refused = ApiError(429, error.message, code="rate_limit_exceeded", kind="requests")
            refused.headers = error.headers()
            return refused
        case ForbiddenError():
            return ApiError(403, error.message, code="insufficient_permissions")
        case PlatformError():
            return ApiError(error.status, error.message, param=error.field, code=error.code)
        case RequestDataTooBig() | TooManyFieldsSent() | TooManyFilesSent():
            return ApiError(413, "The request body is too large.", code="request_too_large")
        case MultiPartParserError():
            return ApiError(400, "The multipart body cannot be read.")
    logger.exception("a request of the images API failed", exc_info=error)
    return failed("The server had an error processing your request.", "internal_error")


def answer_of(error: ApiError) -> JsonResponse:
    return JsonResponse(error.body, status=error.status, headers=error.headers)


def speaks_openai(method: str) -> Callable[..., Callable[..., Awaitable[HttpResponseBase]]]:
    """Wrap an async view: its one method, and every exception in this door's shape."""

    def wrap(view: Callable[..., Awaitable[HttpResponseBase]]) -> Callable[..., Awaitable[HttpResponseBase]]:
        @functools.wraps(view)
        async def guarded(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
            if request.method != method:
                message = f"Not allowed to {request.method} on {request.path}."
                refused = ApiError(405, message, code="method_not_supported")
                refused.headers = {"Allow": method}
                return answer_of(refused)
            try:
                return await view(request, *args, **kwargs)
            except Exception as error:
                return answer_of(api_error(error))

        # Tokens, not cookies, authenticate this door.
        guarded.csrf_exempt = True  # type: ignore[attr-defined]
        return guarded

    return wrap
