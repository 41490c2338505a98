"""`celery -A renderjobs worker` and `celery -A renderjobs beat`: the CPU side's entry."""

from __future__ import annotations

from manage import prepare

prepare()

from config.celery import app  # noqa: E402  the source roots must be on the path first

__all__ = ["app"]
