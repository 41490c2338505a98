"""`uvicorn config.asgi:application`: the one web process. Waiting requests cost no thread (``renderjobs/waiting.py``)."""

from __future__ import annotations

import os

from django.contrib.staticfiles.handlers import ASGIStaticFilesHandler
from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
# The admin's few static files; a proxy in front may serve them from STATIC_ROOT after `collectstatic` instead.
application = ASGIStaticFilesHandler(get_asgi_application())
