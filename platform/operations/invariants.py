"""What must be true of database and storage at any moment, after any fault (engineering.md, section 2.1). Reads only.

One generator per invariant; each yields one sentence per violation. Set-based: no query per row, but one read per object.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

from django.core.files.storage import default_storage, storages
from django.db import connection
from django.db.models import Count, F, Max, Q, Sum
from django.utils import timezone

from assets.models import Asset, AssetState
from billing.models import LedgerLine, LedgerTransaction
from renderjobs.choices import (
    IMAGE_ARROWS,
    IMAGE_HELD,
    IMAGE_TERMINAL,
    JOB_ARROWS,
    JOB_OPEN,
    JOB_TERMINAL,
    AttemptOutcome,
    ImageState,
)
from renderjobs.models import Attempt, Claim, JobEvent, RenderImage, RenderJob

ORPHAN_AGE = timedelta(hours=24)
APPEND_ONLY_TABLES = ("billing_ledgertransaction", "billing_ledgerline")


def violations(*, objects: bool = True) -> Iterator[str]:
    """Every violation. ``objects`` False leaves the storage unread."""
    for check in ROW_CHECKS:
        yield from check()
    if objects:
        for check in OBJECT_CHECKS:
            yield from check()


def i1_a_job_is_open_exactly_while_an_image_is() -> Iterator[str]:
    counts = {
        "delivered": Count("images", filter=Q(images__state=ImageState.DELIVERED)),
        "failed": Count("images", filter=Q(images__state=ImageState.FAILED)),
        "cancelled": Count("images", filter=Q(images__state=ImageState.CANCELLED)),
        "all": Count("images"),
    }
    for job in RenderJob.objects.annotate(**{f"n_{name}": count for name, count in counts.items()}):
        counted = (job.n_delivered, job.n_failed, job.n_cancelled, job.n_all)
        said = (job.images_delivered, job.images_failed, job.images_cancelled, job.images_total)
        if counted != said:
            yield f"I1 job {job.pk} counts {said} delivered, failed, cancelled, total images; it has {counted}."
        ended = sum(counted[:3]) == job.n_all
        if ended != (job.state in JOB_TERMINAL):
            yield f"I1 job {job.pk} is {job.state} with {sum(counted[:3])} of {job.n_all} images ended."


def i3_delivered_images_and_charges_are_one_to_one() -> Iterator[str]:
    charges = LedgerTransaction.objects.filter(kind="charge")
    delivered = RenderImage.objects.filter(state=ImageState.DELIVERED)
    for pk in delivered.exclude(pk__in=charges.values("image_id")).values_list("pk", flat=True):
        yield f"I3 image {pk} is delivered and not charged."
    for pk in charges.exclude(image_id__in=delivered.values("pk")).values_list("image_id", flat=True):
        yield f"I3 image {pk} is charged and not delivered."
    for image_id in (
        charges.values("image_id").annotate(n=Count("pk")).filter(n__gt=1).values_list("image_id", flat=True)
    ):
        yield f"I3 image {image_id} is charged more than once."


def i3_ledger_transactions_sum_to_zero() -> Iterator[str]:
    wrong = LedgerTransaction.objects.annotate(total=Sum("lines__amount"), n=Count("lines"))
    for transaction in wrong.exclude(total=0, n=2):
        yield f"I3 ledger transaction {transaction.pk} has {transaction.n} lines with the sum {transaction.total}."


def i3_costs_of_images_and_jobs_are_the_ledgers() -> Iterator[str]:
    spent = LedgerLine.objects.filter(account="team_spend")
    by_image = dict(spent.values_list("transaction__image_id").annotate(total=Sum("amount")))
    for pk, amount in RenderImage.objects.filter(state=ImageState.DELIVERED).values_list("pk", "cost_amount"):
        if by_image.get(pk) != amount:
            yield f"I3 image {pk} says it cost {amount}; the ledger says {by_image.get(pk)}."
    by_job = dict(spent.values_list("transaction__job_id").annotate(total=Sum("amount")))
    for pk, amount in RenderJob.objects.values_list("pk", "cost_amount"):
        if by_job.get(pk, 0) != amount:
            yield f"I3 job {pk} says it cost {amount}; the ledger says {by_job.get(pk, 0)}."


def r8_the_database_refuses_to_change_the_ledger() -> Iterator[str]:
    query = (
        "SELECT tbl_name FROM sqlite_master WHERE type = 'trigger'"
        if connection.vendor == "sqlite"
        else "SELECT DISTINCT event_object_table FROM information_schema.triggers"
    )
    with connection.cursor() as cursor:
        cursor.execute(query)
        guarded = {row[0] for row in cursor.fetchall()}
    for table in APPEND_ONLY_TABLES:
        if table not in guarded:
            yield f"R8 table {table} has no append-only trigger."


def i7_a_held_image_has_one_open_claim() -> Iterator[str]:
    for pk in RenderImage.objects.filter(state__in=IMAGE_HELD, claim__ended_at__isnull=False).values_list(
        "pk", flat=True
    ):
        yield f"I7 image {pk} is held under a claim that has ended."
    for pk in Claim.objects.filter(ended_at=None).exclude(images__state__in=IMAGE_HELD).values_list("pk", flat=True):
        yield f"I7 claim {pk} is open and holds nothing."


def i9_events_tell_every_move() -> Iterator[str]:
    numbers = RenderJob.objects.annotate(n=Count("events"), last=Max("events__sequence"))
    for job in numbers.exclude(n=F("event_sequence"), last=F("event_sequence")):
        yield f"I9 job {job.pk} is at event {job.event_sequence} with {job.n} events up to {job.last}."
    states: dict[Any, str] = {}
    for event in JobEvent.objects.order_by("job", "sequence").iterator(chunk_size=2000):
        key = (event.job_id, event.image_index)
        arrows = JOB_ARROWS if event.image_index is None else IMAGE_ARROWS
        first = "" if event.image_index is None else ImageState.WAITING
        if event.from_state != states.get(key, first):
            yield f"I9 event {event.sequence} of job {event.job_id} leaves {event.from_state!r}, not where it was."
        elif event.from_state and event.to_state not in arrows.get(event.from_state, ()):
            yield f"I9 event {event.sequence} of job {event.job_id}: {event.from_state} → {event.to_state} is no arrow."
        states[key] = event.to_state
    for job_id, index, state in RenderImage.objects.values_list("job_id", "index", "state").iterator():
        if states.get((job_id, index), ImageState.WAITING) != state:
            yield f"I9 image {index} of job {job_id} is {state}; its events end at {states.get((job_id, index))}."
    for job_id, state in RenderJob.objects.values_list("pk", "state").iterator():
        if states.get((job_id, None)) != state:
            yield f"I9 job {job_id} is {state}; its events end at {states.get((job_id, None))}."


def i10_attempts_end_with_their_images() -> Iterator[str]:
    open_attempts = Attempt.objects.filter(ended_at=None)
    for pk in open_attempts.exclude(image__state__in=IMAGE_HELD).values_list("pk", flat=True):
        yield f"I10 attempt {pk} runs although its image is not held."
    delivered = Count("tries", filter=Q(tries__outcome=AttemptOutcome.DELIVERED))
    for image in RenderImage.objects.annotate(n=delivered).filter(state__in=IMAGE_TERMINAL):
        if image.n != (image.state == ImageState.DELIVERED):
            yield f"I10 image {image.pk} is {image.state} with {image.n} delivered attempts."


def p4_the_default_checkpoint_is_usable() -> Iterator[str]:
    for asset in Asset.objects.filter(is_default=True).exclude(state=AssetState.APPROVED):
        yield f"P4 the default {asset.kind} {asset.name} is {asset.state}."
    if (open_jobs := RenderJob.objects.filter(state__in=JOB_OPEN, checkpoint__sha256="")).exists():
        yield f"P4 {open_jobs.count()} open jobs have a checkpoint without a hash."


def i2_a_delivered_images_object_has_its_hash() -> Iterator[str]:
    rows = RenderImage.objects.filter(state=ImageState.DELIVERED).values_list("pk", "file_key", "sha256")
    for pk, key, sha256 in rows.iterator():
        found = object_hash(key)
        if found != sha256:
            yield f"I2 the object of image {pk} is {'missing' if found is None else 'not what was delivered'}: {key}."


def i19_no_old_object_lies_without_a_row() -> Iterator[str]:
    known = set(RenderImage.objects.exclude(file_key="").values_list("file_key", flat=True))
    known |= set(RenderJob.objects.exclude(grid_key="").values_list("grid_key", flat=True))
    for key in walk(""):
        if key not in known and timezone.now() - default_storage.get_modified_time(key) > ORPHAN_AGE:
            yield f"I19 object {key} belongs to no row and is older than {ORPHAN_AGE}."


def p4_approved_assets_have_their_file() -> Iterator[str]:
    storage = storages["assets"]
    for asset in Asset.objects.filter(state=AssetState.APPROVED):
        if not storage.exists(asset.file_key) or storage.size(asset.file_key) != asset.size_bytes:
            yield f"P4 the file of asset {asset.pk} ({asset.name}) is missing or has another size."


def object_hash(key: str) -> str | None:
    """sha-256 of a stored picture; None when there is no such object."""
    try:
        with default_storage.open(key) as file:
            return hashlib.sha256(file.read()).hexdigest()
    except (FileNotFoundError, OSError):
        return None


def walk(folder: str) -> Iterator[str]:
    """Keys of every stored picture."""
    try:
        folders, files = default_storage.listdir(folder)
    except FileNotFoundError:
        return
    for name in files:
        yield f"{folder}/{name}".lstrip("/")
    for name in folders:
        yield from walk(f"{folder}/{name}".lstrip("/"))


ROW_CHECKS: tuple[Callable[[], Iterator[str]], ...] = (
    i1_a_job_is_open_exactly_while_an_image_is,
    i3_delivered_images_and_charges_are_one_to_one,
    i3_ledger_transactions_sum_to_zero,
    i3_costs_of_images_and_jobs_are_the_ledgers,
    r8_the_database_refuses_to_change_the_ledger,
    i7_a_held_image_has_one_open_claim,
    i9_events_tell_every_move,
    i10_attempts_end_with_their_images,
    p4_the_default_checkpoint_is_usable,
)
OBJECT_CHECKS: tuple[Callable[[], Iterator[str]], ...] = (
    i2_a_delivered_images_object_has_its_hash,
    i19_no_old_object_lies_without_a_row,
    p4_approved_assets_have_their_file,
)
