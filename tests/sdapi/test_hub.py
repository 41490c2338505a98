"""Waiting for the end of a job: by announcement, by looking it up, and with nobody there to announce."""

from __future__ import annotations

import asyncio
import time
import uuid

import pytest

from renderjobs import waiting
from renderjobs.waiting import Hub, announce_end


@pytest.fixture
def ended(monkeypatch) -> set[uuid.UUID]:
    """The jobs that the database says have ended."""
    known: set[uuid.UUID] = set()

    async def ended_among(job_ids: list[uuid.UUID]) -> list[uuid.UUID]:
        return [job_id for job_id in job_ids if job_id in known]

    monkeypatch.setattr(waiting, "ended_among", ended_among)
    return known


def seconds_until_woken(job_id: uuid.UUID, then) -> float:
    """How long after ``then`` the waiters of the job go on."""

    async def scenario() -> float:
        waiters = [asyncio.create_task(Hub.of_this_loop().wait(job_id)) for _ in range(3)]
        await asyncio.sleep(0.3)
        assert not any(waiter.done() for waiter in waiters)
        started = time.monotonic()
        await asyncio.to_thread(then)
        await asyncio.wait_for(asyncio.gather(*waiters), 10)
        return time.monotonic() - started

    return asyncio.run(scenario())


def test_an_announced_end_wakes_every_waiter_at_once(broker, ended):
    job_id = uuid.uuid4()
    assert seconds_until_woken(job_id, lambda: announce_end(job_id)) < waiting.POLL_SECONDS / 2


def test_an_end_that_nobody_announced_is_found(broker, ended, monkeypatch):
    monkeypatch.setattr(waiting, "POLL_SECONDS", 0.2)
    job_id = uuid.uuid4()
    assert seconds_until_woken(job_id, lambda: ended.add(job_id)) < 2


def test_without_a_broker_ends_are_found_and_announcing_fails_quietly(ended, settings, monkeypatch):
    monkeypatch.setattr(waiting, "POLL_SECONDS", 0.2)
    settings.REDIS_URL = "redis://127.0.0.1:1/0"
    job_id = uuid.uuid4()

    def end() -> None:
        announce_end(job_id)
        ended.add(job_id)

    assert seconds_until_woken(job_id, end) < 3


def test_a_job_that_has_ended_is_not_waited_for_and_nothing_is_left_of_the_wait(broker, ended):
    job_id = uuid.uuid4()
    ended.add(job_id)

    async def scenario() -> dict:
        hub = Hub.of_this_loop()
        await asyncio.wait_for(hub.wait(job_id), 0.5)
        return hub._waiters

    assert asyncio.run(scenario()) == {}


def test_a_caller_that_hangs_up_leaves_the_other_waiters(broker, ended):
    job_id = uuid.uuid4()

    async def scenario() -> None:
        gone, stays = (asyncio.create_task(Hub.of_this_loop().wait(job_id)) for _ in range(2))
        await asyncio.sleep(0.2)
        gone.cancel()
        await asyncio.to_thread(announce_end, job_id)
        await asyncio.wait_for(stays, 1.5)

    asyncio.run(scenario())
