"""The door's HTTP side without middleware: no sessions, no cookies, no redirects, and a fifth of the time per call.

Middleware, signals and a thread per request each cost more than putting a frame does; thousands of clients do that at once.
"""

from __future__ import annotations

import asyncio
from typing import Any

from django.conf import settings
from django.core.exceptions import RequestAborted, RequestDataTooBig
from django.core.handlers.asgi import ASGIHandler, get_script_prefix
from django.core.handlers.exception import convert_exception_to_response
from django.http import HttpRequest
from django.urls import set_script_prefix

from renderjobs.compat.eas import threads
from renderjobs.compat.eas.errors import answer_of

PREFIX = "/api/predict/"


class BareHandler(ASGIHandler):
    """Django's handler with the views alone."""

    def load_middleware(self, is_async: bool = False) -> None:
        self._view_middleware: list = []
        self._template_response_middleware: list = []
        self._exception_middleware: list = []
        self._middleware_chain = convert_exception_to_response(self._get_response_async)

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        threads.kept.set(True)
        try:
            body = await self.read_body(receive)
        except RequestAborted:
            return
        except RequestDataTooBig as error:
            await self.send_response(answer_of(error), send)
            return
        set_script_prefix(get_script_prefix(scope))
        with body:
            request, refusal = self.create_request(scope, body)
            if request is None:
                await self.send_response(refusal, send)
            elif request.method == "GET":
                await self._unless_gone(request, receive, send)
            else:
                await self._answer(request, send)

    async def read_body(self, receive: Any) -> Any:
        """As Django does it, but only what is accepted: what nobody will read needs no room on the disk.

        Raises:
            RequestDataTooBig: More came.
        """
        size = 0

        async def counted() -> Any:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > settings.DATA_UPLOAD_MAX_MEMORY_SIZE:
                raise RequestDataTooBig
            return message

        return await super().read_body(counted)

    async def _answer(self, request: HttpRequest, send: Any) -> None:
        await self.send_response(await self.get_response_async(request), send)

    async def _unless_gone(self, request: HttpRequest, receive: Any, send: Any) -> None:
        """A reader who hangs up while it waits must not take a frame with it."""
        answer = asyncio.create_task(self._answer(request, send))
        gone = asyncio.create_task(receive())
        await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
        gone.cancel()
        if not answer.done():
            answer.cancel()
        await asyncio.gather(answer, gone, return_exceptions=True)
