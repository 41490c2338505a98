"""Nothing answers without a credential, except what is listed here with its reason; a new address must be listed or ask for one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextvars import copy_context
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.contrib import admin
from django.test import Client
from django.urls import get_resolver, reverse

from accounts.models import Team, User
from renderjobs.compat.eas.websocket import application
from tests.factories import a_platform, an_eas_service

OPEN = {
    "admin/login/": "where people sign in",
    "healthz": "for load balancers",
    "readyz": "for load balancers",
    "files/<str:token>": "the address is the credential: signed, and for an hour",
    "models/previews/<str:token>": "as above",
    "api/schema/": "describes the API, and holds nobody's data",
    "api/docs/": "as above",
    "openapi.json": "as above",
    "docs": "as above",
}
METHODS = ("get", "head", "post", "put", "patch", "delete", "options")
PARTS = {"uuid": "01890000-0000-7000-8000-000000000000", "int": "1", "app_label": "accounts", "csv|json": "csv"}
IN_ADMIN = ("/admin/login/", "/admin/")


def routes(patterns: Any = None, prefix: str = "") -> Iterator[str]:
    """Every pattern of the URL tree, as it is written."""
    for pattern in get_resolver().url_patterns if patterns is None else patterns:
        here = prefix + str(pattern.pattern)
        if hasattr(pattern, "url_patterns"):
            yield from routes(pattern.url_patterns, here)
        else:
            yield here


ROUTES = sorted(set(routes()))


def address_of(route: str) -> str:
    """One that the pattern takes."""
    route = re.sub(r"\(\?P<url>\.\*\)", "x", route)
    route = re.sub(r"\(\?P<app_label>[^)]*\)|\((csv)\|json\)", lambda found: found[1] or PARTS["app_label"], route)
    route = re.sub(r"<(?:(\w+):)?\w+>", lambda found: PARTS.get(found[1], "x"), route)
    return "/" + route.replace("^", "").replace("$", "").replace("[.]", ".")


@pytest.mark.django_db
@pytest.mark.parametrize("route", ROUTES)
def test_s1_without_a_credential_no_address_answers_but_those_listed(route):
    answers = {method: getattr(Client(), method)(address_of(route)) for method in METHODS}
    if route in OPEN:
        return
    for method, answer in answers.items():
        assert answer.status_code in (301, 302, 307, 401, 403, 405), (method, answer.status_code, answer.content[:200])
        if 300 < answer.status_code < 400:
            to = answer["Location"].split("?")[0]
            assert to.startswith(IN_ADMIN) or to == address_of(route).rstrip("/"), (method, to)
    assert {answer.status_code for answer in answers.values()} != {405}


def test_s1_the_list_names_only_addresses_that_there_are():
    assert set(OPEN) <= set(ROUTES)


@pytest.mark.django_db
def test_s6_no_write_by_cookie_goes_without_the_csrf_token():
    """Every page of the admin that takes a form, and the one API that takes the admin's session."""
    a_platform()
    browser = Client(enforce_csrf_checks=True)
    browser.force_login(User.objects.create_superuser("root"))
    addresses = [
        reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_add") for model in admin.site._registry
    ]
    addresses += [address.replace("add/", "") for address in addresses]
    pages = ["password_change", "logout", "login", "second_factor_new", "login_code", "login_enrolment"]
    addresses += [reverse(f"admin:{page}") for page in pages] + [reverse("uploads")]
    for address in addresses:
        answer = browser.post(address, {"name": "x"}, headers={"Tus-Resumable": "1.0.0"})
        assert answer.status_code == 403 and b"CSRF" in answer.content, (address, answer.status_code)
    assert not Team.objects.exists()


@pytest.mark.django_db
def test_s6_a_token_needs_no_csrf_token_and_a_cookie_is_no_token():
    browser = Client()
    browser.force_login(User.objects.create_superuser("root"))
    for address in ("/api/v1/jobs", "/sdapi/v1/options", "/v1/models", "/api/predict/x?_attrs_=1"):
        assert browser.get(address).status_code == 401, address


def handshake(**headers: str) -> int:
    """The status with which a WebSocket of a watcher is answered; 101 when it is accepted."""
    sent: list[dict[str, Any]] = []
    lines = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {
        "type": "websocket", "path": "/api/predict/sd_async", "query_string": b"_watch_=true", "headers": lines,
        "extensions": {"websocket.http.response": {}}, "client": ("127.0.0.1", 1),
    }  # fmt: skip
    incoming = iter([{"type": "websocket.connect"}, {"type": "websocket.disconnect"}])

    async def receive() -> dict[str, Any]:
        return next(incoming)

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    # The door notes in its context on which threads it runs; that is not for the tests that follow.
    copy_context().run(async_to_sync(application), scope, receive, send)
    return 101 if sent[0]["type"] == "websocket.accept" else sent[0]["status"]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("origin", "status"),
    [("", 101), ("https://localhost:9", 101), ("https://evil.example", 403), ("https://localhost.evil.example", 403),
     ("null", 403)],
)  # fmt: skip
def test_s6_a_websocket_is_opened_by_pages_of_our_own_hosts_only(settings, origin, status):
    settings.ALLOWED_HOSTS = ["localhost"]
    headers = {
        "host": "localhost",
        "authorization": an_eas_service().token.text,
        **({"origin": origin} if origin else {}),
    }
    assert handshake(**headers) == status


@pytest.mark.django_db(transaction=True)
def test_s1_a_websocket_wants_a_token(settings):
    settings.ALLOWED_HOSTS = ["localhost"]
    an_eas_service()
    assert handshake(host="localhost") == 401


@pytest.mark.django_db
@pytest.mark.parametrize("address", ["/admin/login/", "/api/docs/", "/docs", "/healthz", "/api/v1/jobs", "/nothing"])
def test_s13_every_answer_has_a_policy_without_inline_script_and_is_what_it_says(address):
    answer = Client().get(address)
    rules = dict(rule.split(" ", 1) for rule in answer["Content-Security-Policy"].split("; "))
    assert rules["default-src"] == "'none'" and "unsafe-inline" not in rules["script-src"]
    assert ("'unsafe-eval'" in rules["script-src"]) is address.startswith("/admin/")
    assert answer["X-Content-Type-Options"] == "nosniff"
    assert not re.search(rb"<script(?![^>]*src=)[^>]*>", answer.content)
