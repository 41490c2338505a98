"""Exception → problem+json (RFC 9457): the error shape of our own API. Other doors have their own ``errors.py``."""

from __future__ import annotations

import logging
from typing import Any

from django.conf import settings
from django.core.exceptions import PermissionDenied, RequestDataTooBig
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.views import defaults
from rest_framework import exceptions
from rest_framework.response import Response
from rest_framework.views import set_rollback

from common.errors import InvalidRequestError, PlatformError

logger = logging.getLogger(__name__)
CONTENT_TYPE = "application/problem+json"


def exception_handler(error: Exception, context: dict[str, Any]) -> Response | None:
    """DRF's hook. Returns None for what is not the caller's business; Django then answers 500."""
    set_rollback()
    headers: dict[str, str] = {}
    if isinstance(error, PlatformError):
        body = problem_of(error)
        headers |= error.headers()
    elif isinstance(error, (Http404, exceptions.NotFound)):
        body = problem(404, "not_found", "There is no such object.")
    elif isinstance(error, PermissionDenied):
        body = problem(403, "forbidden", "This is not allowed.")
    elif isinstance(error, RequestDataTooBig):
        limit = settings.DATA_UPLOAD_MAX_MEMORY_SIZE
        body = problem(413, "body_too_large", f"The body is larger than the limit of {limit} bytes.")
    elif isinstance(error, exceptions.ValidationError):
        body = problem(422, "invalid_request", "The request has wrong fields.", errors=flattened(error.detail))
    elif isinstance(error, exceptions.APIException):
        body = problem(error.status_code, str(error.default_code), str(error.detail))
        if challenge := getattr(error, "auth_header", None):
            headers["WWW-Authenticate"] = challenge
    else:
        return None
    return Response(body, status=body["status"], headers=headers, content_type=CONTENT_TYPE)


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Django's handler of unknown paths: the sdapi's clients expect FastAPI's body, everybody else a problem."""
    if request.path.startswith(("/sdapi/", "/controlnet/")):
        return JsonResponse({"detail": "Not Found"}, status=404)
    return JsonResponse(problem(404, "not_found", "There is no such page."), status=404, content_type=CONTENT_TYPE)


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Django's handler of requests that no view ever saw, for example with a wrong host."""
    if not request.path.startswith("/api/"):
        return defaults.bad_request(request, exception)
    body = problem(400, "bad_request", "The request cannot be read.")
    return JsonResponse(body, status=400, content_type=CONTENT_TYPE)


def server_error(request: HttpRequest) -> HttpResponse:
    """Django's handler of our own defects: it has logged the trace, the caller gets none of it."""
    if not request.path.startswith("/api/"):
        return defaults.server_error(request)
    body = problem(500, "internal_error", "The platform failed; the failure is logged.")
    return JsonResponse(body, status=500, content_type=CONTENT_TYPE)


def problem(status: int, code: str, detail: str, **more: Any) -> dict[str, Any]:
    return {"type": f"urn:renderkiln:problem:{code}", "title": code.replace("_", " "), "status": status, "code": code,
            "detail": detail, **more}  # fmt: skip


def problem_of(error: PlatformError) -> dict[str, Any]:
    if isinstance(error, InvalidRequestError):
        errors = [{"pointer": pointer(item.field), "detail": item.message} for item in error.errors]
        return problem(error.status, error.code, error.message, errors=errors)
    more = {"errors": [{"pointer": pointer(error.field), "detail": error.message}]} if error.field else {}
    return problem(error.status, error.code, error.message, **more, **error.members())


def pointer(field: str) -> str:
    """A dotted field name as a JSON pointer into the request body; the empty name is the body itself (RFC 6901)."""
    return "#" + "".join(f"/{part.replace('~', '~0').replace('/', '~1')}" for part in field.split(".") if field)


def flattened(detail: Any, path: str = "") -> list[dict[str, str]]:
    """DRF's nested error lists as one flat list of pointer and sentence."""
    if isinstance(detail, dict):
        return [row for key, value in detail.items() for row in flattened(value, f"{path}.{key}" if path else str(key))]
    if isinstance(detail, list):
        return [row for value in detail for row in flattened(value, path)]
    return [{"pointer": pointer(path), "detail": str(detail)}]
