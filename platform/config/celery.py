"""The one Celery app. Chores live in ``renderjobs.tasks`` and ``assets.tasks``, rendering in ``gpuworker.tasks``."""

from __future__ import annotations

import os

from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
app = Celery("renderkiln")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
