"""The door's HTTP side without middleware: no sessions, no cookies, no redirects, and a fifth of the time per call.

Most middleware hops to a thread and back for each request; thousands of clients put small frames at the same moment.
"""

from __future__ import annotations

from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.exception import convert_exception_to_response

PREFIX = "/api/predict/"


class BareHandler(ASGIHandler):
    """Django's handler with the views alone."""

    def load_middleware(self, is_async: bool = False) -> None:
        self._view_middleware: list = []
        self._template_response_middleware: list = []
        self._exception_middleware: list = []
        self._middleware_chain = convert_exception_to_response(self._get_response_async)
