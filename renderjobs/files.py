"""Signed, expiring addresses of stored pictures, and the view that serves them where the storage cannot sign its own."""

from __future__ import annotations

from django.conf import settings
from django.core import signing
from django.core.files.storage import FileSystemStorage, default_storage, storages
from django.http import FileResponse, HttpRequest, JsonResponse
from django.http.response import HttpResponseBase
from django.urls import reverse

from common.problem import CONTENT_TYPE, problem

SALT = "renderjobs.files"
CONTENT_TYPES = {"png": "image/png", "jpg": "image/jpeg", "jpeg": "image/jpeg", "webp": "image/webp"}
"""By the key's ending, which we chose ourselves."""


def file_url(key: str, *, base: str) -> str:
    """An address of one object that needs no header and expires; who gets it is decided before this is called.

    Args:
        base: Scheme and host of our own web process, e.g. ``https://render.example``.
    """
    storage = storages["default"]
    if not isinstance(storage, FileSystemStorage):
        return storage.url(key)  # the store signs it itself, for as long as the settings say
    return f"{base}{reverse('signed-file', args=[signing.dumps(key, salt=SALT)])}"


def base_of(request: HttpRequest) -> str:
    return f"{request.scheme}://{request.get_host()}"


def signed_file(request: HttpRequest, token: str) -> HttpResponseBase:
    """Stream the object that the token names; a forged or expired token is told apart from a missing object by nothing."""
    try:
        key = signing.loads(token, salt=SALT, max_age=settings.FILE_URL_LIFETIME_SECONDS)
        file = default_storage.open(key)
    except (signing.BadSignature, FileNotFoundError):
        body = problem(404, "not_found", "There is no such file, or its address has expired.")
        return JsonResponse(body, status=404, content_type=CONTENT_TYPE)
    kind = CONTENT_TYPES.get(key.rpartition(".")[2], "application/octet-stream")
    response = FileResponse(file, content_type=kind, filename=key.rsplit("/", 1)[-1])
    response["X-Content-Type-Options"] = "nosniff"
    response["Cache-Control"] = f"private, max-age={settings.FILE_URL_LIFETIME_SECONDS}"
    response["Content-Security-Policy"] = "default-src 'none'"
    return response
