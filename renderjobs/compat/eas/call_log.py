"""A line of the log for each call through a service that asks for it. Never a token, a query, a prompt or a picture."""

from __future__ import annotations

import logging
import time

from django.http import HttpRequest

from accounts.authentication import Caller
from renderjobs.models import EasService
from renderjobs.selectors import service_of

logger = logging.getLogger(__name__)


def call_logged(service: EasService, *, method: str, path: str, status: int, seconds: float) -> None:
    """``--api-log`` asks for the line, ``--time-log`` for its seconds too."""
    if service.time_log:
        logger.info("%s: %s %s answered %s in %.3f s", service.name, method, _plain(path), status, seconds)
    elif service.api_log:
        logger.info("%s: %s %s answered %s", service.name, method, _plain(path), status)


def request_logged(request: HttpRequest, *, status: int, began: float) -> None:
    """Of a call whose caller is known by now; ``began`` on the clock of ``time.monotonic``."""
    caller: Caller | None = getattr(request, "caller", None)
    if caller and (service := service_of(caller)):
        seconds = time.monotonic() - began
        call_logged(service, method=str(request.method), path=request.path, status=status, seconds=seconds)


def _plain(path: str) -> str:
    """A path is the caller's text: it ends no line of the log and begins none."""
    return "".join(letter if letter.isprintable() else "?" for letter in path[:200])
