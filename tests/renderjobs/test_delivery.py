"""Exactly once: an image ends once, and a delivered one is charged once."""

from __future__ import annotations

from decimal import Decimal

import pytest
from django.db import IntegrityError, transaction

from billing.models import LedgerLine, LedgerTransaction, UsageRecord
from common.database import now_plus
from fleet.services import worker_register
from renderjobs.claims import ClaimedBatch, LeaseLost, leases_expire, microbatch_claim, rendering_begin
from renderjobs.delivery import StoredPicture, image_deliver, image_fail
from renderjobs.models import Attempt, Claim, RenderImage
from renderjobs.submission import job_cancel
from tests.factories import a_job, a_pool

pytestmark = pytest.mark.django_db


def begun(name: str = "w1") -> ClaimedBatch:
    pool = a_pool()
    worker = worker_register(name=name, pool=pool, device="cpu")
    batch = microbatch_claim(worker_id=worker.pk, pool_id=pool.pk)
    rendering_begin(claim_id=batch.claim_id)
    return batch


def picture(key: str = "a.png") -> StoredPicture:
    return StoredPicture(key=key, sha256="0" * 64, size_bytes=1, width=64, height=64, infotext="Steps: 4")


def deliver(batch: ClaimedBatch, position: int = 0, key: str = "", gpu_us: int = 2_000_000) -> None:
    image_deliver(batch=batch, image=batch.images[position], picture=picture(key or f"{position}.png"), gpu_us=gpu_us)


def test_i3_a_delivered_image_has_one_charge_at_the_pools_price():
    job = a_job()
    deliver(begun())
    job.refresh_from_db()
    charge = LedgerTransaction.objects.get()
    assert job.state == "succeeded" and job.cost_amount == Decimal("0.002000")
    assert charge.job_id == job.pk and sum(line.amount for line in charge.lines.all()) == 0


def test_j2_one_image_is_readable_and_charged_while_the_others_render():
    job = a_job(n_iter=3)
    deliver(begun())
    job.refresh_from_db()
    assert job.state == "running" and job.images_delivered == 1 and LedgerTransaction.objects.count() == 1


def test_r7_delivering_again_after_a_lost_answer_changes_nothing():
    job = a_job()
    batch = begun()
    deliver(batch)
    deliver(batch)
    job.refresh_from_db()
    assert job.images_delivered == 1 and LedgerTransaction.objects.count() == 1


def test_i6_a_worker_whose_lease_has_passed_cannot_deliver():
    job = a_job()
    late = begun()
    Claim.objects.update(expires_at=now_plus(-1))
    with pytest.raises(LeaseLost):
        deliver(late)
    leases_expire()
    deliver(begun("w2"), key="second.png")
    with pytest.raises(LeaseLost):
        deliver(late, key="late.png")
    assert RenderImage.objects.get(job=job).file_key == "second.png" and LedgerTransaction.objects.count() == 1


def test_i17_a_cancelled_image_cannot_be_delivered():
    job = a_job(n_iter=2)
    batch = begun()
    deliver(batch, 0)
    job_cancel(job=job)
    with pytest.raises(LeaseLost):
        deliver(batch, 1)
    job.refresh_from_db()
    assert (job.state, job.images_delivered, job.images_cancelled) == ("cancelled", 1, 1)
    assert LedgerTransaction.objects.count() == 1


def test_i8_delivered_images_stay_when_the_lease_passes():
    job = a_job(n_iter=2)
    deliver(begun())
    Claim.objects.update(expires_at=now_plus(-1))
    leases_expire()
    assert list(job.images.values_list("state", flat=True)) == ["delivered", "waiting"]


def test_j3_a_failure_that_may_pass_is_tried_again_up_to_the_limit(settings):
    job = a_job()
    for attempt in range(settings.MAX_ATTEMPTS):
        batch = begun(f"w{attempt}")
        image_fail(batch=batch, image=batch.images[0], code="storage", message="It is away.", retryable=True, gpu_us=5)
    job.refresh_from_db()
    assert job.state == "failed" and (job.error_code, job.error_message) == ("storage", "It is away.")
    assert UsageRecord.objects.filter(charged=False, gpu_us=5).count() == settings.MAX_ATTEMPTS
    assert set(LedgerTransaction.objects.values_list("kind", flat=True)) == {"overhead"}
    assert job.cost_amount == 0 and not LedgerLine.objects.filter(account="team_spend").exists()


def test_a_failed_image_leaves_its_neighbours_delivered():
    job = a_job(n_iter=2)
    batch = begun()
    image_fail(batch=batch, image=batch.images[0], code="flat", message="It is flat.", retryable=False)
    deliver(batch, 1)
    job.refresh_from_db()
    assert job.state == "partly_succeeded" and Attempt.objects.filter(ended_at=None).count() == 0


def test_i9_states_move_only_along_the_arrows():
    from renderjobs.transitions import ForbiddenMove, images_move, jobs_locked

    job = a_job()
    deliver(begun())
    with transaction.atomic(), pytest.raises(ForbiddenMove):
        images_move(list(job.images.all()), "waiting", cause="test", jobs=jobs_locked([job.pk]))


def test_i2_the_database_refuses_a_delivered_image_without_a_file():
    job = a_job()
    with pytest.raises(IntegrityError), transaction.atomic():
        RenderImage.objects.filter(job=job).update(state="delivered")


def test_i2_the_database_refuses_a_second_image_of_one_index():
    image = RenderImage.objects.get(job=a_job())
    image.pk = None
    with pytest.raises(IntegrityError), transaction.atomic():
        image.save(force_insert=True)
