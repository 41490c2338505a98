"""The checker is silent about what is right and finds each thing that is broken on purpose."""

from __future__ import annotations

import pytest
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage, storages
from django.db import connection, transaction

from assets.models import Asset
from common.database import append_only_removal_sql
from operations.invariants import violations
from renderjobs.models import Attempt, JobEvent, RenderImage, RenderJob
from tests.factories import a_job
from tests.renderjobs.test_delivery import begun, picture

pytestmark = pytest.mark.django_db


@pytest.fixture
def delivered_job() -> RenderJob:
    """A job of two images, one delivered and one rendering, with the objects that belong to them."""
    import hashlib

    from renderjobs.delivery import StoredPicture, image_deliver

    job = a_job(n_iter=2)
    asset = Asset.objects.get()
    storages["assets"].save(asset.file_key, ContentFile(b"w"))
    Asset.objects.update(size_bytes=1)
    default_storage.save("a.png", ContentFile(b"picture"))
    batch = begun()
    stored = StoredPicture(**{**picture_values(), "sha256": hashlib.sha256(b"picture").hexdigest()})
    image_deliver(batch=batch, image=batch.images[0], picture=stored, gpu_us=1_000_000)
    job.refresh_from_db()
    return job


def picture_values() -> dict:
    made = picture("a.png")
    return {name: getattr(made, name) for name in made.__slots__}


def test_a_sound_installation_has_no_violation(delivered_job):
    assert list(violations()) == []


def unguarded(table: str, statement: str) -> None:
    """Change the ledger as only somebody with the database's keys could: by removing the guard first."""
    with transaction.atomic(), connection.cursor() as cursor:
        for line in append_only_removal_sql(table, connection.vendor):
            cursor.execute(line)
        cursor.execute(statement)


BREAKAGES = {
    "I1 counters": lambda job: RenderJob.objects.filter(pk=job.pk).update(images_delivered=2),
    "I1 state": lambda job: RenderJob.objects.filter(pk=job.pk).update(state="succeeded"),
    "I3 charge": lambda job: unguarded(
        "billing_ledgertransaction", "UPDATE billing_ledgertransaction SET image_id = image_id + 1000"
    ),
    "I3 sum": lambda job: unguarded("billing_ledgerline", "UPDATE billing_ledgerline SET amount = amount + 1"),
    "I3 cost": lambda job: RenderJob.objects.filter(pk=job.pk).update(cost_amount=5),
    "R8": lambda job: unguarded("billing_ledgerline", "SELECT 1"),
    "I7": lambda job: RenderImage.objects.filter(job=job, state="rendering").update(state="waiting"),
    "I9 gap": lambda job: JobEvent.objects.filter(job=job, sequence=2).delete(),
    "I9 state": lambda job: RenderImage.objects.filter(job=job, state="rendering").update(state="claimed"),
    "I10": lambda job: Attempt.objects.filter(image__job=job).update(outcome="lost"),
    "P4 default": lambda job: Asset.objects.update(state="retired"),
    "I2 missing": lambda job: default_storage.delete("a.png"),
    "I2 other bytes": lambda job: (default_storage.delete("a.png"), default_storage.save("a.png", ContentFile(b"x"))),
    "P4 file": lambda job: Asset.objects.update(size_bytes=2),
}


@pytest.mark.parametrize("name", BREAKAGES)
def test_a_broken_row_or_object_is_found(delivered_job, name):
    BREAKAGES[name](delivered_job)
    found = list(violations())
    assert any(line.startswith(name.split()[0]) for line in found), found
