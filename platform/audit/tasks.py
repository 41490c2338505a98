"""Celery tasks of the CPU workers about the audit log. Each may run twice, late or never."""

from __future__ import annotations

from celery import shared_task

from audit.reading import readings_enter
from audit.sealing import seal_entries


@shared_task(name="audit.seal")
def seal() -> None:
    readings_enter()
    seal_entries()
