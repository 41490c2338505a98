"""A queued request is an ordinary job; its result is in the sink exactly once, whoever was killed in between."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
import time
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.test import Client

from accounts.services import token_revoke
from billing.models import BudgetPeriod, LedgerTransaction
from common.database import now_plus
from renderjobs.compat.eas import queues, requests, workers
from renderjobs.compat.eas.requests import request_again, request_answer, requests_take
from renderjobs.compat.sdapi import views
from renderjobs.compat.sdapi.script_calls import script_begin
from renderjobs.compat.sdapi.urls import PREFIXES
from renderjobs.delivery import image_deliver, image_fail
from renderjobs.models import EasFrame, EasService, RenderJob
from renderjobs.submission import job_cancel
from tests.billing.budgets import a_budget
from tests.eas.calls import Calls
from tests.factories import a_caller, a_platform, an_eas_service
from tests.renderjobs.test_delivery import begun
from tests.sdapi.test_controlnet import picture_text
from tests.sdapi.test_txt2img import a_stored_picture
from tests.services import PATIENCE_SECONDS

pytestmark = pytest.mark.django_db
SMALL = {"prompt": "a ring", "seed": 5, "width": 64, "height": 64, "steps": 2}
TXT2IMG = "/sdapi/v1/txt2img"
GPU = threading.Lock()


@pytest.fixture
def service() -> EasService:
    a_platform()
    return an_eas_service()


def put(service: EasService, body: Any = SMALL, *, path: str = TXT2IMG, **tags: str) -> int:
    return Calls.to(service).put(body if isinstance(body, bytes) else json.dumps(body).encode(), path=path, **tags)


def results(service: EasService) -> list[dict[str, Any]]:
    """The sink's frames, left there, with their data as text or JSON."""
    frames = Calls.to(service, "sink").get(_length_=100, _auto_delete_="false")
    for frame in frames:
        frame["data"] = json.loads(base64.b64decode(frame["data"]))
    return frames


def raw_results(service: EasService) -> list[dict[str, Any]]:
    """As ``results``, with whatever data."""
    return Calls.to(service, "sink").get(_length_=100, _auto_delete_="false")


def deliver(job_id: object) -> None:
    """What a GPU worker does with a job, in no time. There is one of them, and it takes jobs in their order."""
    with GPU:
        while RenderJob.objects.get(pk=job_id).state == "queued":
            deliver_next()


def deliver_next() -> None:
    batch = begun()
    for image in batch.images:
        if getattr(image.recipe, "prompt", "") == "fail":
            image_fail(batch=batch, image=image, code="asked", message="It was asked to fail.", retryable=False)
        else:
            stored = a_stored_picture(image, b"picture of seed %d" % getattr(image.recipe, "seed", 0))
            image_deliver(batch=batch, image=image, picture=stored, gpu_us=1000)


@pytest.fixture(autouse=True)
def gpu_worker(monkeypatch) -> None:
    async def rendered(job_id: object) -> None:
        await sync_to_async(deliver)(job_id)

    monkeypatch.setattr(views, "job_wait", rendered)


def work_off() -> int:
    """Take, call and answer once, as the workers' loop does; the number of requests taken."""
    taken = requests_take()
    for one in taken:
        request_answer(taken=one, answer=async_to_sync(workers.answer_to)(one))
    return len(taken)


def test_a_queued_request_is_a_job_and_its_result_is_the_web_apis_answer(service):
    index = put(service, task_id="t0", requestId="r0")
    assert work_off() == 1
    job = RenderJob.objects.get()
    assert (job.source, job.state, job.team, job.token) == ("eas", "succeeded", service.team, service.token)
    assert LedgerTransaction.objects.filter(kind="charge", job_id=job.pk).count() == 1
    (frame,) = results(service)
    assert frame["tags"] == {"task_id": "t0", "requestId": "r0"}
    assert base64.b64decode(frame["data"]["images"][0]) == b"picture of seed 5"
    assert json.loads(frame["data"]["info"])["seed"] == 5
    assert EasFrame.objects.get().answer_to == index  # the request is gone


