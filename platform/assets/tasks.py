"""Chores of the CPU workers about assets."""

from __future__ import annotations

from celery import shared_task

from assets.intake import asset_process


@shared_task(name="assets.process", acks_late=True)
def process(asset_id: int) -> None:
    """Walk an upload to approval or quarantine; running it twice is harmless."""
    asset_process(asset_id)
