"""Both OpenAPI documents are promises: whatever is sent, nothing fails inside and every answer is one that the document names."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import schemathesis
from asgiref.sync import sync_to_async
from django.core.signals import request_finished, request_started
from django.core.wsgi import get_wsgi_application
from django.db import close_old_connections
from django.test import Client
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.internal.conjecture import providers
from hypothesis.internal.constants_ast import Constants
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from renderjobs.compat.sdapi import views
from renderjobs.compat.sdapi.openapi import CALLS
from renderjobs.models import RenderJob
from tests.api.test_openapi import PATHS
from tests.factories import a_caller, a_job, a_platform
from tests.openai.test_images import draw
from tests.sdapi.test_controlnet import picture_text

pytestmark = [pytest.mark.django_db, pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume")]
PROMISES = [
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
EXAMPLES = 6
"""Of each operation that reads anything, and kind of data: what keeps to the document, and what does not."""
PICTURES = ("image", "mask")
LISTS = {"init_images": "/img2img", "controlnet_input_images": "/detect"}
"""Field → end of the paths that have it."""
schemathesis.serializer.alias("application/offset+octet-stream", "application/octet-stream")


@pytest.fixture(autouse=True)
def the_same_examples_whatever_ran_before(monkeypatch) -> None:
    """Hypothesis draws from the constants of our modules too, of those that happen to be loaded by now."""
    monkeypatch.setattr(providers, "_get_local_constants", Constants)
    monkeypatch.setattr(providers, "CONSTANTS_CACHE", {})


@pytest.fixture
def known(monkeypatch) -> Known:
    a_platform()
    caller = a_caller()

    async def drawn(job_id: Any) -> None:
        await sync_to_async(lambda: draw(RenderJob.objects.get(pk=job_id)))()

    monkeypatch.setattr(views, "job_wait", drawn)
    task = a_job(caller)
    RenderJob.objects.filter(pk=task.pk).update(source="agent-scheduler")
    return Known(caller.token.text, str(a_job(caller).pk), str(task.pk))


@contextmanager
def requests_within_the_transaction() -> Iterator[None]:
    """As Django's own client does: a request neither begins nor ends the connection, which the test's transaction holds."""
    signals = (request_started, request_finished)
    for signal in signals:
        signal.disconnect(close_old_connections)
    yield
    for signal in signals:
        signal.connect(close_old_connections)


@cache
def schema_of(path: str) -> Any:
    answer = Client(headers={"Accept": "application/vnd.oai.openapi+json"}).get(path)
    schema = schemathesis.openapi.from_dict(json.loads(answer.content))
    schema.app = get_wsgi_application()
    return schema


def operations(document: str, path: str) -> list[Any]:
    return list(schema_of(document)[path].values())


@dataclass(frozen=True)
class Known:
    """What a caller has: random texts are never a token, a job of the caller's, or a picture."""

    token: str
    job: str
    task: str

    def put_into(self, case: Any) -> None:
        case.path_parameters = {
            name: {"job_id": self.job, "task_id": self.task}.get(name, value)
            for name, value in (case.path_parameters or {}).items()
        }
        if not isinstance(case.body, dict):
            return
        texts = {name: picture_text() for name in PICTURES if isinstance(case.body.get(name), str)}
        lists = {name: [picture_text()] for name in LISTS if case.path.endswith(LISTS[name])}
        case.body = {**case.body, **texts, **lists}
        if case.path.startswith("/api/v1/jobs"):
            wanted = {"prompt": "x", "width": 64, "height": 64, "steps": 1}
            case.body = {**case.body, "kind": "txt2img", "request": wanted}


def sent(operation: Any, mode: Any, known: Known, failed: Any) -> None:
    """Every second time with what is known."""
    number = itertools.count()

    @settings(
        max_examples=EXAMPLES if {"requestBody", "parameters"} & operation.definition.raw.keys() else 1,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def send(case: Any) -> None:
        if next(number) % 2:
            known.put_into(case)
        case.headers = {**(case.headers or {}), "Authorization": f"Bearer {known.token}"}
        response = case.call()
        failed(response)
        case.validate_response(response, checks=PROMISES)

    with requests_within_the_transaction():
        send()


NOT_HERE = 501
"""What this installation has not: an answer the document names."""


def failed_inside(response: Any) -> None:
    """A1111 says with a 500 what is wrong with a request; a defect of ours has a name of its own."""
    if response.status_code >= 500:
        assert response.json()["error"] != "InternalError", response.text


def failed_at_all(response: Any) -> None:
    assert response.status_code < 500 or response.status_code == NOT_HERE, response.text


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize("path", sorted({path for _, path in CALLS}))
def test_a1111s_interface_keeps_to_its_document(known, path, mode):
    for operation in operations("/openapi.json", path):
        sent(operation, mode, known, failed_inside)


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize("path", sorted(PATHS))
def test_the_job_api_keeps_to_its_document(known, path, mode):
    for operation in operations("/api/schema/?format=json", path):
        sent(operation, mode, known, failed_at_all)
