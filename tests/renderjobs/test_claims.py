"""Leases: who holds an image, for how long, and what happens when the holder goes away."""

from __future__ import annotations

import pytest

from common.database import now_plus
from fleet.services import worker_register
from gpuworker.contract import AnyRecipe
from renderjobs.claims import (
    LeaseLost,
    SizeOf,
    as_many_as_may,
    lease_release,
    lease_renew,
    leases_expire,
    microbatch_claim,
    rendering_begin,
)
from renderjobs.models import Attempt, Claim, RenderImage, RenderJob
from renderjobs.submission import job_cancel
from tests.factories import a_caller, a_job, a_pool

pytestmark = pytest.mark.django_db


def claim(name: str = "w1", *, size_of: SizeOf = as_many_as_may):
    pool = a_pool()
    worker = worker_register(name=name, pool=pool, device="cpu")
    return microbatch_claim(worker_id=worker.pk, pool_id=pool.pk, size_of=size_of)


def let_pass(claim_id: int) -> None:
    Claim.objects.filter(pk=claim_id).update(expires_at=now_plus(-1))


def states(job: RenderJob) -> list[str]:
    return list(RenderImage.objects.filter(job=job).order_by("index").values_list("state", flat=True))


def test_a_claim_takes_the_images_of_one_pass_and_starts_the_job():
    job = a_job(n_iter=3)
    batch = claim()
    assert [image.recipe.seed for image in batch.images] == [1000, 1001, 1002]
    job.refresh_from_db()
    assert job.state == "running" and states(job) == ["claimed"] * 3


def test_images_of_two_jobs_that_fit_together_share_a_pass():
    caller = a_caller()
    first, second = a_job(caller, prompt="a"), a_job(caller, prompt="b")
    assert {image.job.pk for image in claim().images} == {first.pk, second.pk}


def test_images_of_another_size_wait_for_a_pass_of_their_own():
    caller = a_caller()
    a_job(caller, width=64)
    a_job(caller, width=128)
    assert len(claim().images) == 1


def test_h5_the_worker_says_how_many_share_a_pass_and_the_setting_how_many_at_most(settings):
    settings.MAX_MICROBATCH = 3
    a_job(n_iter=5)
    asked: list[int] = []

    def size_of(recipe: AnyRecipe) -> int:
        asked.append(recipe.width)
        return 2 if len(asked) == 1 else 100

    assert [len(claim(size_of=size_of).images) for _ in range(2)] == [2, 3] and asked == [64, 64]


def test_h5_nobody_is_asked_how_many_share_a_pass_where_one_image_waits():
    def size_of(recipe: AnyRecipe) -> int:
        raise AssertionError("asked")

    a_job()
    assert len(claim(size_of=size_of).images) == 1


def test_two_workers_never_get_the_same_image(settings):
    settings.MAX_MICROBATCH = 2
    a_job(n_iter=4)
    first, second = claim("w1"), claim("w2")
    assert not {image.image_id for image in first.images} & {image.image_id for image in second.images}


def test_nothing_waiting_is_no_claim():
    assert claim() is None


def test_i6_a_lease_that_has_passed_cannot_be_renewed_or_begin():
    a_job()
    batch = claim()
    let_pass(batch.claim_id)
    assert not lease_renew(claim_id=batch.claim_id, step=1, steps=4)
    with pytest.raises(LeaseLost):
        rendering_begin(claim_id=batch.claim_id)


def test_i7_renewal_extends_by_the_database_clock():
    a_job()
    batch = claim()
    Claim.objects.filter(pk=batch.claim_id).update(expires_at=now_plus(15))
    assert lease_renew(claim_id=batch.claim_id, step=2, steps=4)
    assert Claim.objects.filter(pk=batch.claim_id, expires_at__gt=now_plus(20), step=2).exists()


def test_i8_expiry_puts_the_images_back_and_has_them_run_alone():
    job = a_job(n_iter=2)
    let_pass(claim().claim_id)
    assert leases_expire() == 1
    assert states(job) == ["waiting", "waiting"]
    assert len(claim("w2").images) == 1
    assert Attempt.objects.filter(outcome="lost").count() == 2


def test_i10_an_image_that_loses_its_worker_too_often_fails_as_poison(settings):
    job = a_job()
    for _ in range(settings.MAX_ATTEMPTS):
        let_pass(claim().claim_id)
        leases_expire()
    job.refresh_from_db()
    assert job.state == "failed" and job.error_code == "poison" and states(job) == ["failed"]


def test_i16_a_released_image_waits_again_without_a_counted_attempt():
    job = a_job()
    batch = claim()
    lease_release(claim_id=batch.claim_id, cause="the worker stops")
    image = RenderImage.objects.get(job=job)
    assert image.state == "waiting" and image.attempts == 0
    assert Claim.objects.get(pk=batch.claim_id).ended_at


def test_i17_cancelling_ends_waiting_and_held_images_and_the_lease(settings):
    settings.MAX_MICROBATCH = 1
    job = a_job(n_iter=2)
    batch = claim()
    job = job_cancel(job=job)
    assert job.state == "cancelled" and states(job) == ["cancelled", "cancelled"]
    assert not lease_renew(claim_id=batch.claim_id, step=1, steps=4)


def test_the_interactive_lane_goes_first():
    from renderjobs.choices import Lane
    from renderjobs.models.jobs import Source
    from renderjobs.submission import job_submit
    from tests.factories import a_request

    caller = a_caller()
    a_job(caller, width=64)
    urgent = job_submit(caller=caller, request=a_request(width=128), source=Source.API, lane=Lane.INTERACTIVE).job
    assert claim().images[0].job.pk == urgent.pk


def test_i9_events_of_a_job_have_no_gaps():
    job = a_job(n_iter=2)
    rendering_begin(claim_id=claim().claim_id)
    job.refresh_from_db()
    sequences = list(job.events.values_list("sequence", flat=True))
    assert sequences == list(range(1, job.event_sequence + 1)) and len(sequences) == 1 + 2 + 1 + 2
