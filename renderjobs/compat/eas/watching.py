"""What a watcher gets and when, whatever carries it: a WebSocket's messages, or the parts of one long answer of plain HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable

from django.db import OperationalError

from renderjobs.compat.eas import queues
from renderjobs.compat.eas.errors import EasError
from renderjobs.compat.eas.frames import Frame
from renderjobs.compat.eas.threads import in_database
from renderjobs.compat.eas.wakeups import QueueHub

logger = logging.getLogger(__name__)
HEARTBEAT_SECONDS = 4.0
TOGETHER_SECONDS = 0.02
SEND_SECONDS = 15.0
"""A consumer that takes longer over one message is stuck."""


async def frames_of(seat: queues.Seat, is_over: Callable[[], bool] = lambda: False) -> AsyncIterator[Frame]:
    """Each frame as soon as the seat's window has room for it; for ever, or until it ``is_over``.

    Raises:
        SeatTaken: Another connection of the consumer took over.
    """
    hub, watch, has_own = QueueHub.of_this_loop(), seat.watch, True
    turn = hub.turn_of((watch.queue_id, watch.group, seat.start_index, tuple(sorted(watch.tags.items()))))
    while not is_over():
        seen = hub.changes_of(watch.queue_id)
        async with turn.lock:
            # What an earlier connection had is this consumer's alone: until there is none of it, it looks for itself.
            is_known = not has_own and turn.is_in_vain(since=seen)
            frames = [] if is_known else await _taken(seat)
            if frames == [] and not is_known:
                turn.in_vain(since=seen)
                has_own = False
        for frame in frames or ():
            yield frame
        if not frames:
            await hub.wait(watch.queue_id, since=seen)
            if watch.window > 1 and not watch.auto_commit:
                # It has frames left; several commits are answered with several frames at once.
                await asyncio.sleep(TOGETHER_SECONDS)


async def _taken(seat: queues.Seat) -> list[Frame] | None:
    """A database that is away for a moment costs the watcher a moment, not its connection."""
    try:
        found: list[Frame] | None = await in_database(queues.frames_take, seat=seat)
    except OperationalError as error:
        logger.warning("Queue %s could not be read; trying again: %s", seat.watch.queue_id, error)
        return None
    return found


async def seat_kept(
    seat: queues.Seat, *, admit: Callable[[], object], is_silent: Callable[[], bool] = lambda: False
) -> None:
    """Say every few seconds that the consumer is there; return when it is not, or may not be there any more.

    Args:
        admit: As when it came; a token may end, and a service may be stopped, while somebody watches.
    """
    while True:
        await asyncio.sleep(HEARTBEAT_SECONDS)
        if is_silent():
            return
        with contextlib.suppress(OperationalError):
            if not await in_database(_is_kept, seat, admit):
                return


def _is_kept(seat: queues.Seat, admit: Callable[[], object]) -> bool:
    try:
        admit()
    except EasError:
        return False
    return queues.consumer_seen(seat=seat)


async def stream_of(watch: queues.Watch, admit: Callable[[], object]) -> AsyncIterator[bytes]:
    """Of plain HTTP: four bytes of length, the largest first, then the frame; again and again, until one of the two sides ends it.

    Nothing comes up from such a client, so only the end of its connection, or a frame it does not take, tells that it is gone.
    """
    seat = await in_database(queues.consumer_join, watch=watch)
    began: float | None = None
    keeping = asyncio.create_task(
        seat_kept(seat, admit=admit, is_silent=lambda: began is not None and time.monotonic() - began > SEND_SECONDS)
    )
    try:
        with contextlib.suppress(queues.SeatTaken):
            async for frame in frames_of(seat, keeping.done):
                message = frame.to_protobuf()
                began = time.monotonic()
                yield len(message).to_bytes(4, "big") + message
                began = None
                if keeping.done():
                    return
    finally:
        keeping.cancel()
        await asyncio.shield(in_database(queues.consumer_leave, seat=seat))
