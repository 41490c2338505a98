"""Waiting for the end of a job: by announcement, by looking it up, and with nobody there to announce."""

from __future__ import annotations

import asyncio
import uuid

import pytest

from renderjobs import waiting
from renderjobs.waiting import Hub, announce_end
from tests.services import RedisServer


@pytest.fixture
def ended(monkeypatch) -> set[uuid.UUID]:
    """The jobs that the database says have ended."""
    known: set[uuid.UUID] = set()

    async def ended_among(job_ids: list[uuid.UUID]) -> list[uuid.UUID]:
        return [job_id for job_id in job_ids if job_id in known]

    monkeypatch.setattr(waiting, "ended_among", ended_among)
    return known


@pytest.fixture
def nobody_looks_it_up(monkeypatch) -> None:
    """Only an announcement wakes a waiter."""
    monkeypatch.setattr(waiting, "POLL_SECONDS", 3600)


async def until_it_listens(broker: RedisServer) -> None:
    """What is announced before is heard by nobody."""
    while dict(broker.client.pubsub_numsub(waiting.CHANNEL))[waiting.CHANNEL.encode()] == 0:
        await asyncio.sleep(0.01)


def woken(job_id: uuid.UUID, then, broker: RedisServer | None = None) -> None:
    """All waiters of the job go on after ``then``, and none before."""

    async def scenario() -> None:
        waiters = [asyncio.create_task(Hub.of_this_loop().wait(job_id)) for _ in range(3)]
        if broker is not None:
            await until_it_listens(broker)
        done, _ = await asyncio.wait(waiters, timeout=0.1)
        assert not done
        await asyncio.to_thread(then)
        await asyncio.gather(*waiters)

    asyncio.run(scenario())


def test_an_announced_end_wakes_every_waiter_at_once(broker, ended, nobody_looks_it_up):
    job_id = uuid.uuid4()
    woken(job_id, lambda: announce_end(job_id), broker)


def test_an_end_that_nobody_announced_is_found(broker, ended, monkeypatch):
    monkeypatch.setattr(waiting, "POLL_SECONDS", 0.05)
    job_id = uuid.uuid4()
    woken(job_id, lambda: ended.add(job_id), broker)


def test_without_a_broker_ends_are_found_and_announcing_fails_quietly(ended, settings, monkeypatch):
    monkeypatch.setattr(waiting, "POLL_SECONDS", 0.05)
    settings.REDIS_URL = "redis://127.0.0.1:1/0"
    job_id = uuid.uuid4()

    def end() -> None:
        announce_end(job_id)
        ended.add(job_id)

    woken(job_id, end)


def test_a_job_that_has_ended_is_not_waited_for_and_nothing_is_left_of_the_wait(broker, ended, nobody_looks_it_up):
    job_id = uuid.uuid4()
    ended.add(job_id)

    async def scenario() -> dict:
        hub = Hub.of_this_loop()
        await hub.wait(job_id)
        return hub._waiters

    assert asyncio.run(scenario()) == {}


def test_a_caller_that_hangs_up_leaves_the_other_waiters(broker, ended, nobody_looks_it_up):
    job_id = uuid.uuid4()

    async def scenario() -> None:
        gone, stays = (asyncio.create_task(Hub.of_this_loop().wait(job_id)) for _ in range(2))
        await until_it_listens(broker)
        gone.cancel()
        await asyncio.to_thread(announce_end, job_id)
        await stays

    asyncio.run(scenario())
