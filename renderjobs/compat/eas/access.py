"""Who may use a service: its own token, or any token of its team with the scope ``sdapi``; bare, or as a signature.

The service's token is derived from a random nonce and SECRET_KEY, so that a signature made with it can be checked although only
its hash is stored.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, replace

from django.conf import settings

from accounts.authentication import Caller, caller_by, caller_of
from accounts.models import Scope
from accounts.services import TOKEN_PREFIX
from renderjobs.compat.eas.errors import EasError
from renderjobs.models import EasService

SIGNATURE = "EAS "


@dataclass(frozen=True, slots=True)
class Signed:
    """What a ``PredictClient`` signs."""

    path: str
    """Without the query."""
    headers: Mapping[str, str]
    body: bytes

    def text(self) -> bytes:
        digest = hashlib.md5(self.body, usedforsecurity=False).hexdigest()
        lines = ("POST", digest, self.headers.get("Content-Type", ""), self.headers.get("Date", ""), self.path)
        return "\n".join(lines).strip().encode()


def token_text(nonce: str) -> str:
    """The text of the token that belongs to the nonce: 256 bits, which nobody can make without SECRET_KEY."""
    made = hmac.new(settings.SECRET_KEY.encode(), b"eas-token:" + nonce.encode(), hashlib.sha256).digest()
    return TOKEN_PREFIX + base64.urlsafe_b64encode(made).decode().rstrip("=")


def service_called(
    name: str, header: str, signed: Signed | None = None, *, address: str = "", gated: bool = True
) -> tuple[EasService, Caller]:
    """The service and who calls.

    Args:
        gated: Not where one who was let in is only looked at again: that is no request of its own.
    Raises:
        EasError: No usable token (401), no such service or another team's (404), or the token lacks the scope (403).
    """
    services = EasService.objects.select_related("team", "user", "pool").defer("document")
    service = services.named(name).filter(enabled=True).first()
    if header.startswith(SIGNATURE):
        caller = _signer(service, header.removeprefix(SIGNATURE), signed, address) if service and signed else None
    else:
        caller = caller_of(header, address=address, gated=gated) if header.strip() else None
    if caller is None:
        raise EasError(401, "Unauthorized: the token is missing, unknown, expired or revoked.")
    if service is None or service.team_id != caller.team.pk:
        raise EasError(404, f"There is no service {name!r}.")
    if caller.token is not None and not caller.token.has_scope(Scope.SDAPI):
        raise EasError(403, f"The token lacks the scope {Scope.SDAPI.value!r}.")
    return service, replace(caller, through=service)


def _signer(service: EasService, signature: str, signed: Signed, address: str) -> Caller | None:
    secret = token_text(service.token_nonce).encode()
    expected = base64.b64encode(hmac.new(secret, signed.text(), hashlib.sha1).digest())
    if not hmac.compare_digest(expected, signature.strip().encode("utf-8", "replace")):
        return None
    return caller_by(address=address, pk=service.token_id)
