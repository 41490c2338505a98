"""Chores of the CPU workers about assets."""

from __future__ import annotations

import logging

from celery import shared_task

from assets.intake import asset_process
from assets.models import Asset

logger = logging.getLogger(__name__)


# Whatever fails here is the storage's or the database's weather: a bad file is an outcome, not an exception.
@shared_task(name="assets.process", acks_late=True, autoretry_for=(Exception,), retry_backoff=5, max_retries=6)
def process(asset_id: int) -> None:
    """Walk an upload to approval or quarantine; running it twice is harmless."""
    try:
        asset_process(asset_id)
    except Asset.DoesNotExist:
        logger.info("Asset %s was a repeated upload and is gone.", asset_id)
