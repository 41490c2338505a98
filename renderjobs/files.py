"""Signed, expiring addresses of stored pictures, and the view that serves them where the storage cannot sign its own."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.core import signing
from django.core.files.storage import FileSystemStorage, default_storage, storages
from django.http import FileResponse, HttpRequest, JsonResponse
from django.http.response import HttpResponseBase
from django.urls import reverse

from common.problem import CONTENT_TYPE, problem

SALT = "renderjobs.files"
CONTENT_TYPES = {"png": "image/png", "jpg": "image/jpeg", "jpeg": "image/jpeg", "webp": "image/webp"}
"""By the key's ending, which we chose ourselves. Whatever else there is, is saved and never shown."""
OTHER_TYPE = "application/octet-stream"


def file_url(key: str, *, base: str, to_save: bool = False) -> str:
    """An address of one object that needs no header and expires; who gets it is decided before this is called.

    Args:
        base: Scheme and host of our own web process, e.g. ``https://render.example``.
        to_save: A picture, too, is offered to be saved under its name instead of being shown.
    """
    storage: Any = storages["default"]
    if isinstance(storage, FileSystemStorage):
        address = f"{base}{reverse('signed-file', args=[signing.dumps(key, salt=SALT)])}"
        return f"{address}?save" if to_save else address
    # The store signs it itself, for as long as the settings say.
    kind = content_type(key)
    if kind != OTHER_TYPE and not to_save:
        return str(storage.url(key))
    disposition = f'attachment; filename="{key.rsplit("/", 1)[-1]}"'
    return str(storage.url(key, {"ResponseContentType": kind, "ResponseContentDisposition": disposition}))


def content_type(key: str) -> str:
    return CONTENT_TYPES.get(key.rpartition(".")[2].lower(), OTHER_TYPE)


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
    kind = content_type(key)
    to_save = kind == OTHER_TYPE or "save" in request.GET
    response = FileResponse(file, content_type=kind, filename=key.rsplit("/", 1)[-1], as_attachment=to_save)
    response["X-Content-Type-Options"] = "nosniff"
    response["Cache-Control"] = f"private, max-age={settings.FILE_URL_LIFETIME_SECONDS}"
    response["Content-Security-Policy"] = "default-src 'none'"
    return response
