"""Who waits for a queue is told of its changes through the broker. A lost message costs a poll interval, nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Hashable
from functools import cache
from weakref import WeakValueDictionary

import redis
import redis.asyncio
from django.conf import settings
from django.db import transaction

logger = logging.getLogger(__name__)
CHANNEL = "renderjobs.eas"
POLL_SECONDS = 1.0
ANY = 0
"""In place of a queue's id: whichever changes."""


def announce(queue_id: int) -> None:
    """Tell every web process, once the change is there to be seen."""
    transaction.on_commit(lambda: _publish(queue_id), robust=True)


def _publish(queue_id: int) -> None:
    try:
        _client().publish(CHANNEL, str(queue_id))
    except redis.RedisError as error:
        logger.warning("A change of queue %s was not announced: %s", queue_id, error)


@cache
def _client() -> redis.Redis:
    """Shared by all threads: a put is too short for a connection of its own."""
    return redis.Redis.from_url(settings.REDIS_URL, socket_timeout=2, socket_connect_timeout=1)


class Turn:
    """Those who look for the same, one after the other: who looks in vain does so for all of them."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self._seen, self._looked_at = -1, 0.0

    def in_vain(self, *, since: int) -> None:
        """There was nothing for anybody, as of this change."""
        self._seen, self._looked_at = since, time.monotonic()

    def is_in_vain(self, *, since: int) -> bool:
        """Whether somebody looked after this change, and not as long as a poll interval ago."""
        return self._seen == since and time.monotonic() - self._looked_at < 0.9 * POLL_SECONDS


class QueueHub:
    """The changes one event loop has heard of: a number per queue, and those who wait for it to grow."""

    _of_loop: dict[asyncio.AbstractEventLoop, QueueHub] = {}

    def __init__(self) -> None:
        self._turns: WeakValueDictionary[Hashable, Turn] = WeakValueDictionary()
        self._changes: dict[int, int] = {}
        self._waiters: dict[int, set[asyncio.Event]] = {}
        self._task: asyncio.Task[None] | None = None

    @classmethod
    def of_this_loop(cls) -> QueueHub:
        return cls._of_loop.setdefault(asyncio.get_running_loop(), cls())

    def changes_of(self, queue_id: int = ANY) -> int:
        """To be read before the queue is looked at, and given to ``wait``: what comes in between is not missed."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._listen())
        return self._changes.get(queue_id, 0)

    async def wait(self, queue_id: int = ANY, *, since: int, seconds: float = POLL_SECONDS) -> None:
        """Until the queue (or any of them) changes, but no longer than the poll interval or ``seconds``."""
        if self._changes.get(queue_id, 0) != since:
            return
        woken = asyncio.Event()
        self._waiters.setdefault(queue_id, set()).add(woken)
        try:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(woken.wait(), min(seconds, POLL_SECONDS))
        finally:
            waiters = self._waiters.get(queue_id, set())
            waiters.discard(woken)
            if not waiters:
                self._waiters.pop(queue_id, None)

    def turn_of(self, kind: Hashable) -> Turn:
        """To be kept as long as things of this kind are looked for."""
        return self._turns.setdefault(kind, Turn())

    def _wake(self, queue_id: int) -> None:
        for changed in (queue_id, ANY):
            self._changes[changed] = self._changes.get(changed, 0) + 1
            for woken in self._waiters.get(changed, ()):
                woken.set()

    async def _listen(self) -> None:
        task = asyncio.current_task()
        # Connecting may swallow a cancellation; the loop that is being closed would wait for this task for ever.
        while task is not None and not task.cancelling():
            try:
                client = redis.asyncio.Redis.from_url(settings.REDIS_URL, socket_connect_timeout=2)
                async with client, client.pubsub() as channel:
                    await channel.subscribe(CHANNEL)
                    if task.cancelling():
                        return
                    async for message in channel.listen():
                        if message["type"] == "message" and message["data"].isdigit():
                            self._wake(int(message["data"]))
            except (redis.RedisError, OSError) as error:
                logger.warning("Queues are polled only, the broker does not answer: %s", error)
                await asyncio.sleep(POLL_SECONDS)
