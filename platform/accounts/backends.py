"""The one way to sign in: name and password, unless too many were wrong (``accounts/throttling.py``)."""

from __future__ import annotations

from axes.backends import AxesBackend
from django.contrib.auth.backends import ModelBackend
from django.http import HttpRequest

from accounts.models import User


class PasswordBackend(AxesBackend):
    """One backend instead of axes' two, so that every session names the one it came by."""

    def authenticate(
        self, request: HttpRequest, username: str | None = None, password: str | None = None, **more: object
    ) -> User | None:
        """Raises: PermissionDenied: Locked out; Django asks no other backend then."""
        super().authenticate(request, username=username, password=password, **more)
        return ModelBackend.authenticate(self, request, username=username, password=password)
