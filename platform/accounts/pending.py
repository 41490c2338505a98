"""A sign-in between the right password and the second factor, kept in the session. Until it is complete nobody is signed in."""

from __future__ import annotations

import time

from django.conf import settings
from django.http import HttpRequest

from accounts.models import User

KEY = "pending_sign_in"


def pending_begin(request: HttpRequest, user: User, *, next_page: str) -> None:
    request.session.cycle_key()
    values = {"user": user.pk, "hash": user.get_session_auth_hash(), "at": time.time(), "next": next_page}
    request.session[KEY] = {**values, "backend": user.backend}


def pending_user(request: HttpRequest) -> User | None:
    """Who gave the right password here, a while ago at most, and whose password and rights are still the same."""
    kept = request.session.get(KEY)
    if not kept or not 0 <= time.time() - kept["at"] <= settings.SECOND_FACTOR_SECONDS:
        return None
    user = User.objects.filter(pk=kept["user"], is_active=True, is_staff=True).first()
    if user is None or user.get_session_auth_hash() != kept["hash"]:
        return None
    user.backend = kept["backend"]
    return user


def pending_end(request: HttpRequest) -> str:
    """The page that was asked for at the beginning."""
    return str((request.session.pop(KEY, None) or {}).get("next", ""))
