#!/usr/bin/env python
"""Django's command line. ``prepare()`` is also what the two ``celery.py`` entry files call first."""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent


def prepare() -> None:
    """Put both source roots on ``sys.path`` and name the settings module."""
    for root in (ROOT, ROOT / "platform"):
        if str(root) not in sys.path:
            sys.path.insert(0, str(root))
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")


if __name__ == "__main__":
    prepare()
    from django.core.exceptions import ImproperlyConfigured
    from django.core.management import execute_from_command_line

    try:
        execute_from_command_line(sys.argv)
    except ImproperlyConfigured as error:
        sys.exit(str(error))  # the sentence names the variable; a trace would only bury it
