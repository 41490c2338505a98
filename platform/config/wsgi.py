"""`gunicorn config.wsgi`: for an installation that serves JSON and the admin from synchronous workers."""

from __future__ import annotations

import os

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
application = get_wsgi_application()
