"""A service without queues: its address followed by the web API's path answers as that path does, within the service's limits.

Calls are counted per web process: the limits protect it, they are no quota.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from contextlib import AbstractAsyncContextManager, nullcontext

from asgiref.sync import ThreadSensitiveContext
from django.http import HttpRequest
from django.http.response import HttpResponseBase

from accounts.authentication import Caller
from renderjobs.choices import Lane
from renderjobs.compat.eas import threads
from renderjobs.compat.eas.call_log import call_logged
from renderjobs.compat.eas.errors import EasError
from renderjobs.compat.sdapi.inside import InsideRequest
from renderjobs.compat.sdapi.urls import call_of
from renderjobs.models import EasService
from renderjobs.models.jobs import Source
from renderjobs.waiting import release_request_thread

_running: dict[int, int] = {}
_began: dict[int, deque[float]] = {}


async def call_answer(request: HttpRequest, service: EasService, caller: Caller, path: str) -> HttpResponseBase:
    """Raises: EasError: No such call (404), too many (429, 450), or it takes too long (408); its job goes on then."""
    began = time.monotonic()
    try:
        return await _answer(request, service, caller, path)
    except EasError as error:  # what reaches the web API is logged there
        seconds = time.monotonic() - began
        call_logged(service, method=str(request.method), path=path, status=error.status, seconds=seconds)
        raise


async def _answer(request: HttpRequest, service: EasService, caller: Caller, path: str) -> HttpResponseBase:
    view = call_of(path)
    if view is None:
        raise EasError(404, f"There is no call {path[:80]!r}.")
    _admit(service)
    inside = InsideRequest(
        path=path,
        body=request.body,
        caller=caller,
        method=str(request.method),
        query=request.META.get("QUERY_STRING", ""),
        idempotency_key=request.headers.get("Idempotency-Key", ""),
        source=Source.SDAPI,
        lane=Lane.INTERACTIVE,
    )
    _running[service.pk] = _running.get(service.pk, 0) + 1
    try:
        async with _own_thread(), asyncio.timeout(service.keepalive_seconds):
            try:
                return await view(inside)
            finally:
                await release_request_thread()
    except TimeoutError as error:
        message = f"The call took longer than {service.keepalive_seconds} s; its job goes on."
        raise EasError(408, message) from error
    finally:
        _running[service.pk] -= 1


def _own_thread() -> AbstractAsyncContextManager[object]:
    """For the synchronous parts, where the server has not given the request one."""
    return ThreadSensitiveContext() if threads.kept.get() else nullcontext()


def _admit(service: EasService) -> None:
    """Raises: EasError: The service has as many calls as it takes."""
    if _running.get(service.pk, 0) >= service.max_queue_size:
        raise EasError(450, f"The service answers {service.max_queue_size} calls at the same time.")
    began, now = _began.setdefault(service.pk, deque()), time.monotonic()
    while began and began[0] <= now - 1:
        began.popleft()
    if service.rate_limit and len(began) >= service.rate_limit:
        raise EasError(429, f"The service takes {service.rate_limit} calls per second.")
    began.append(now)
