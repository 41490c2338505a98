"""The picture on an asset's card: made small when it comes in, kept in the asset storage, shown by a signed address that expires.

Who gets such an address was allowed to see the asset; whoever writes it down can open it until then.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from contextlib import suppress

from django.conf import settings
from django.core import signing
from django.core.files.base import ContentFile
from django.core.files.storage import storages
from django.db import transaction
from django.http import FileResponse, HttpRequest, JsonResponse
from django.http.response import HttpResponseBase
from django.urls import reverse

from assets.models import Asset
from common.errors import FieldError, InvalidRequestError
from common.pictures import UnreadablePictureError, thumbnail_of
from common.problem import CONTENT_TYPE, problem

SALT = "assets.previews"
SIDE_PX = 512
MAX_PREVIEW_BYTES = 20 * 1024 * 1024
"""Of the picture as it is sent; what is stored of it has a few ten thousand."""


def preview_made(data: bytes) -> bytes:
    """What is stored of a picture.

    Raises:
        UnreadablePictureError: It is none, or too large.
    """
    if len(data) > MAX_PREVIEW_BYTES:
        raise UnreadablePictureError(f"The picture is longer than {MAX_PREVIEW_BYTES} bytes.")
    return thumbnail_of(data, side_px=SIDE_PX)


def preview_checked(data: bytes) -> bytes:
    """``preview_made`` for a request. Raises: InvalidRequestError."""
    try:
        return preview_made(data)
    except UnreadablePictureError as error:
        raise InvalidRequestError([FieldError("preview", f"{error}".rstrip(".") + ".")]) from error


def preview_from_text(text: str) -> bytes:
    """Base64 or a data URI. Raises: InvalidRequestError."""
    encoded = text.partition(",")[2] if text.startswith("data:image/") else text
    try:
        return preview_checked(base64.b64decode(encoded, validate=True))
    except (binascii.Error, ValueError) as error:
        raise InvalidRequestError([FieldError("preview", "The picture is not base64.")]) from error


def preview_set(*, asset: Asset, made: bytes) -> None:
    """Show this picture from now on; empty for none. The object first, then the row, then the old object goes."""
    key = f"previews/{asset.pk}-{hashlib.sha256(made).hexdigest()[:16]}.webp" if made else ""
    old = asset.preview_key
    if key == old:
        return
    if key and not storages["assets"].exists(key):
        storages["assets"].save(key, ContentFile(made))
    Asset.objects.filter(pk=asset.pk).update(preview_key=key)
    asset.preview_key = key
    if old:
        transaction.on_commit(lambda: preview_remove(old))


def preview_remove(key: str) -> None:
    with suppress(OSError):
        storages["assets"].delete(key)


def preview_content(asset: Asset) -> bytes | None:
    try:
        with storages["assets"].open(asset.preview_key) as file:
            return bytes(file.read())
    except FileNotFoundError:
        return None


def preview_url(asset: Asset, *, base: str = "") -> str | None:
    """Args: base: Scheme and host, where the address leaves this site."""
    if not asset.preview_key:
        return None
    return f"{base}{reverse('model-preview', args=[signing.dumps(asset.preview_key, salt=SALT)])}"


def preview_file(request: HttpRequest, token: str) -> HttpResponseBase:
    """The picture that the token names; a forged or expired token is told apart from a missing object by nothing."""
    try:
        key = signing.loads(token, salt=SALT, max_age=settings.FILE_URL_LIFETIME_SECONDS)
        file = storages["assets"].open(key)
    except (signing.BadSignature, FileNotFoundError):
        body = problem(404, "not_found", "There is no such picture, or its address has expired.")
        return JsonResponse(body, status=404, content_type=CONTENT_TYPE)
    response = FileResponse(file, content_type="image/webp")
    response["X-Content-Type-Options"] = "nosniff"
    response["Cache-Control"] = f"private, max-age={settings.FILE_URL_LIFETIME_SECONDS}"
    response["Content-Security-Policy"] = "default-src 'none'"
    return response
