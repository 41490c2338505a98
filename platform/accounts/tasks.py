"""Celery tasks of the CPU workers about accounts. Each may run twice, late or never."""

from __future__ import annotations

from celery import shared_task
from django.core.management import call_command


@shared_task(name="accounts.forget_sessions")
def forget_sessions() -> None:
    """Rows of sessions that have run out; nobody is signed in by them any more."""
    call_command("clearsessions")
