"""A service without queues answers at its address as the web API does, within its limits."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace

import pytest
from asgiref.sync import sync_to_async

from renderjobs.compat.eas import synchronous
from renderjobs.compat.sdapi import views
from renderjobs.models import EasService, RenderJob
from tests.eas.calls import Calls
from tests.eas.test_requests import SMALL, gpu_worker  # noqa: F401  a fixture
from tests.factories import a_platform, an_eas_service

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("gpu_worker")]
TXT2IMG = "/sdapi/v1/txt2img"


@pytest.fixture
def service() -> EasService:
    a_platform()
    return an_eas_service("sd", edition="standard")


@pytest.fixture
def calls(service) -> Calls:
    return Calls.to(service)


def call(calls: Calls, path: str = TXT2IMG, method: str = "POST") -> int:
    return calls.call(method, path=path, body=json.dumps(SMALL).encode()).status_code


def test_a_call_waits_for_its_pictures(calls):
    answer = calls.call("POST", path=TXT2IMG, body=json.dumps(SMALL).encode())
    assert answer.status_code == 200 and answer.streaming
    assert RenderJob.objects.get().source == "sdapi"


def test_lists_are_answered_too(calls):
    assert calls.call("GET", path="/sdapi/v1/sd-models").json()[0]["model_name"] == "mini"


def test_a_calls_query_is_read_and_other_interfaces_of_the_web_ui_are_there(calls):
    full, plain = (
        calls.call("GET", {"skip_current_image": value}, path="/sdapi/v1/progress").status_code
        for value in ("true", "x")
    )
    assert (full, plain) == (200, 422)
    assert calls.call("GET", {"limit": 1}, path="/agent-scheduler/v1/history").json()["total"] == 0
    assert calls.call("POST", path="/internal/progress", body=b'{"id_task": "x"}').json()["active"] is False


def test_the_queues_operations_find_no_queue(calls):
    for method, query in (("POST", {}), ("GET", {"_attrs_": "true"}), ("DELETE", {"_indexes_": "1"})):
        assert calls.call(method, query).status_code == 404
    assert Calls(f"{calls.path}/sink", calls.token).call("GET", {"_index_": 0}).status_code == 404


def test_an_unknown_call_is_404_and_a_strangers_token_too(calls):
    assert call(calls, "/sdapi/v1/txt3img") == 404
    stranger = Calls.to(an_eas_service("theirs", team="rivals"))
    assert call(Calls(calls.path, stranger.token)) == 404 and call(Calls(calls.path, "wrong")) == 401
    assert not RenderJob.objects.exists()


@pytest.fixture
def time_is_up(monkeypatch) -> list[float]:
    """Of each call while it waits for its job, and not before; how long it would have had."""
    asked, limits = [], []

    def timeout(seconds: float) -> asyncio.Timeout:
        asked.append(seconds)
        limits.append(asyncio.timeout(None))
        return limits[-1]

    async def waited(job_id: object) -> None:
        limits[-1].reschedule(asyncio.get_running_loop().time())
        await asyncio.Event().wait()

    monkeypatch.setattr(synchronous, "asyncio", SimpleNamespace(timeout=timeout))
    monkeypatch.setattr(views, "job_wait", waited)
    return asked


def test_a_call_that_takes_too_long_is_408_and_its_job_goes_on(calls, time_is_up):
    EasService.objects.update(keepalive_seconds=7)
    assert (call(calls), time_is_up) == (408, [7])
    assert RenderJob.objects.get().state == "queued"


def test_a_call_while_as_many_run_as_the_service_takes_is_450_and_its_place_is_free_afterwards(calls, monkeypatch):
    EasService.objects.update(max_queue_size=1)
    while_it_ran = []

    async def asks_again(job_id: object) -> None:
        while_it_ran.append(await sync_to_async(call)(calls))
        await rendered(job_id)

    rendered = views.job_wait
    monkeypatch.setattr(views, "job_wait", asks_again)
    assert (call(calls), while_it_ran) == (200, [450])
    monkeypatch.setattr(views, "job_wait", rendered)
    assert call(calls) == 200 and RenderJob.objects.count() == 2


def test_calls_beyond_the_limits_are_450_and_429_and_make_no_job(service, calls, monkeypatch):
    monkeypatch.setitem(synchronous._running, service.pk, service.max_queue_size)
    assert call(calls) == 450
    monkeypatch.setitem(synchronous._running, service.pk, 0)
    monkeypatch.setattr(synchronous, "time", SimpleNamespace(monotonic=lambda: 5.0))  # all within one second
    EasService.objects.update(rate_limit=2)
    assert [call(calls, "/sdapi/v1/samplers", "GET") for _ in range(3)] == [200, 200, 429]
    assert not RenderJob.objects.exists()