def test_a_queued_request_goes_to_the_services_pool(service):
    from tests.factories import a_pool

    service.pool = a_pool("services")
    service.save()
    put(service)
    (taken,) = requests_take()
    request = taken.as_request(taken.caller)
    values = views.wire.parsed(SMALL, {**views.wire.TXT2IMG, **views.wire.OURS})
    views.generation_submit(request, taken.caller, SMALL, values, "txt2img")
    assert RenderJob.objects.get().pool.name == "services"


def test_a_request_taken_twice_makes_one_job_and_one_result(service):
    put(service)
    (first,) = requests_take()
    EasFrame.objects.update(taken_until=now_plus(-1))  # whoever took it is thought lost, and is not
    (second,) = requests_take()
    answers = [async_to_sync(workers.answer_to)(one) for one in (first, second)]
    assert [request_answer(taken=one, answer=answers[0]) for one in (first, second)] == [True, False]
    assert RenderJob.objects.count() == 1 and len(results(service)) == 1
    assert json.loads(answers[0].data)["images"] == json.loads(answers[1].data)["images"]


def test_a_worker_killed_between_job_and_result_leaves_the_job_to_the_next(service):
    put(service)
    (lost,) = requests_take()
    async_to_sync(workers.answer_to)(lost)  # and dies before it says so
    assert work_off() == 0
    EasFrame.objects.update(taken_until=now_plus(-1))
    assert work_off() == 1
    assert RenderJob.objects.count() == 1 and len(results(service)) == 1
    assert LedgerTransaction.objects.filter(kind="charge").count() == 1


def test_a_request_that_kills_its_workers_is_answered_in_the_end(service):
    put(service)
    for _ in range(requests.MAX_TRIES):
        assert requests_take()
        EasFrame.objects.update(taken_until=now_plus(-1))
    assert work_off() == 1 and not RenderJob.objects.exists()
    (frame,) = results(service)
    assert frame["tags"]["lastCode"] == "500" and "lost 5 times" in frame["data"]["parameters"]["error_msg"]


def test_requests_are_taken_by_priority_and_no_more_than_the_window(service):
    EasService.objects.update(window=2)
    for priority in ("0", "0", "1"):
        put(service, _priority_=priority)
    assert [taken.index for taken in requests_take()] == [3, 1]
    assert requests_take() == []
    searched = Calls.to(service).call("GET", {"_search_": "true", "_index_": 3}).json()
    assert searched == {"ConsumerId": "sd_async.worker", "IsPending": True, "WaitCount": 0}


def test_a_request_in_hand_is_not_given_to_a_reader(service):
    put(service)
    requests_take()
    assert Calls.to(service).get(_index_=0) == []


def test_a_deleted_request_leaves_no_result(service):
    index = put(service)
    (taken,) = requests_take()
    Calls.to(service).call("DELETE", {"_indexes_": str(index)})
    assert not requests.request_keep(taken)
    assert not request_answer(taken=taken, answer=requests.Answer(200, b"{}"))
    assert results(service) == []


def in_hand(service: EasService, body: Any = SMALL) -> tuple[int, requests.Taken]:
    """A request whose job waits for a GPU worker."""
    index = put(service, body)
    (taken,) = requests_take()
    assert taken.caller is not None
    request = taken.as_request(taken.caller)
    if "script_name" in body:
        key = request.headers["Idempotency-Key"]
        script_begin(caller=taken.caller, body=body, tab="txt2img", most_images=9, idempotency_key=key)
    else:
        values = views.wire.parsed(body, {**views.wire.TXT2IMG, **views.wire.OURS})
        views.generation_submit(request, taken.caller, body, values, "txt2img")
    return index, taken


SCRIPT = {**SMALL, "script_name": "Prompt matrix", "script_args": [False, False, "positive", "comma", 0]}
DELETIONS = {
    "delete": lambda index: {"_indexes_": index},
    "truncate": lambda index: {"_trunc_": "true", "_index_": index + 1},
}


