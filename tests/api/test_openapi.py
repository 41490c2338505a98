"""The OpenAPI document is valid and tells the truth about what the calls answer."""

from __future__ import annotations

import json
from functools import cache

import pytest
from django.test import Client
from openapi_spec_validator import validate

from tests.factories import a_caller, a_job
from tests.renderjobs.test_delivery import begun, deliver

pytestmark = pytest.mark.django_db
PATHS = {
    "/api/v1/jobs",
    "/api/v1/jobs/estimate",
    "/api/v1/jobs/{job_id}",
    "/api/v1/jobs/{job_id}/images",
    "/api/v1/jobs/{job_id}/events",
    "/api/v1/jobs/{job_id}/cancel",
    "/api/v1/jobs/{job_id}/pause",
    "/api/v1/jobs/{job_id}/resume",
    "/api/v1/jobs/{job_id}/approve",
    "/api/v1/jobs/{job_id}/decline",
    "/api/v1/jobs/{job_id}/grid",
    "/api/v1/prompts/expand",
    "/api/v1/prompts/{expansion_id}",
    "/api/v1/quotas",
    "/api/v1/usage",
    "/api/v1/usage.csv",
    "/api/v1/models",
    "/api/v1/models/{model_id}",
    "/api/v1/models/{model_id}/uses",
    "/api/v1/uploads",
    "/api/v1/uploads/{upload_id}",
}


@cache
def written() -> bytes:
    """It is the same for everybody, and takes a while."""
    return Client(headers={"Accept": "application/vnd.oai.openapi+json"}).get("/api/schema/?format=json").content


@pytest.fixture
def document() -> dict:
    return json.loads(written())


def test_u4_the_document_validates_and_names_every_call(document):
    validate(document)
    assert set(document["paths"]) == PATHS


@pytest.mark.parametrize(("path", "schema"), [("", "Job"), ("/images", "Image"), ("/events", "Event")])
def test_answers_have_exactly_the_documented_fields(document, path, schema):
    caller = a_caller()
    job = a_job(caller)
    deliver(begun())
    answer = Client(headers={"Authorization": f"Bearer {caller.token.text}"}).get(f"/api/v1/jobs/{job.pk}{path}").json()
    shown = answer["results"][0] if path else answer
    documented = document["components"]["schemas"]
    assert set(shown) == set(documented[f"{schema}Schema"]["properties"])
    if schema == "Job":
        assert set(shown["links"]) == set(documented["LinksSchema"]["properties"])


def test_the_page_of_the_documentation_loads_nothing_from_elsewhere():
    page = Client().get("/api/docs/").content.decode()
    assert "swagger" in page and "https://" not in page
