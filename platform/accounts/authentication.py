"""Who is calling: an API token as ``Bearer``, bare, or as the password of HTTP Basic (what A1111 clients can send)."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

from django.contrib.admin import site
from django.db.models import Exists, OuterRef, Q, Subquery
from django.db.models.functions import Now
from django.http import HttpRequest
from django.utils import timezone
from rest_framework.authentication import BaseAuthentication, SessionAuthentication
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.request import Request

from accounts.models import READING_ROLES, ApiToken, Membership, Role, Scope, Team, User
from accounts.services import token_digest
from common.errors import ForbiddenError

LAST_USE_RESOLUTION = timedelta(minutes=1)
"""``last_used_at`` is written at most this often, so that polling does not write."""


JOB_WRITES = (Scope.JOBS_WRITE, Scope.JOBS_CANCEL)


class Service(Protocol):
    """What a call may come through: an address of its own, a token that was made for it."""

    def part_of(self, kind: str) -> str:
        """Which part of the models of a kind its calls see; ``assets`` knows the parts."""


_relations: list[str] = []


def service_relation_register(relation: str) -> None:
    """Say under which attribute of a token its service is found: one to one, in an app that may import this one."""
    if relation not in _relations:
        _relations.append(relation)


_gates: dict[str, tuple[Callable[[], Exists], Callable[[Caller], None]]] = {}


def token_gate_register(name: str, stands_before: Callable[[], Exists], let_in: Callable[[Caller], None]) -> None:
    """Have callers looked at before they are let in, whatever door they come to.

    Args:
        name: A column of the token's query.
        stands_before: Whether this gate stands before the token; a part of that query.
        let_in: Called for such a token; raises a PlatformError to refuse.
    """
    _gates[name] = (stands_before, let_in)


@dataclass(frozen=True, slots=True)
class Caller:
    """For whom a request acts. ``token`` is None when a person acts in the admin or a schedule fires."""

    user: User
    team: Team
    token: ApiToken | None = None
    role: str | None = None
    """Of the token's user in the team, at the time of the call."""
    through: Service | None = None
    """The service whose address was called."""

    @property
    def services(self) -> tuple[Service, ...]:
        """What the call comes through: the service of the address, then the token's own."""
        own = [getattr(self.token, relation, None) for relation in _relations] if self.token else []
        return tuple(dict.fromkeys(service for service in (self.through, *own) if service is not None))

    def require(self, scope: str) -> None:
        """Raises: ForbiddenError: The token lacks the scope, or its user's role does not allow it, whatever the token was given."""
        if self.token is not None and not self.token.has_scope(scope):
            raise ForbiddenError(f"The token lacks the scope {str(scope)!r}.")
        if scope in JOB_WRITES and self.role in READING_ROLES:
            raise ForbiddenError(f"Jobs are changed by leads and members, not in the role {self.role}.")
        if scope == Scope.JOBS_READ and self.role == Role.FINANCE:
            raise ForbiddenError(f"Jobs are read by leads, members and viewers, not in the role {self.role}.")


@dataclass(frozen=True, slots=True)
class Credential:
    """What an Authorization header holds."""

    scheme: str
    """``bearer``, ``token`` (nothing but the token) or ``basic``."""
    token: str
    user: str = ""
    """The user name of a pair."""


def credential_of(header: str) -> Credential | None:
    """None when there is none to speak of. Of a pair without a password the user name is the token."""
    scheme, _, rest = header.strip().partition(" ")
    rest = rest.strip()
    if not rest:
        return Credential("token", scheme) if scheme else None
    if scheme.lower() == "bearer":
        return Credential("bearer", rest)
    if scheme.lower() == "basic":
        try:
            user, _, password = base64.b64decode(rest, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return None
        return Credential("basic", password or user, user) if password or user else None
    return None


def caller_of(header: str, *, address: str = "", gated: bool = True) -> Caller | None:
    """The caller behind an Authorization header; None when no usable token is in it. As ``caller_by``."""
    credential = credential_of(header)
    return caller_with(credential.token, address=address, gated=gated) if credential else None


def address_of(request: HttpRequest) -> str:
    """Where the call comes from; behind a proxy that the web server trusts, what that says."""
    return str(request.META.get("REMOTE_ADDR") or "")


def caller_with(text: str, *, address: str = "", gated: bool = True) -> Caller | None:
    """The caller whom a token stands for; None when it is unknown, expired, revoked, or not for this address.

    Raises:
        PlatformError: It is known, and refused for now.
    """
    return caller_by(address=address, gated=gated, digest=token_digest(text))


def caller_by(*, address: str, gated: bool = True, **of_token: Any) -> Caller | None:
    """As ``caller_with``, by any columns of the token, for a door that has checked by itself who calls.

    Args:
        gated: Not where one who was let in is only looked at again.
    """
    role = Membership.objects.filter(team=OuterRef("team"), user=OuterRef("user")).values("role")[:1]
    usable = ApiToken.objects.usable().select_related("user", "team", *_relations).annotate(role=Subquery(role))
    known = usable.annotate(**{name: stands_before() for name, (stands_before, _) in _gates.items()})
    token: Any = known.filter(**of_token).first()
    if token is None or not token.is_usable_from(address):
        return None
    if token.last_used_at is None or timezone.now() - token.last_used_at > LAST_USE_RESOLUTION:
        stale = Q(last_used_at__isnull=True) | Q(last_used_at__lt=Now() - LAST_USE_RESOLUTION)
        ApiToken.objects.filter(stale, pk=token.pk).update(last_used_at=Now())
    caller = Caller(user=token.user, team=token.team, token=token, role=token.role)
    for name, (_, let_in) in _gates.items():
        if gated and getattr(token, name):
            let_in(caller)
    return caller


class ApiTokenAuthentication(BaseAuthentication):
    """DRF: ``request.user`` is the user, ``request.auth`` the :class:`Caller`."""

    def authenticate(self, request: Request) -> tuple[User, Caller] | None:
        header = request.headers.get("Authorization", "")
        if not header.strip():
            return None
        caller = caller_of(header, address=address_of(request))
        if caller is None:
            raise AuthenticationFailed("The token is unknown, expired, revoked, or not for this address.")
        return caller.user, caller

    def authenticate_header(self, request: Request) -> str:
        return "Bearer"


class AdminSessionAuthentication(SessionAuthentication):
    """Somebody whom the admin lets in, with Django's CSRF check: for what scripts of its pages send."""

    def authenticate(self, request: Request) -> tuple[Any, None] | None:
        return super().authenticate(request) if site.has_permission(request._request) else None
