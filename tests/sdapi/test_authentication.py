"""Who may call: every route asks for a token, in the forms that the installation takes."""

from __future__ import annotations

import base64

import pytest
from django.test import Client

from renderjobs.compat.sdapi.urls import PREFIXES
from tests.factories import a_caller
from tests.sdapi.test_isolation import CALLS

pytestmark = pytest.mark.django_db
ROUTES = [f"{prefix}/{name}" for prefix, routes in PREFIXES.items() for name in routes]


def test_no_route_answers_without_a_token():
    for route in ROUTES:
        call = Client().get if CALLS[route] is None else Client().post
        for header in ({}, {"authorization": ""}, {"authorization": "Digest x"}, {"authorization": "Basic ???"}):
            answer = call(f"/{route}", headers=header)
            assert answer.status_code == 401 and "WWW-Authenticate" not in answer.headers, route
            assert answer.json() == {"error": "HTTPException", "detail": "Not authenticated", "body": "", "errors": ""}


def pair(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


FORMS = {
    "bearer": (lambda user, token: f"Bearer {token}", {"bearer"}),
    "bare": (lambda user, token: token, {"token"}),
    "any name": (lambda user, token: pair("sd", token), {"basic"}),
    "own name": (lambda user, token: pair(user, token), {"basic", "basic-user"}),
    "name alone": (lambda user, token: pair(token, ""), {"basic"}),
}


@pytest.mark.parametrize("setting", ["bearer", "token", "basic", "basic-user"])
@pytest.mark.parametrize("form", FORMS)
def test_a_token_counts_only_in_the_forms_the_installation_takes(settings, setting, form):
    settings.SDAPI_AUTHENTICATION = (setting,)
    caller = a_caller(user="ada")
    header, taken_by = FORMS[form]
    answer = Client().get("/sdapi/v1/samplers", headers={"authorization": header("ada", caller.token.text)})
    assert (answer.status_code == 200) == (setting in taken_by), answer.content


@pytest.mark.parametrize("header", ["Bearer nope", "nope", pair("ada", "nope")])
def test_a_token_that_nobody_has_is_refused_in_a1111s_words(header):
    answer = Client().get("/sdapi/v1/samplers", headers={"authorization": header})
    assert (answer.status_code, answer.json()["detail"]) == (401, "Incorrect username or password")
