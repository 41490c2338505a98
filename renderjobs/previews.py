"""Previews of images that are being rendered: who looks asks for one, and only then a worker makes it. All of it may be lost.

The broker holds both for seconds: that somebody looks at an image, and the newest small picture of it.
"""

from __future__ import annotations

import logging
from collections.abc import Collection

import redis
from django.conf import settings

logger = logging.getLogger(__name__)
ASKED_SECONDS = 30
"""A page that shows a preview asks again every few seconds."""
KEPT_SECONDS = 60


def preview_ask(image_id: int) -> bytes | None:
    """The newest preview, as PNG; None while there is none. Asks for the next one."""
    with _client() as client:
        try:
            client.set(_asked(image_id), b"1", ex=ASKED_SECONDS)
            return client.get(_made(image_id))  # type: ignore[return-value]
        except redis.RedisError as error:
            logger.warning("Previews are not available: %s", error)
            return None


def previews_asked(image_ids: Collection[int]) -> set[int]:
    """Which of the images somebody looks at."""
    if not image_ids:
        return set()
    with _client() as client:
        try:
            found = client.mget([_asked(image_id) for image_id in image_ids])
        except redis.RedisError:
            return set()
    return {image_id for image_id, asked in zip(image_ids, found, strict=True) if asked}  # type: ignore[arg-type]


def preview_put(image_id: int, png: bytes) -> None:
    with _client() as client:
        try:
            client.set(_made(image_id), png, ex=KEPT_SECONDS)
        except redis.RedisError as error:
            logger.warning("A preview is lost: %s", error)


def _client() -> redis.Redis:
    return redis.Redis.from_url(settings.REDIS_URL, socket_timeout=2, socket_connect_timeout=1)


def _asked(image_id: int) -> str:
    return f"preview:asked:{image_id}"


def _made(image_id: int) -> str:
    return f"preview:{image_id}"
