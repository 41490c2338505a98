"""A paused job begins no more images, whatever happens to those on a worker, until it is resumed."""

from __future__ import annotations

import pytest
from django.test import Client

from common.errors import ConflictError
from operations.invariants import violations
from renderjobs.models import RenderImage
from renderjobs.pausing import job_pause, job_resume
from renderjobs.submission import job_cancel
from tests.factories import a_caller, a_job
from tests.renderjobs.test_delivery import begun, deliver, image_fail

pytestmark = pytest.mark.django_db


def test_a_paused_job_is_not_claimed_and_goes_on_after_resuming():
    job = a_job(n_iter=2)
    for _ in range(2):  # twice changes nothing
        job_pause(job=job)
    with pytest.raises(AttributeError):
        begun()
    assert list(violations(objects=False)) == []
    for _ in range(2):
        job_resume(job=job)
    deliver(begun())
    assert list(violations(objects=False)) == []


def test_what_is_on_a_worker_ends_and_what_comes_back_waits():
    job = a_job(n_iter=3)
    batch = begun()
    job_pause(job=job)
    deliver(batch, 0)
    image_fail(batch=batch, image=batch.images[1], code="x", message="x", retryable=True, gpu_us=1)
    states = dict(RenderImage.objects.values_list("index", "state"))
    assert (states[0], states[1]) == ("delivered", "waiting")
    with pytest.raises(AttributeError):
        begun("another")
    job_resume(job=job)
    assert begun("another").images


def test_a_paused_job_can_be_cancelled_and_an_ended_one_neither_paused_nor_resumed():
    job = a_job()
    job_pause(job=job)
    job_cancel(job=job)
    for change in (job_pause, job_resume):
        with pytest.raises(ConflictError, match="cancelled"):
            change(job=job)
    assert list(violations(objects=False)) == []


def test_pause_and_resume_by_api():
    caller = a_caller()
    job, client = a_job(caller), Client(headers={"Authorization": f"Bearer {caller.token.text}"})
    paused = client.post(f"/api/v1/jobs/{job.pk}/pause")
    assert paused.status_code == 200 and paused.json()["paused_at"] and paused.json()["state"] == "queued"
    assert client.post(f"/api/v1/jobs/{job.pk}/resume").json()["paused_at"] is None
    job_cancel(job=job)
    assert client.post(f"/api/v1/jobs/{job.pk}/pause").status_code == 409
    stranger = Client(headers={"Authorization": f"Bearer {a_caller('team-b', 'eve').token.text}"})
    assert {stranger.post(f"/api/v1/jobs/{job.pk}/{what}").status_code for what in ("pause", "resume")} == {404}
