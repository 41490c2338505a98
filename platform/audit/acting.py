"""The request that acts: known from the middleware to wherever a row is written. Async-capable, so that no call holds a thread."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from inspect import iscoroutinefunction
from typing import Any

from django.http import HttpRequest
from django.utils.decorators import sync_and_async_middleware

acting: ContextVar[HttpRequest | None] = ContextVar("acting", default=None)


@sync_and_async_middleware
def acting_middleware(get_response: Callable[[HttpRequest], Any]) -> Callable[[HttpRequest], Any]:
    if iscoroutinefunction(get_response):

        async def answer(request: HttpRequest) -> Any:
            token = acting.set(request)
            try:
                return await get_response(request)
            finally:
                acting.reset(token)

    else:

        def answer(request: HttpRequest) -> Any:
            token = acting.set(request)
            try:
                return get_response(request)
            finally:
                acting.reset(token)

    return answer
