"""Watching a queue: one binary message per frame goes down, only pings come up. A plain ASGI application.

A consumer is judged by what arrives from it, never by its answers to our pings: the published client answers those only while it
waits for a frame. ``protocol.HeardProtocol`` says when something arrived; under another server only the TCP connection tells.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

from django.conf import settings
from django.http.request import validate_host

from common.errors import PlatformError
from renderjobs.compat.eas import queues, threads
from renderjobs.compat.eas.access import service_called
from renderjobs.compat.eas.errors import EasError
from renderjobs.compat.eas.threads import in_database
from renderjobs.compat.eas.watching import SEND_SECONDS, frames_of, seat_kept
from renderjobs.compat.eas.wire import HEARD, Query, addressed

logger = logging.getLogger(__name__)
PATH = re.compile(r"/api/predict/(?P<service>[^/]+)(?P<rest>/.*)?")
CLOSE_NORMALLY, CLOSE_GOING_AWAY, CLOSE_TRY_AGAIN = 1000, 1001, 1013
Send = Callable[[dict[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[dict[str, Any]]]


async def application(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """One watcher from its handshake to its end. A refused handshake is an ordinary HTTP answer."""
    threads.kept.set(True)
    await receive()  # websocket.connect
    try:
        watch = await in_database(_admitted, scope)
    except (EasError, PlatformError) as error:
        await _refuse(send, scope, error)
        return
    seat = await in_database(queues.consumer_join, watch=watch)
    try:
        await send({"type": "websocket.accept"})
        await _serve(seat, scope, receive, send)
    finally:
        # Also when the server stops in the middle: others of the group need not wait for the silence.
        await asyncio.shield(in_database(queues.consumer_leave, seat=seat))


# --- the handshake ----------------------------------------------------------------------------------------------------


class Headers(Mapping[str, str]):
    """Of an ASGI scope, by their names in any case."""

    def __init__(self, scope: Mapping[str, Any]):
        self._values = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}

    def __getitem__(self, name: str) -> str:
        return self._values[name.lower()]

    def __iter__(self) -> Any:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


def _admitted(scope: Mapping[str, Any], *, gated: bool = True) -> queues.Watch:
    """Raises: EasError: The caller or what is asked for cannot be accepted."""
    headers, found = Headers(scope), PATH.fullmatch(scope["path"])
    if found is None:
        raise EasError(404, "There is nothing to watch here.")
    if not validate_host(_host(headers.get("Host", "")), settings.ALLOWED_HOSTS):
        raise EasError(400, "The host name is not one of this server.")
    origin = headers.get("Origin", "")
    # Tokens, not cookies, authenticate this door; a page of somebody else's is refused all the same.
    if origin and not validate_host(_host(origin.partition("://")[2]), settings.ALLOWED_HOSTS):
        raise EasError(403, "The origin is not one of this server.")
    address = (scope.get("client") or ("",))[0]
    service, _ = service_called(found["service"], headers.get("Authorization", ""), address=address, gated=gated)
    kind, _ = addressed(found["rest"] or "")
    query = Query.of(scope["query_string"].decode("latin-1"))
    if not query.flag("_watch_"):
        raise EasError(400, "A WebSocket here watches a queue; _watch_=true is missing.")
    queue = queues.queue_of(service, kind)
    return queues.watch_asked(queue, query, headers, uid=headers.get("Sec-WebSocket-Key", ""))


def _host(name: str) -> str:
    """Without its port."""
    return re.sub(r":\d+$", "", name.partition("/")[0]).lower()


async def _refuse(send: Send, scope: Mapping[str, Any], error: EasError | PlatformError) -> None:
    if "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": CLOSE_NORMALLY})
        return
    head = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"%d" % len(error.message.encode()))]
    if isinstance(error, PlatformError):
        head += [(name.lower().encode(), value.encode()) for name, value in error.headers().items()]
    await send({"type": "websocket.http.response.start", "status": error.status, "headers": head})
    await send({"type": "websocket.http.response.body", "body": error.message.encode()})


# --- the frames -------------------------------------------------------------------------------------------------------


async def _serve(seat: queues.Seat, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
    """Until the client leaves, falls silent, may watch no longer, or another connection takes its seat."""
    tasks = {
        asyncio.create_task(_until_left(receive)),
        asyncio.create_task(_feed(seat, send)),
        asyncio.create_task(
            seat_kept(seat, admit=partial(_admitted, scope, gated=False), is_silent=_silence_of(scope))
        ),
    }
    done, running = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    code = CLOSE_NORMALLY
    for task in done:
        if (error := task.exception()) and not isinstance(error, (queues.SeatTaken, TimeoutError)):
            logger.error("A watcher of queue %s was dropped", seat.watch.queue_id, exc_info=error)
            code = CLOSE_TRY_AGAIN
    with contextlib.suppress(Exception):  # the connection may be gone already
        await send({"type": "websocket.close", "code": code})


async def _until_left(receive: Receive) -> None:
    """What a client says beside pings is passed over."""
    while (await receive())["type"] != "websocket.disconnect":
        pass


async def _feed(seat: queues.Seat, send: Send) -> None:
    async for frame in frames_of(seat):
        await asyncio.wait_for(send({"type": "websocket.send", "bytes": frame.to_protobuf()}), SEND_SECONDS)


def _silence_of(scope: Mapping[str, Any]) -> Callable[[], bool]:
    """Whether nothing was heard of the client for long, where the server can tell."""
    seconds = scope.get("extensions", {}).get(HEARD)
    return lambda: seconds is not None and seconds() > queues.SILENT_SECONDS
