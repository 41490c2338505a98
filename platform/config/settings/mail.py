"""Mails to people. None, unless the installation says through which server."""

from __future__ import annotations

from email.utils import parseaddr
from urllib.parse import unquote

from django.core.exceptions import ImproperlyConfigured

from config import env

MAIL_FROM = ""
"""Empty: no mail is written."""
EMAIL_TIMEOUT = 10

if env.text("MAIL_URL", ""):
    _url = env.url("MAIL_URL", "", schemes=("smtp", "smtps", "smtp+starttls"))
    MAIL_FROM = env.query_options(_url).get("from", "")
    if not _url.hostname or "@" not in parseaddr(MAIL_FROM)[1]:
        raise ImproperlyConfigured("MAIL_URL names no server or sender; accepted is smtp://host:port?from=name@host.")
    EMAIL_HOST = _url.hostname
    EMAIL_PORT = _url.port or {"smtp": 25, "smtps": 465, "smtp+starttls": 587}[_url.scheme]
    EMAIL_HOST_USER, EMAIL_HOST_PASSWORD = unquote(_url.username or ""), unquote(_url.password or "")
    EMAIL_USE_SSL, EMAIL_USE_TLS = _url.scheme == "smtps", _url.scheme == "smtp+starttls"
