"""What every call of this door begins with: who is calling, in one of the forms that this installation takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from asgiref.sync import sync_to_async
from django.conf import settings
from django.http import HttpRequest, HttpResponse, JsonResponse

from accounts.authentication import Caller, Credential, address_of, caller_with, credential_of
from accounts.models import Scope
from renderjobs.compat.sdapi.errors import HandlerError, speaks_sdapi
from renderjobs.compat.sdapi.inside import InsideRequest
from renderjobs.selectors import service_of

BASIC, BASIC_USER = "basic", "basic-user"


def authenticated(request: HttpRequest) -> Caller:
    """Raises: HandlerError: No usable token (401), or one without the scope (403)."""
    if isinstance(request, InsideRequest):
        request.caller.require(Scope.SDAPI)
        return request.caller
    credential = credential_of(request.headers.get("Authorization", ""))
    if credential is None or not _is_accepted(credential):
        raise HandlerError(401, "Not authenticated")
    caller = caller_with(credential.token, address=address_of(request))
    if caller is None or not _is_own_name(credential, caller):
        raise HandlerError(401, "Incorrect username or password")
    caller.require(Scope.SDAPI)
    if (service := service_of(caller)) and not service.enabled:
        raise HandlerError(404, f"Service {service.name} is stopped.")
    request.caller = caller  # type: ignore[attr-defined]
    return caller


def _is_accepted(credential: Credential) -> bool:
    forms = settings.SDAPI_AUTHENTICATION
    return credential.scheme in forms or (credential.scheme == BASIC and BASIC_USER in forms)


def _is_own_name(credential: Credential, caller: Caller) -> bool:
    """Whether the user name of a pair may stand there; a token is enough where ``basic`` is taken."""
    needs_name = credential.scheme == BASIC and BASIC not in settings.SDAPI_AUTHENTICATION
    return not needs_name or credential.user == caller.user.username


def listing(read: Callable[[Caller], Any]) -> Any:
    """A GET that shows what ``read`` finds for the caller."""

    @speaks_sdapi("GET")
    async def view(request: HttpRequest) -> HttpResponse:
        found = await sync_to_async(lambda: read(authenticated(request)))()
        return JsonResponse(found, safe=False)

    return view
