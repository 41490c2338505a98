"""The one Celery app. Chores live in ``renderjobs.tasks`` and ``assets.tasks``, rendering in ``gpuworker.tasks``."""

from __future__ import annotations

import logging.config
import os
from typing import Any

from celery import Celery
from celery.signals import setup_logging

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
app = Celery("renderkiln")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()


@setup_logging.connect
def log_as_the_settings_say(**_: Any) -> None:
    """A receiver keeps Celery from putting its own handler and level over those of the settings."""
    from django.conf import settings

    logging.config.dictConfig(settings.LOGGING)
