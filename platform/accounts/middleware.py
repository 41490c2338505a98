"""Which hosts have the admin. Async-capable, like every middleware here (``config/settings/base.py`` says why)."""

from __future__ import annotations

from collections.abc import Callable
from inspect import iscoroutinefunction
from typing import Any

from django.conf import settings
from django.http import Http404, HttpRequest, HttpResponse
from django.http.request import split_domain_port, validate_host
from django.utils.decorators import sync_and_async_middleware

from common.problem import not_found


@sync_and_async_middleware
def admin_hosts_middleware(get_response: Callable[[HttpRequest], Any]) -> Callable[[HttpRequest], Any]:
    if iscoroutinefunction(get_response):

        async def answer(request: HttpRequest) -> Any:
            return _absent(request) or await get_response(request)

    else:

        def answer(request: HttpRequest) -> Any:
            return _absent(request) or get_response(request)

    return answer


def _absent(request: HttpRequest) -> HttpResponse | None:
    """What an unknown address is answered with, where the admin is asked for under a name that has none."""
    if not settings.ADMIN_HOSTS or not request.path_info.startswith(f"/{settings.ADMIN_PATH}"):
        return None
    name, _ = split_domain_port(request.get_host())
    return None if validate_host(name, settings.ADMIN_HOSTS) else not_found(request, Http404())
