"""Callers and workers at the same moment: whoever comes second sees what the first one wrote."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from django.db import connection

from billing.models import LedgerTransaction
from fleet.services import worker_register
from renderjobs.claims import LeaseLost, microbatch_claim, rendering_begin
from renderjobs.delivery import StoredPicture, image_deliver
from renderjobs.models import BatchSchedule, JobEvent, RenderJob, ScheduledRun
from renderjobs.models.jobs import Source
from renderjobs.schedules import schedule_run
from renderjobs.submission import job_cancel, job_submit
from tests.factories import a_caller, a_job, a_platform, a_pool, a_request, a_schedule

pytestmark = pytest.mark.django_db(transaction=True)


def at_once(*works: Callable[[], Any]) -> None:
    """Run the works in threads that start together; an error in one is the test's error, and so is one that never ends."""
    barrier, errors = threading.Barrier(len(works)), []

    def run(work: Callable[[], Any]) -> None:
        try:
            wait_for_a_turn_of_any_length()
            barrier.wait()
            work()
        except Exception as error:
            errors.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=run, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def wait_for_a_turn_of_any_length() -> None:
    """SQLite's writers take no turns: who is unlucky and on a slow machine may wait for longer than the product does."""
    if connection.vendor == "sqlite":
        with connection.cursor() as cursor:
            cursor.execute("PRAGMA busy_timeout = 600000")


def work_until_empty(name: str) -> None:
    pool = a_pool()
    worker = worker_register(name=name, pool=pool, device="cpu")
    while batch := microbatch_claim(worker_id=worker.pk, pool_id=pool.pk):
        rendering_begin(claim_id=batch.claim_id)
        for image in batch.images:
            picture = StoredPicture(f"{image.attempt_id}.png", "0" * 64, 1, 64, 64, "Steps: 4")
            image_deliver(batch=batch, image=image, picture=picture, gpu_us=1000)


def test_i7_three_workers_deliver_every_image_exactly_once(settings):
    settings.MAX_MICROBATCH = 2
    caller = a_caller()
    jobs = [a_job(caller, n_iter=7) for _ in range(3)]
    at_once(*(lambda name=name: work_until_empty(name) for name in ("w1", "w2", "w3")))
    assert set(RenderJob.objects.values_list("state", "images_delivered")) == {("succeeded", 7)}
    assert LedgerTransaction.objects.count() == 21
    for job in jobs:
        job.refresh_from_db()
        sequences = list(JobEvent.objects.filter(job=job).values_list("sequence", flat=True))
        assert sequences == list(range(1, job.event_sequence + 1))


def test_i5_two_racing_calls_with_one_key_make_one_job():
    a_platform()
    caller, answers = a_caller(), []

    def submit() -> None:
        submitted = job_submit(
            caller=caller, request=a_request(), source=Source.API, body={"a": 1}, idempotency_key="k"
        )
        answers.append(submitted.job.pk)

    at_once(submit, submit, submit)
    assert len(set(answers)) == 1 and RenderJob.objects.count() == 1


def test_i17_a_cancel_racing_deliveries_ends_each_image_exactly_once():
    job = a_job(n_iter=8)
    pool = a_pool()
    worker = worker_register(name="w1", pool=pool, device="cpu")
    batch = microbatch_claim(worker_id=worker.pk, pool_id=pool.pk)
    rendering_begin(claim_id=batch.claim_id)

    def deliver_all() -> None:
        for image in batch.images:
            picture = StoredPicture(f"{image.attempt_id}.png", "0" * 64, 1, 64, 64, "Steps: 4")
            try:
                image_deliver(batch=batch, image=image, picture=picture, gpu_us=1000)
            except LeaseLost:
                return

    at_once(deliver_all, lambda: job_cancel(job=job))
    job.refresh_from_db()
    assert job.images_delivered + job.images_cancelled == 8
    assert LedgerTransaction.objects.count() == job.images_delivered
    assert job.state == ("succeeded" if job.images_delivered == 8 else "cancelled")


def test_two_messages_of_one_planned_minute_make_one_job_and_cancel_none_of_it():
    a_platform()
    caller, night = a_caller(), datetime(2026, 11, 20, 3, tzinfo=UTC)
    schedule = a_schedule(caller.user, caller.team, minute="0", hour="3", overlap="cancel")
    schedule_run(schedule_id=schedule.pk, due=night)
    BatchSchedule.objects.update(handled_until=night)
    again = partial(schedule_run, schedule_id=schedule.pk, due=night + timedelta(days=1))
    at_once(again, again, again)
    states = list(RenderJob.objects.order_by("scheduled_for").values_list("state", flat=True))
    assert states == ["cancelled", "queued"]
    assert list(ScheduledRun.objects.values_list("outcome", flat=True)) == ["submitted", "submitted"]
