"""The Django project. Importing it makes the repository root importable and gives Celery its app."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from config.celery import app as celery_app  # noqa: E402  the root must be importable first

__all__ = ["ROOT", "celery_app"]
