"""Waiting for a job's end without a thread and without a database connection: what synchronous doors are built on.

One hub per process. It listens to the broker for ended jobs and, because messages can be lost, asks the database about all
waiting jobs at once every few seconds. A waiting request is one asyncio future.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid

import redis
import redis.asyncio
from asgiref.sync import SyncToAsync, sync_to_async
from django.conf import settings
from django.db import connections

from renderjobs.choices import JOB_TERMINAL
from renderjobs.models import RenderJob

logger = logging.getLogger(__name__)
CHANNEL = "renderjobs.ended"
POLL_SECONDS = 2.0


def announce_end(job_id: uuid.UUID) -> None:
    """Tell every web process that a job has ended. A broker that does not answer only makes the waiters slower."""
    try:
        client = redis.Redis.from_url(settings.REDIS_URL, socket_timeout=2, socket_connect_timeout=1)
        with client:
            client.publish(CHANNEL, str(job_id))
    except redis.RedisError as error:
        logger.warning("The end of job %s was not announced: %s", job_id, error)


async def job_wait(job_id: uuid.UUID) -> None:
    """Return when the job has ended. Cancelling the wait (a client that hangs up) leaves the job alone."""
    await release_request_thread()
    await Hub.of_this_loop().wait(job_id)


async def release_request_thread() -> None:
    """Give back the thread and the database connection that Django keeps for the whole of an ASGI request.

    asgiref runs the synchronous parts of one request on one thread of its own, which lives until the request ends. The
    parts that come after the wait get a new one.
    """
    context = SyncToAsync.thread_sensitive_context.get(None)
    if context is None:
        return
    await sync_to_async(connections.close_all)()
    executor = SyncToAsync.context_to_thread_executor.pop(context, None)
    if executor is not None:
        executor.shutdown(wait=False)


class Hub:
    """The waiters of one event loop, and the one task that wakes them."""

    _of_loop: dict[asyncio.AbstractEventLoop, Hub] = {}

    def __init__(self) -> None:
        self._waiters: dict[uuid.UUID, set[asyncio.Future[None]]] = {}
        self._tasks: list[asyncio.Task[None]] = []

    @classmethod
    def of_this_loop(cls) -> Hub:
        return cls._of_loop.setdefault(asyncio.get_running_loop(), cls())

    async def wait(self, job_id: uuid.UUID) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.setdefault(job_id, set()).add(future)
        self._start()
        try:
            # The job may have ended before this process began to listen.
            self._end(await ended_among([job_id]))
            await future
        finally:
            waiters = self._waiters.get(job_id, set())
            waiters.discard(future)
            if not waiters:
                self._waiters.pop(job_id, None)

    def _start(self) -> None:
        if not any(not task.done() for task in self._tasks):
            self._tasks = [asyncio.create_task(self._listen()), asyncio.create_task(self._poll())]

    def _end(self, job_ids: list[uuid.UUID]) -> None:
        for job_id in job_ids:
            for future in self._waiters.get(job_id, ()):
                if not future.done():
                    future.set_result(None)

    async def _listen(self) -> None:
        while True:
            try:
                client = redis.asyncio.Redis.from_url(settings.REDIS_URL, socket_connect_timeout=2)
                async with client, client.pubsub() as channel:
                    await channel.subscribe(CHANNEL)
                    async for message in channel.listen():
                        if message["type"] == "message":
                            with contextlib.suppress(ValueError):  # the broker's content is only a hint
                                self._end([uuid.UUID(message["data"].decode())])
            except (redis.RedisError, OSError) as error:
                logger.warning("Ends of jobs are polled only, the broker does not answer: %s", error)
                await asyncio.sleep(POLL_SECONDS)

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(POLL_SECONDS)
            if self._waiters:
                try:
                    self._end(await ended_among(list(self._waiters)))
                except Exception:
                    logger.exception("Waiting jobs could not be looked up; trying again")


async def ended_among(job_ids: list[uuid.UUID]) -> list[uuid.UUID]:
    """Which of the jobs have ended: one query on a borrowed thread, whose connection is closed again."""
    return await sync_to_async(_ended_among, thread_sensitive=False)(job_ids)


def _ended_among(job_ids: list[uuid.UUID]) -> list[uuid.UUID]:
    try:
        return list(RenderJob.objects.filter(pk__in=job_ids, state__in=JOB_TERMINAL).values_list("pk", flat=True))
    finally:
        connections.close_all()
