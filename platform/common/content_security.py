"""The Content-Security-Policy of every answer that brings none of its own: what a page of ours may load, and from where.

Async-capable, like every middleware here (``config/settings/base.py`` says why). Why the admin's allows what it allows:
``docs/decisions/content-security-policy.md``.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import iscoroutinefunction
from typing import Any

from django.conf import settings
from django.http import HttpRequest, HttpResponseBase
from django.utils.decorators import sync_and_async_middleware

HEADER = "Content-Security-Policy"


@sync_and_async_middleware
def content_security_middleware(get_response: Callable[[HttpRequest], Any]) -> Callable[[HttpRequest], Any]:
    if iscoroutinefunction(get_response):

        async def answer(request: HttpRequest) -> Any:
            return _with_policy(request, await get_response(request))

    else:

        def answer(request: HttpRequest) -> Any:
            return _with_policy(request, get_response(request))

    return answer


def _with_policy(request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
    is_admin = request.path_info.startswith(f"/{settings.ADMIN_PATH}")
    response.headers.setdefault(HEADER, settings.ADMIN_POLICY if is_admin else settings.PAGE_POLICY)
    return response