@pytest.mark.parametrize("how", DELETIONS)
@pytest.mark.parametrize("body", [SMALL, SCRIPT], ids=["a picture", "a script"])
def test_deleting_a_queued_request_takes_its_job_back_and_frees_its_hold(service, how, body):
    budget = a_budget("team", limit="1000", team=service.team)
    index, _ = in_hand(service, body)
    assert BudgetPeriod.objects.get(budget=budget).held > 0
    for _ in range(2):
        assert Calls.to(service).call("DELETE", DELETIONS[how](index)).content == b"OK"
    assert set(RenderJob.objects.values_list("state", flat=True)) == {"cancelled"}
    assert BudgetPeriod.objects.get(budget=budget).held == 0 and results(service) == []


def test_deleting_a_request_leaves_other_requests_jobs_alone(service):
    first, _ = in_hand(service)
    EasService.objects.update(window=8)
    in_hand(service, {**SMALL, "seed": 6})
    Calls.to(service).call("DELETE", {"_indexes_": first})
    assert sorted(RenderJob.objects.values_list("state", flat=True)) == ["cancelled", "queued"]


def test_a_job_that_was_made_while_its_request_was_deleted_is_taken_back_by_its_worker(service, monkeypatch):
    _, taken = in_hand(service)
    EasFrame.objects.all().delete()  # by who looked for the job before there was one
    monkeypatch.setattr(workers, "KEEP_SECONDS", 0.01)

    async def never(job_id: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(views, "job_wait", never)
    # Here the call shares this test's thread, whose connection is not the call's to close.
    monkeypatch.setattr(workers, "_on_a_thread_of_its_own", workers.answer_to)
    async_to_sync(workers.RequestWorkers()._do)(taken)
    assert RenderJob.objects.get().state == "cancelled" and results(service) == []


REFUSED = {
    "no JSON": (b"prompt: a ring", TXT2IMG, 422, ""),
    "no object": ([1], TXT2IMG, 422, ""),
    "a wrong field": ({**SMALL, "steps": "many"}, TXT2IMG, 422, "steps"),
    "an unknown path": (SMALL, "/sdapi/v1/txt3img", 404, "txt3img"),
    "no path": (SMALL, "", 404, "'/'"),
    "a path with dots": (SMALL, "/sdapi/v1/../v1/txt2img", 404, ""),
    "a GET interface": (SMALL, "/sdapi/v1/sd-models", 405, "Method Not Allowed"),
    "an unknown checkpoint": ({**SMALL, "override_settings": {"sd_model_checkpoint": "nope"}}, TXT2IMG, 404, "nope"),
    "a failing job": ({**SMALL, "prompt": "fail"}, TXT2IMG, 500, "asked to fail"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_made_is_answered_too(service, what):
    body, path, status, said = REFUSED[what]
    if isinstance(body, dict):
        body = {**body, "alwayson_scripts": {"id_task": "14837"}}
    put(service, body, path=path, task_id="t0")
    work_off()
    (frame,) = results(service)
    assert frame["tags"]["task_id"] == "t0" and frame["tags"]["lastCode"] == str(status)
    found = frame["data"]["parameters"]
    assert found["status"] == status and said in found["error_msg"] and found["error_msg"]
    assert found["id_task"] == ("14837" if isinstance(body, dict) else None)
    assert frame["data"]["images"] == [] and json.loads(frame["data"]["info"])["hostname"]


@pytest.mark.parametrize("given", [{"ID_Task": {"args": [14837]}}, {"id_task": 14837, "save_dir": 3}])
def test_a_refusal_echoes_the_id_as_a_result_would(service, given):
    put(service, {**SMALL, "steps": "many", "alwayson_scripts": given})
    work_off()
    assert results(service)[0]["data"]["parameters"]["id_task"] == "14837"


def test_a_body_nested_without_end_is_answered_as_wrong(service):
    put(service, b"[" * 200_000)
    work_off()
    (frame,) = results(service)
    assert frame["tags"]["lastCode"] == "422" and frame["data"]["parameters"]["error_msg"]


def test_a_failed_request_is_delivered_again_where_the_service_allows_it(service):
    EasService.objects.update(max_delivery=2)
    put(service, {**SMALL, "prompt": "fail"})
    (taken,) = requests_take()
    assert async_to_sync(workers.answer_to)(taken).status == 500 and request_again(taken)
    assert request_again(taken)  # said twice, it counts once
    (again,) = requests_take()
    answer = async_to_sync(workers.answer_to)(again)
    assert not request_again(again) and request_answer(taken=again, answer=answer)
    assert RenderJob.objects.count() == 2 and len(results(service)) == 1


def test_a_request_whose_token_ended_is_answered_with_401(service):
    member = a_caller(service.team.name, "bob")
    assert Calls(f"/api/predict/{service.name}", member.token.text).put(path=TXT2IMG) == 1
    token_revoke(token=member.token)
    work_off()
    assert results(service)[0]["data"]["parameters"]["status"] == 401 and not RenderJob.objects.exists()


def test_a_result_above_the_limit_says_what_to_do(service):
    EasService.objects.update(max_payload_bytes=1024)
    put(service, SMALL)
    work_off()
    (frame,) = results(service)
    assert frame["tags"]["lastCode"] == "413" and "save_dir" in frame["data"]["parameters"]["error_msg"]
    assert RenderJob.objects.get().state == "succeeded"


def test_a_full_sink_and_a_stopped_service_take_no_requests(service):
    EasService.objects.update(max_frames=8, window=8)
    put(service)
    Calls.to(service, "sink").put()
    assert requests_take() == []
    Calls.to(service, "sink").get()
    EasService.objects.update(enabled=False)
    assert requests_take() == []
    EasService.objects.update(enabled=True)
    assert len(requests_take()) == 1


def test_a_cancelled_job_is_answered_with_the_pictures_there_are(service, monkeypatch):
    async def cancelled(job_id: object) -> None:
        await sync_to_async(job_cancel)(job=await RenderJob.objects.aget(pk=job_id))

    monkeypatch.setattr(views, "job_wait", cancelled)
    put(service)
    work_off()
    (frame,) = results(service)
    assert frame["data"]["images"] == [] and "lastCode" not in frame["tags"]


POSTS = {
    "/sdapi/v1/txt2img": (SMALL, 200),
    "/sdapi/v1/img2img": ({**SMALL, "init_images": ["PICTURE"]}, 200),
    "/sdapi/v1/png-info": ({"image": "PICTURE"}, 200),
    "/sdapi/v1/extra-single-image": ({"image": "PICTURE"}, 200),
    "/sdapi/v1/extra-batch-images": ({"imageList": [{"data": "PICTURE", "name": "a.png"}]}, 200),
    "/sdapi/v1/interrogate": ({"image": "PICTURE", "model": "clip"}, 501),
    "/sdapi/v1/interrupt": ({}, 200),
    "/sdapi/v1/skip": ({}, 200),
    "/sdapi/v1/options": ({"CLIP_stop_at_last_layers": 2}, 200),
    "/sdapi/v1/unload-checkpoint": ({}, 200),
    "/sdapi/v1/reload-checkpoint": ({}, 200),
    "/sdapi/v1/refresh-checkpoints": ({}, 200),
    "/sdapi/v1/refresh-vae": ({}, 200),
    "/sdapi/v1/refresh-loras": ({}, 200),
    "/sdapi/v1/refresh-embeddings": ({}, 200),
    "/sdapi/v1/create/embedding": ({}, 501),
    "/sdapi/v1/create/hypernetwork": ({}, 501),
    "/sdapi/v1/train/embedding": ({}, 501),
    "/sdapi/v1/train/hypernetwork": ({}, 501),
    "/sdapi/v1/server-kill": ({}, 501),
    "/sdapi/v1/server-restart": ({}, 501),
    "/sdapi/v1/server-stop": ({}, 501),
    "/controlnet/detect": ({"controlnet_module": "canny", "controlnet_input_images": ["PICTURE"]}, 200),
    "/controlnet/render_openpose_json": ([], 200),
    "/internal/progress": ({"id_task": "x"}, 200),
    "/agent-scheduler/v1/queue/txt2img": (SMALL, 200),
    "/agent-scheduler/v1/queue/img2img": ({**SMALL, "init_images": ["PICTURE"]}, 200),
    "/agent-scheduler/v1/history/clear": ({}, 200),
}
"""Calls that A1111 and its extensions know as a POST → body, and what it is answered with."""


@pytest.mark.parametrize("path", POSTS)
def test_every_post_interface_can_be_queued_by_its_path(service, path):
    body, status = POSTS[path]
    put(service, json.loads(json.dumps(body).replace("PICTURE", picture_text())), path=path, task_id="t")
    assert work_off() == 1
    found = [(frame["tags"]["task_id"], int(frame["tags"].get("lastCode", 200))) for frame in raw_results(service)]
    assert found == [("t", status)]


def test_no_post_interface_is_left_out():
    """Of the routes, those whose view takes a POST: told by what an empty call is answered."""
    for prefix, routes in PREFIXES.items():
        for name in routes:
            path = f"/{prefix}/{name}"
            if "<" not in path and Client().post(path).status_code != 405 and prefix != "agent-scheduler/v1":
                assert path in POSTS, path


def test_two_services_work_apart(service):
    other = an_eas_service("theirs", team="rivals")
    put(service, requestId="ours")
    put(other, {**SMALL, "seed": 9}, requestId="theirs")
    work_off()
    assert [frame["tags"]["requestId"] for frame in results(service)] == ["ours"]
    assert [frame["tags"]["requestId"] for frame in results(other)] == ["theirs"]
    assert set(RenderJob.objects.values_list("team__name", flat=True)) == {"team-a", "rivals"}


# --- the loop itself --------------------------------------------------------------------------------------------------


def run_until(condition: Any) -> None:
    """Run the workers until the condition holds."""

    async def scenario() -> None:
        stop, began = asyncio.Event(), time.monotonic()
        running = asyncio.create_task(workers.RequestWorkers().run(stop))
        while not await asyncio.to_thread(in_a_thread, condition):
            assert time.monotonic() - began < PATIENCE_SECONDS and not running.done()
            await asyncio.sleep(0.05)
        stop.set()
        await running

    asyncio.run(scenario())


def in_a_thread(condition: Any) -> Any:
    from django.db import connection

    try:
        return condition()
    finally:
        connection.close()


@pytest.mark.django_db(transaction=True)
def test_the_workers_answer_what_is_queued(service, broker):
    for number in range(12):
        put(service, {**SMALL, "seed": number}, task_id=str(number))
    run_until(lambda: not EasFrame.objects.filter(queue__kind="input").exists())
    frames = results(service)
    assert sorted(int(frame["tags"]["task_id"]) for frame in frames) == list(range(12))
    assert [frame["index"] for frame in frames] == list(range(1, 13)) and RenderJob.objects.count() == 12


@pytest.mark.django_db(transaction=True)
def test_workers_that_stop_give_back_what_they_have_in_hand(service, broker, monkeypatch):
    async def never(job_id: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(views, "job_wait", never)
    put(service)
    run_until(RenderJob.objects.exists)
    row = EasFrame.objects.get()
    assert (row.taken_until, row.tries) == (None, 0)


def test_results_wait_in_the_order_they_were_made_in(service):
    queue = queues.queue_of(service, "input")
    queues.frames_put(queue=queue, frames=[queues.NewFrame(data=b"{}", path="/none") for _ in range(3)])
    taken = requests_take()
    for one in reversed(taken):
        request_answer(taken=one, answer=requests.Answer(200, b"{}"))
    answered = EasFrame.objects.filter(queue__kind="sink").order_by("index").values_list("answer_to", flat=True)
    assert list(answered) == [3, 2, 1]
