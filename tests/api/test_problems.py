"""Errors that no view raised keep the shape of the API, and tell nothing of the inside."""

from __future__ import annotations

import pytest
from django.test import Client

from renderjobs.api import views
from tests.api.test_jobs import GOOD, client_of
from tests.factories import a_caller

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("get", "nope", 404), ("get", "jobs/", 404), ("delete", "jobs", 405), ("put", "usage", 405)],
)
def test_unknown_paths_and_methods_are_problems(method, path, status):
    answer = getattr(client_of(a_caller()), method)(f"/api/v1/{path}")
    assert (answer.status_code, answer.json()["status"]) == (status, status)
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert status != 405 or "GET" in answer.headers["Allow"]


def test_a_form_is_no_json():
    answer = client_of(a_caller()).post("/api/v1/jobs", GOOD["request"])
    assert answer.status_code == 415 and answer.json()["code"] == "unsupported_media_type"


def test_a_wrong_host_is_a_problem():
    answer = Client(headers={"Host": "evil.example"}).get("/api/v1/jobs")
    assert answer.status_code == 400 and answer.json()["code"] == "bad_request"


def test_s28_our_own_defect_shows_no_trace(monkeypatch):
    def broken(*_):
        raise RuntimeError("secret of the inside")

    api = client_of(a_caller())
    api.raise_request_exception = False
    monkeypatch.setattr(views, "job_get", broken)
    answer = api.get("/api/v1/jobs/1")
    assert answer.status_code == 500 and answer.json()["code"] == "internal_error" and b"secret" not in answer.content
