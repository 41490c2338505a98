"""`uvicorn config.asgi:application`: the one web process. Waiting requests cost no thread (``renderjobs/waiting.py``)."""

from __future__ import annotations

import os
from typing import Any

from django.contrib.staticfiles.handlers import ASGIStaticFilesHandler
from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
# The admin's few static files; a proxy in front may serve them from STATIC_ROOT after `collectstatic` instead.
http = ASGIStaticFilesHandler(get_asgi_application())

from renderjobs.compat.eas import asgi as eas  # noqa: E402  models can be imported once Django is set up
from renderjobs.compat.eas import websocket  # noqa: E402

bare = eas.BareHandler()


async def application(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """HTTP is Django's; the only WebSockets are those of the EAS door's watchers."""
    if scope["type"] == "websocket":
        await websocket.application(scope, receive, send)
    elif scope.get("path", "").startswith(eas.PREFIX):
        await bare(scope, receive, send)
    else:
        await http(scope, receive, send)
