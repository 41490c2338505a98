"""Typed readers of environment variables. A wrong value stops the start with a sentence that names the variable.

No other module reads ``os.environ`` for configuration.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import secrets
from pathlib import Path
from urllib.parse import SplitResult, parse_qs, urlsplit

from django.core.exceptions import ImproperlyConfigured

TRUE, FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


def text(name: str, default: str | None = None) -> str:
    value = os.environ.get(name, "") or default
    if value is None:
        raise ImproperlyConfigured(f"{name} is required and not set.")
    return value


def choice(name: str, accepted: tuple[str, ...], default: str) -> str:
    value = text(name, default)
    if value not in accepted:
        raise ImproperlyConfigured(f"{name} is {value!r}; accepted are {', '.join(accepted)}.")
    return value


def choices(name: str, accepted: tuple[str, ...], default: str) -> tuple[str, ...]:
    """A comma-separated list of at least one of the accepted words."""
    found = tuple(words(name) or default.split(","))
    wrong = [word for word in found if word not in accepted]
    if wrong:
        raise ImproperlyConfigured(f"{name} has {wrong[0]!r}; accepted are {', '.join(accepted)}, with commas between.")
    return found


def boolean(name: str, default: bool) -> bool:
    value = text(name, "1" if default else "0").lower()
    if value not in TRUE + FALSE:
        raise ImproperlyConfigured(f"{name} is {value!r}; accepted are {', '.join(TRUE + FALSE)}.")
    return value in TRUE


def integer(name: str, default: int, *, minimum: int, maximum: int) -> int:
    value = text(name, str(default))
    try:
        number = int(value)
    except ValueError as error:
        raise ImproperlyConfigured(f"{name} is {value!r}; a whole number is accepted.") from error
    if not minimum <= number <= maximum:
        raise ImproperlyConfigured(f"{name} is {number}; accepted are {minimum} to {maximum}.")
    return number


def words(name: str, default: str = "") -> list[str]:
    """A comma-separated list; empty items are dropped."""
    return [word.strip() for word in os.environ.get(name, default).split(",") if word.strip()]


def words_like(name: str, pattern: str, accepted: str) -> list[str]:
    found = words(name)
    if wrong := [word for word in found if not re.fullmatch(pattern, word)]:
        raise ImproperlyConfigured(f"{name} holds {wrong[0]!r}; accepted are {accepted}.")
    return found


def integers(name: str, default: str, *, minimum: int, maximum: int) -> list[int]:
    found = words(name, default)
    if wrong := [word for word in found if not word.isdecimal() or not minimum <= int(word) <= maximum]:
        raise ImproperlyConfigured(f"{name} holds {wrong[0]!r}; accepted are whole numbers of {minimum} to {maximum}.")
    return [int(word) for word in found]


def pairs(name: str, default: str) -> dict[str, str]:
    """A comma-separated list of ``key=value``."""
    found = [word.partition("=") for word in words(name, default)]
    if wrong := ["".join(pair) for pair in found if not (pair[0] and pair[2])]:
        raise ImproperlyConfigured(f"{name} holds {wrong[0]!r}; accepted are pairs of key=value.")
    return {key: value for key, _, value in found}


def networks(name: str) -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    """A comma-separated list of networks, empty unless set."""
    try:
        return [ipaddress.ip_network(word) for word in words(name)]
    except ValueError as error:
        raise ImproperlyConfigured(f"{name} is no list of networks such as 10.1.0.0/16: {error}.") from error


def url(name: str, default: str, *, schemes: tuple[str, ...]) -> SplitResult:
    try:
        parts = urlsplit(text(name, default))
        _ = parts.port
    except ValueError as error:
        raise ImproperlyConfigured(
            f"{name} is malformed; accepted is scheme://host:port/path, port a number."
        ) from error
    if parts.scheme not in schemes:
        # The value may hold a password, so only the scheme is repeated.
        raise ImproperlyConfigured(
            f"{name} begins with {parts.scheme or 'no scheme'!r}; accepted are {', '.join(s + '://' for s in schemes)}."
        )
    return parts


def path(name: str, default: str) -> str:
    """A path below the root of the host: no slash at its start, one at its end."""
    value = text(name, default).strip("/") + "/"
    if not re.fullmatch(r"([\w.~-]+/)+", value, re.ASCII):
        raise ImproperlyConfigured(f"{name} is {value!r}; words of letters, digits and -._~ with slashes are accepted.")
    return value


def folder(name: str, default: Path) -> Path:
    """An absolute path of a folder this process may write to; made when absent."""
    path = Path(text(name, str(default))).resolve()
    with contextlib.suppress(OSError):
        path.mkdir(parents=True, exist_ok=True)
    if not path.is_dir() or not os.access(path, os.W_OK | os.X_OK):
        raise ImproperlyConfigured(f"{name} is {str(path)!r}; a folder that can be written is accepted.")
    return path


def file(name: str, default: Path) -> Path:
    """An absolute path of a file that can be read."""
    path = Path(text(name, str(default))).resolve()
    if not path.is_file() or not os.access(path, os.R_OK):
        raise ImproperlyConfigured(f"{name} is {str(path)!r}; a file that can be read is accepted.")
    return path


def folders(name: str) -> list[Path]:
    """A comma-separated list of absolute paths, empty unless set."""
    found = words(name)
    if wrong := [word for word in found if not Path(word).is_absolute()]:
        raise ImproperlyConfigured(f"{name} holds {wrong[0]!r}; accepted are absolute paths, with commas between.")
    return [Path(word) for word in found]


def query_options(parts: SplitResult) -> dict[str, str]:
    return {key: values[-1] for key, values in parse_qs(parts.query).items()}


def secret(name: str, *, kept_in: Path | None) -> str:
    """The secret from the environment, else one generated once and kept in ``kept_in`` (the embedded form)."""
    if value := os.environ.get(name):
        return value
    if kept_in is None:
        raise ImproperlyConfigured(f"{name} is required in production and not set; any random text of 50 characters.")
    path = kept_in / name.lower()
    if not path.exists():
        kept_in.mkdir(parents=True, exist_ok=True)
        draft = kept_in / f".{name.lower()}.{os.getpid()}"
        draft.touch(mode=0o600)
        draft.write_text(secrets.token_urlsafe(50))
        # The first of two starting processes wins; both then read the same text.
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
        draft.unlink()
    return path.read_text()
