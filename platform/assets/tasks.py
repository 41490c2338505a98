"""Chores of the CPU workers about assets."""

from __future__ import annotations

import logging
from datetime import timedelta
from uuid import UUID

from celery import shared_task
from django.db.models import F

from assets.intake import UNDERWAY, asset_process
from assets.models import Asset, Upload
from assets.uploads import upload_give_up, upload_join, uploads_forgotten
from assets.zoo import zoo_run, zoo_waiting
from common.database import now_plus

logger = logging.getLogger(__name__)


# Whatever fails here is the storage's or the database's weather: a bad file is an outcome, not an exception.
@shared_task(name="assets.process", acks_late=True, autoretry_for=(Exception,), retry_backoff=5, max_retries=6)
def process(asset_id: int) -> None:
    """Walk an upload to approval or quarantine; running it twice is harmless."""
    try:
        asset_process(asset_id)
    except Asset.DoesNotExist:
        logger.info("Asset %s was a repeated upload and is gone.", asset_id)


@shared_task(name="assets.join", acks_late=True, autoretry_for=(Exception,), retry_backoff=5, max_retries=6)
def join(upload_id: str) -> None:
    """Turn a complete upload into an asset; running it twice is harmless."""
    asset = upload_join(UUID(upload_id))
    if asset:
        process(asset.pk)


STALLED = timedelta(minutes=15)
"""An intake that began so long ago and has not ended may have lost its worker; going on twice is harmless."""


@shared_task(name="assets.resume")
def resume() -> None:
    """Go on with what a killed worker or a lost message has left, and forget uploads that were given up."""
    for upload in uploads_forgotten():
        upload_give_up(upload)
    before = now_plus(-STALLED.total_seconds())
    for upload in Upload.objects.filter(received_bytes=F("size_bytes"), touched_at__lt=before):
        join.delay(str(upload.pk))
    for asset in Asset.objects.filter(state__in=UNDERWAY, created_at__lt=before, upload=None):
        process.delay(asset.pk)


@shared_task(name="assets.zoo_import")
def zoo_import_run(run_id: int) -> None:
    """Long, and harmless to send twice: one worker has the run, and what it was killed in is looked for."""
    zoo_run(run_id)


@shared_task(name="assets.resume_zoo")
def resume_zoo() -> None:
    """Go on with downloads whose worker is gone or whose server let them down."""
    for run_id in zoo_waiting()[:1]:
        zoo_import_run.delay(run_id)
