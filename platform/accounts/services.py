"""Writes about people: teams, members, tokens."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
from collections.abc import Sequence
from datetime import datetime

from django.conf import settings
from django.db import transaction
from django.db.models.functions import Now
from django.utils.text import slugify

from accounts.models import ApiToken, Membership, Role, Scope, Team, User
from common.errors import FieldError, InvalidRequestError

TOKEN_PREFIX = "rk_"


def token_digest(token: str) -> str:
    """The keyed hash under which a token is stored and looked up."""
    return hmac.new(settings.SECRET_KEY.encode(), b"api-token:" + token.encode(), hashlib.sha256).hexdigest()


@transaction.atomic
def token_issue(
    *,
    user: User,
    team: Team,
    name: str = "",
    scopes: Sequence[str] | None = None,
    expires_at: datetime | None = None,
    networks: Sequence[str] = (),
    text: str = "",
) -> tuple[ApiToken, str]:
    """Make a token and return it with its text, which can never be read again.

    Args:
        text: Of a caller that derives its tokens; as hard to guess as the random one made otherwise.
    Raises:
        InvalidRequestError: A scope is unknown, or a network is none.
    """
    unknown = [scope for scope in scopes or [] if scope not in Scope.values]
    if unknown:
        accepted = ", ".join(Scope.values)
        raise InvalidRequestError([FieldError("scopes", f"Scope {unknown[0]!r} is unknown; accepted are {accepted}.")])
    text = text or TOKEN_PREFIX + secrets.token_urlsafe(32)
    token = ApiToken.objects.create(
        user=user,
        team=team,
        name=name,
        digest=token_digest(text),
        prefix=text[:10],
        scopes=list(scopes) if scopes else list(Scope.values),
        networks=networks_read(networks),
        expires_at=expires_at,
    )
    return token, text


def networks_read(words: Sequence[str]) -> list[str]:
    """The networks in one spelling. Raises: InvalidRequestError: One of the words names none."""
    try:
        return [str(ipaddress.ip_network(word.strip())) for word in words if word.strip()]
    except ValueError as error:
        message = f"{error}; accepted are networks such as 10.1.0.0/16 or single addresses."
        raise InvalidRequestError([FieldError("networks", message)]) from error


def token_revoke(*, token: ApiToken) -> None:
    ApiToken.objects.filter(pk=token.pk, revoked_at__isnull=True).update(revoked_at=Now())


@transaction.atomic
def team_ensure(name: str) -> Team:
    """The team of this name; creates it when absent.

    Raises:
        InvalidRequestError: No team can have that name.
    """
    slug = slugify(name)
    if not 0 < len(slug) <= 64:  # two names without a Latin letter would otherwise be one and the same team
        message = f"Team {name!r} cannot be named so; accepted are up to 64 Latin letters, digits and hyphens."
        raise InvalidRequestError([FieldError("team", message, name)])
    return Team.objects.get_or_create(name=slug, defaults={"title": name})[0]


def member_ensure(
    *, team_name: str, user_name: str, role: str = Role.MEMBER, service_account: bool = False
) -> Membership:
    """The user's membership of the team; creates team, user and membership when absent.

    Raises:
        InvalidRequestError: No team or user can have that name.
    """
    if not 0 < len(user_name.strip()) <= 150:
        raise InvalidRequestError([FieldError("user", "A user's name has 1 to 150 characters.", user_name)])
    team = team_ensure(team_name)
    user, created = User.objects.get_or_create(username=user_name, defaults={"is_service_account": service_account})
    if created:
        user.set_unusable_password()
        user.save(update_fields=["password"])
    membership, _ = Membership.objects.get_or_create(team=team, user=user, defaults={"role": role})
    return membership
