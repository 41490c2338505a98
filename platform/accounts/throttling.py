"""How many wrong passwords are looked at: by django-axes, counted in the database, the same for names that nobody has.

Three counts, each with its own limit, so that guessing at one account from many places, or at many accounts from one, ends as well,
while a colleague's typing errors lock nobody else out.
"""

from __future__ import annotations

from typing import Any

from axes.handlers.database import AxesDatabaseHandler
from axes.models import AccessAttempt
from axes.signals import user_locked_out
from django.conf import settings
from django.db.models import Sum
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render

from accounts.models import User
from accounts.signals import account_event

LIMITS = (5, 25, 50)
"""Of one name from one address, of one name, of one address: in the order of ``AXES_LOCKOUT_PARAMETERS``."""


class LoginThrottle(AxesDatabaseHandler):
    def get_failures(self, request: HttpRequest, credentials: dict[str, Any] | None = None) -> int:
        """In hundredths of a limit, of the count that is nearest to its own; ``AXES_FAILURE_LIMIT`` is 100."""
        counts = (
            rows.aggregate(n=Sum("failures_since_start"))["n"] or 0
            for rows in self.get_user_attempts(request, credentials)
        )
        return max(100 * count // limit for count, limit in zip(counts, LIMITS, strict=True))

    def reset_user_attempts(self, request: HttpRequest, credentials: dict[str, Any] | None = None) -> int:
        """Whoever signs in clears the own name at this address, not what others did from there."""
        own, _, _ = self.filter_user_attempts(request, credentials)
        return int(own.delete()[0])


def locked_out(request: HttpRequest, response: HttpResponse | None, credentials: Any) -> HttpResponse:
    """In place of the login page. Says nothing of whether the account exists."""
    from django.contrib.admin import site

    minutes = int(settings.AXES_COOLOFF_TIME.total_seconds() // 60)
    context = {**site.each_context(request), "title": "Log in", "minutes": minutes}
    answer = render(request, "accounts/locked_out.html", context, status=429)
    answer["Retry-After"] = str(int(settings.AXES_COOLOFF_TIME.total_seconds()))
    return answer


def sign_in_unlock(*, user: User) -> None:
    AccessAttempt.objects.filter(username=user.get_username()).delete()
    account_event.send(sender=User, user=user, did="sign-in was unlocked")


def connect() -> None:
    user_locked_out.connect(_name_it, dispatch_uid="throttling locked out")


def was_looked_at(request: HttpRequest) -> bool:
    """Whether a failed sign-in failed by its password; during a lock axes counts nothing."""
    return not getattr(request, "axes_locked_out", False) or request.axes_failures_since_start is not None  # type: ignore[attr-defined]


def _name_it(sender: Any, request: HttpRequest, username: str | None = None, **_: Any) -> None:
    """Once per lock, not once per try during it."""
    if was_looked_at(request):
        for user in User.objects.filter(username=username or ""):
            account_event.send(sender=User, user=user, did="is locked out of sign-in")
