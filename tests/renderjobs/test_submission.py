"""Accepting a job: all of it or nothing, and the same answer for the same key."""

from __future__ import annotations

import pytest

from common.errors import ConflictError, ForbiddenError, InvalidRequestError
from renderjobs.choices import Lane
from renderjobs.models import JobEvent, RenderImage, RenderJob
from renderjobs.models.jobs import Source
from renderjobs.submission import job_estimate, job_submit
from tests.factories import a_caller, a_checkpoint, a_job, a_platform, a_request

pytestmark = pytest.mark.django_db


def test_a_job_has_one_image_per_pass_and_place_with_consecutive_seeds():
    job = a_job(n_iter=2, batch_size=3, seed=41)
    assert list(job.images.values_list("index", "seed")) == [(i, 41 + i) for i in range(6)]
    assert job.state == "queued" and job.images_total == 6


def test_variation_keeps_the_seed_and_counts_the_subseeds():
    job = a_job(batch_size=3, seed=7, subseed=100, subseed_strength=0.5)
    assert list(job.images.values_list("seed", "subseed")) == [(7, 100), (7, 101), (7, 102)]


def test_a_random_seed_is_drawn_once_and_counted_on():
    first, second = a_job(batch_size=2, seed=-1).images.all()
    assert 0 <= first.seed <= 4294967293 and second.seed == first.seed + 1


def test_the_same_key_and_body_is_the_same_job():
    a_platform()
    caller = a_caller()
    first = job_submit(caller=caller, request=a_request(), source=Source.API, body={"a": 1}, idempotency_key="k")
    again = job_submit(caller=caller, request=a_request(), source=Source.API, body={"a": 1}, idempotency_key="k")
    assert again.replayed and again.job.pk == first.job.pk and RenderJob.objects.count() == 1


def test_the_same_key_with_another_body_is_refused():
    a_platform()
    caller = a_caller()
    job_submit(caller=caller, request=a_request(), source=Source.API, body={"a": 1}, idempotency_key="k")
    with pytest.raises(ConflictError):
        job_submit(caller=caller, request=a_request(), source=Source.API, body={"a": 2}, idempotency_key="k")
    assert RenderJob.objects.count() == 1


@pytest.mark.parametrize("role", ["viewer", "finance"])
def test_who_only_reads_submits_and_estimates_nothing(role):
    a_platform()
    caller = a_caller(user=role, role=role)
    with pytest.raises(ForbiddenError, match=f"not in the role {role}"):
        job_submit(caller=caller, request=a_request(), source=Source.API)
    with pytest.raises(ForbiddenError):
        job_estimate(caller=caller, request=a_request(), lane=Lane.STANDARD)
    assert not RenderJob.objects.exists()


def test_an_unknown_checkpoint_leaves_nothing_behind():
    a_platform()
    with pytest.raises(InvalidRequestError, match="'nope' is unknown"):
        job_submit(caller=a_caller(), request=a_request(checkpoint="nope"), source=Source.API)
    assert not RenderJob.objects.exists() and not RenderImage.objects.exists() and not JobEvent.objects.exists()


def test_a_queued_job_keeps_the_checkpoint_it_was_submitted_with():
    job = a_job(checkpoint="mini")
    a_checkpoint("mini", sha256="f" * 64, short_hash="f" * 10, is_default=False)
    job.refresh_from_db()
    assert job.checkpoint.sha256 != "f" * 64


@pytest.mark.parametrize("count", [10, 1000])
def test_submission_takes_a_bounded_number_of_statements(count, django_assert_max_num_queries):
    a_platform()
    caller, request = a_caller(), a_request(n_iter=count)
    with django_assert_max_num_queries(24):
        job_submit(caller=caller, request=request, source=Source.API)
