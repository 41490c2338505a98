"""The second factor: one authenticator app per person (TOTP by django-otp), and recovery codes for whoever loses it.

Codes are tried under a lock of the device's row, so that each counts once and wrong ones wait longer and longer. No views here.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from base64 import b32encode
from urllib.parse import quote, urlencode

from django.conf import settings
from django.db import transaction
from django_otp.oath import TOTP
from django_otp.plugins.otp_totp.models import TOTPDevice
from django_otp.util import random_hex

from accounts.models import RecoveryCode, User
from accounts.sessions import sessions_end
from accounts.signals import account_event
from common.errors import FieldError, InvalidRequestError

ISSUER = "Renderkiln"
RECOVERY_CODES = 10
RECOVERY_LETTERS = "abcdefghjkmnpqrstuvwxyz23456789"
"""Without what is mistaken for one another on paper."""
DIGITS = 6


def has_second_factor(user: User) -> bool:
    return TOTPDevice.objects.filter(user=user, confirmed=True).exists()


def new_key() -> str:
    """A secret for an authenticator app, hexadecimal, as django-otp keeps it."""
    return str(random_hex(20))


def key_text(key: str) -> str:
    """As it is typed into an app that has no camera."""
    return b32encode(bytes.fromhex(key)).decode()


def key_address(key: str, user: User) -> str:
    """What the QR code holds. Source: https://github.com/google/google-authenticator/wiki/Key-Uri-Format"""
    values = {"secret": key_text(key), "issuer": ISSUER, "algorithm": "SHA1", "digits": DIGITS, "period": 30}
    return f"otpauth://totp/{quote(f'{ISSUER}:{user.get_username()}')}?{urlencode(values)}"


@transaction.atomic
def second_factor_set(*, user: User, key: str, code: str) -> tuple[TOTPDevice, list[str]]:
    """Take the app with this key; all sessions of the user end. Returns the device and its recovery codes.

    Raises: InvalidRequestError: The code is not what an app with this key shows now, or there is a second factor already.
    """
    totp = TOTP(bytes.fromhex(key))
    totp.time = time.time()
    if not (_is_code(code) and totp.verify(int(code), tolerance=1)):
        raise InvalidRequestError([FieldError("code", "This is not the code that the app shows for this key.")])
    User.objects.select_for_update().get(pk=user.pk)  # of two at once one is first, and nobody else's app replaces it
    if has_second_factor(user):
        raise InvalidRequestError([FieldError("code", "This account has a second factor already.")])
    device = TOTPDevice.objects.create(user=user, name=ISSUER, key=key, drift=totp.drift, last_t=totp.t())
    sessions_end(user=user)
    account_event.send(sender=User, user=user, did="second factor was set up")
    return device, _new_codes(user)


@transaction.atomic
def second_factor_accept(*, user: User, code: str) -> TOTPDevice | None:
    """The device if the code is right now: of the app, or a recovery code, which is then used up.

    Raises: InvalidRequestError: Too many were wrong; says for how long none is looked at.
    """
    device = TOTPDevice.objects.select_for_update().filter(user=user, confirmed=True).first()
    if device is None:
        return None
    allowed, reason = device.verify_is_allowed()
    if not allowed:
        seconds = max(1, round((reason["locked_until"] - device.throttling_failure_timestamp).total_seconds()))
        message = f"Too many wrong codes. The next one is looked at {seconds} s after the last."
        raise InvalidRequestError([FieldError("code", message)])
    code = code.replace(" ", "").lower()
    if device.verify_token(code) if _is_code(code) else _use_up(device, code):
        return device
    account_event.send(sender=User, user=user, did="was refused at the second factor")
    return None


@transaction.atomic
def recovery_codes_renew(*, user: User) -> list[str]:
    account_event.send(sender=User, user=user, did="recovery codes were renewed")
    return _new_codes(user)


@transaction.atomic
def second_factor_remove(*, user: User) -> None:
    """App and recovery codes; all sessions of the user end. Nothing to remove: nothing happens."""
    User.objects.select_for_update().get(pk=user.pk)
    if TOTPDevice.objects.filter(user=user).delete()[0]:
        RecoveryCode.objects.filter(user=user).delete()
        sessions_end(user=user)
        account_event.send(sender=User, user=user, did="second factor was removed")


def _is_code(text: str) -> bool:
    return len(text) == DIGITS and text.isascii() and text.isdigit()


def _use_up(device: TOTPDevice, code: str) -> bool:
    if RecoveryCode.objects.filter(user=device.user_id, digest=_digest(device.user_id, code)).delete()[0]:
        device.throttle_reset()
        account_event.send(sender=User, user=device.user, did="a recovery code was used")
        return True
    device.throttle_increment()
    return False


def _new_codes(user: User) -> list[str]:
    codes = ["".join(secrets.choice(RECOVERY_LETTERS) for _ in range(10)) for _ in range(RECOVERY_CODES)]
    RecoveryCode.objects.filter(user=user).delete()
    RecoveryCode.objects.bulk_create(RecoveryCode(user=user, digest=_digest(user.pk, code)) for code in codes)
    return [f"{code[:5]}-{code[5:]}" for code in codes]


def _digest(user_id: int, code: str) -> str:
    text = f"recovery-code:{user_id}:{code.replace('-', '')}"
    return hmac.new(settings.SECRET_KEY.encode(), text.encode(), hashlib.sha256).hexdigest()
