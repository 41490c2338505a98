"""What tests of signing in share: a person with a password, a browser, the app that shows codes."""

from __future__ import annotations

import re
import time

from django.test import Client
from django.urls import reverse
from django_otp.oath import TOTP
from django_otp.plugins.otp_totp.models import TOTPDevice

from accounts.models import User
from accounts.second_factor import new_key, second_factor_set

PASSWORD = "a long password"


def a_person(name: str = "root", **marks: bool) -> User:
    return User.objects.create_user(name, password=PASSWORD, **{"is_staff": True, "is_superuser": True, **marks})


def sign_in(browser: Client, name: str = "root", password: str = PASSWORD, **more: str):
    return browser.post(reverse("admin:login"), {"username": name, "password": password}, **more)


def is_in(browser: Client) -> bool:
    return browser.get(reverse("admin:index")).status_code == 200


def code_of(key: str, *, steps: int = 0) -> str:
    """What an app with this key shows, ``steps`` half minutes from now."""
    totp = TOTP(bytes.fromhex(key))
    totp.time = time.time() + 30 * steps
    return f"{totp.token():06}"


def wrong_code(key: str) -> str:
    """What an app with this key shows neither now nor within a few minutes."""
    shown = {code_of(key, steps=steps) for steps in range(-9, 10)}
    return next(code for code in map("{:06}".format, range(len(shown) + 1)) if code not in shown)


def with_second_factor(user: User) -> tuple[str, list[str]]:
    """The key in the person's app and the recovery codes. Codes of the moment before are unused still."""
    key = new_key()
    _, codes = second_factor_set(user=user, key=key, code=code_of(key))
    TOTPDevice.objects.update(last_t=-1)  # this half minute's code was used to set it up
    user.refresh_from_db()
    return key, codes


def key_shown(page: str) -> str:
    from base64 import b32decode

    return b32decode(re.search(r"<code[^>]*>([A-Z2-7]{32})</code>", page)[1]).hex()  # type: ignore[index]
