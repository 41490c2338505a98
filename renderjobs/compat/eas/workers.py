"""The process that runs queued requests: one event loop, a request is a task of it that waits for its job without a thread.

As many of these processes may run as one likes. What decides who does what lives in ``requests``; nothing is lost with a process.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

from asgiref.sync import ThreadSensitiveContext, sync_to_async
from django.db import DatabaseError, connections
from django.http.response import HttpResponseBase, StreamingHttpResponse

from renderjobs.compat.eas import requests, threads
from renderjobs.compat.eas.queues import committed_remove, consumers_forget
from renderjobs.compat.eas.threads import in_database
from renderjobs.compat.eas.wakeups import QueueHub
from renderjobs.compat.sdapi.urls import call_of

logger = logging.getLogger(__name__)
KEEP_SECONDS = requests.TAKEN_SECONDS / 3
POLL_SECONDS = 2.0
TIDY_SECONDS = 5.0


class RequestWorkers:
    def __init__(self) -> None:
        self.in_hand: dict[asyncio.Task[None], requests.Taken] = {}

    async def run(self, stop: asyncio.Event) -> None:
        """Until ``stop``; what is in hand then is given back at once."""
        threads.kept.set(True)
        hub, stopped = QueueHub.of_this_loop(), asyncio.create_task(stop.wait())
        tidying = asyncio.create_task(self._tidy())
        try:
            while not stop.is_set():
                seen = hub.changes_of()
                for taken in await self._taken():
                    task = asyncio.create_task(self._do(taken))
                    self.in_hand[task] = taken
                    task.add_done_callback(lambda done: self.in_hand.pop(done, None))
                change = asyncio.create_task(hub.wait(since=seen, seconds=POLL_SECONDS))
                await asyncio.wait({change, stopped}, return_when=asyncio.FIRST_COMPLETED)
                change.cancel()
        finally:
            tidying.cancel()
            stopped.cancel()
            await self._give_back()

    async def _taken(self) -> list[requests.Taken]:
        try:
            return await in_database(requests.requests_take)
        except DatabaseError as error:
            logger.warning("No queued request could be taken; trying again: %s", error)
            return []

    async def _do(self, taken: requests.Taken) -> None:
        """One request from hand to sink. Whatever goes wrong here, its time runs out and it is taken again."""
        call = asyncio.create_task(_on_a_thread_of_its_own(taken))
        try:
            while not (await asyncio.wait({call}, timeout=KEEP_SECONDS))[0]:
                if not await self._kept(taken):
                    await in_database(requests.request_abandon, taken)
                    return
            answer = call.result()
            if answer.status >= requests.TRANSIENT and await in_database(requests.request_again, taken):
                return
            await in_database(requests.request_answer, taken=taken, answer=answer)
        except Exception:
            logger.exception("Queued request %s of service %s was not answered", taken.index, taken.service.name)
        finally:
            call.cancel()

    async def _kept(self, taken: requests.Taken) -> bool:
        try:
            return await in_database(requests.request_keep, taken)
        except DatabaseError as error:
            logger.warning("A queued request could not be kept in hand; trying again: %s", error)
            return True

    async def _give_back(self) -> None:
        in_hand = dict(self.in_hand)
        for task in in_hand:
            task.cancel()
        await asyncio.gather(*in_hand, return_exceptions=True)
        if in_hand:
            await in_database(requests.requests_release, list(in_hand.values()))

    async def _tidy(self) -> None:
        while True:
            with contextlib.suppress(DatabaseError):  # the next round will do
                await in_database(committed_remove)
                await in_database(consumers_forget)
            await asyncio.sleep(TIDY_SECONDS)


async def _on_a_thread_of_its_own(taken: requests.Taken) -> requests.Answer:
    """As Django's ASGI handler does it: the synchronous parts of one call share a thread, those of two calls do not."""
    async with ThreadSensitiveContext():
        try:
            return await answer_to(taken)
        finally:
            await sync_to_async(connections.close_all)()


# --- the call ---------------------------------------------------------------------------------------------------------


async def answer_to(taken: requests.Taken) -> requests.Answer:
    """What the web API says to the request."""
    if taken.caller is None:
        return requests.refusal(taken, 401, "The token that the request was put with has ended.")
    if taken.tries > requests.MAX_TRIES:
        return requests.refusal(taken, 500, f"The request was lost {requests.MAX_TRIES} times with its worker.")
    request = taken.as_request(taken.caller)
    view = call_of(request.path)
    if view is None:
        return requests.refusal(taken, 404, f"There is no call {request.path[:80]!r}.")
    response: HttpResponseBase = await view(request)
    size = int(response.headers.get("Content-Length") or 0)
    if size > taken.service.max_payload_bytes:
        return requests.too_large(taken, size)
    body = b"".join([part async for part in _parts(response)])
    return requests.answer_made(taken, response.status_code, body)


async def _parts(response: HttpResponseBase) -> AsyncIterator[bytes]:
    if isinstance(response, StreamingHttpResponse):
        async for part in response:
            yield part
    else:
        yield response.content  # type: ignore[attr-defined]
