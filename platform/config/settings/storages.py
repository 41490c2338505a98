"""Where pictures and weights are kept: ``STORAGE_URL`` picks the django-storages backend."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from django.core.exceptions import ImproperlyConfigured

from config import env
from config.settings.base import DATA_DIR

_url = env.url("STORAGE_URL", f"file://{DATA_DIR}/media", schemes=("file", "s3"))
if _url.scheme == "s3" and not _url.netloc:
    raise ImproperlyConfigured("STORAGE_URL names no bucket; accepted is s3://bucket/prefix?endpoint=….")
_options = env.query_options(_url)
FILE_URL_LIFETIME_SECONDS = 3600


def _picture_origins() -> list[str]:
    """Where the store's own signed addresses point, for pages that show pictures; both ways of writing the bucket."""
    if _url.scheme == "file":
        return []
    store = urlsplit(_options.get("endpoint", "https://amazonaws.com"))
    return [f"{store.scheme}://{store.netloc}", f"{store.scheme}://*.{store.netloc}"]


PICTURE_ORIGINS = _picture_origins()


def _storage(kind: str) -> dict[str, Any]:
    """``kind`` is the folder or key prefix: pictures or assets."""
    if _url.scheme == "file":
        location = Path(_url.path) / kind
        return {"BACKEND": "django.core.files.storage.FileSystemStorage", "OPTIONS": {"location": str(location)}}
    return {
        "BACKEND": "storages.backends.s3.S3Storage",
        "OPTIONS": {
            "bucket_name": _url.netloc,
            "location": "/".join(part for part in (_url.path.strip("/"), kind) if part),
            "endpoint_url": _options.get("endpoint"),
            "region_name": _options.get("region", "us-east-1"),
            "addressing_style": _options.get("addressing_style", "path" if "endpoint" in _options else "auto"),
            "default_acl": None,
            "file_overwrite": True,
            "querystring_auth": True,
            "querystring_expire": FILE_URL_LIFETIME_SECONDS,
            "signature_version": "s3v4",
            # Beyond this a file goes through the disk, so that a checkpoint is never whole in memory.
            "max_memory_size": 64 * 1024 * 1024,
        },
    }


STORAGES = {
    "default": _storage("pictures"),
    "assets": _storage("assets"),
    "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
}
MEDIA_ROOT = str(Path(_url.path)) if _url.scheme == "file" else ""
