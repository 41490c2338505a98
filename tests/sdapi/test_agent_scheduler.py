"""agent-scheduler's routes: a queued call is a job, and what is said of it is true."""

from __future__ import annotations

import base64
import io
import json
import zipfile
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from renderjobs.delivery import StoredPicture, image_deliver, image_fail
from renderjobs.models import RenderJob
from tests.factories import a_caller, a_checkpoint, a_platform
from tests.renderjobs.test_delivery import begun
from tests.sdapi.test_controlnet import picture_text

pytestmark = pytest.mark.django_db
BASE = "/agent-scheduler/v1"
SMALL = {"prompt": "a red circle", "width": 64, "height": 64, "steps": 4, "seed": 7}


@pytest.fixture
def door() -> Client:
    a_platform()
    return Client(headers={"Authorization": f"Bearer {a_caller().token.text}"})


def post(door: Client, path: str, **body: Any) -> Any:
    return door.post(f"{BASE}/{path}", body, content_type="application/json")


def queued(door: Client, **body: Any) -> str:
    return post(door, "queue/txt2img", **{**SMALL, **body}).json()["task_id"]


def render(data: bytes = b"x") -> None:
    """A worker takes what waits and delivers all of it."""
    batch = begun()
    for image in batch.images:
        key = default_storage.save(f"{image.attempt_id}.png", ContentFile(data))
        picture = StoredPicture(key, "0" * 64, len(data), 64, 64, f"infotext {image.index}")
        image_deliver(batch=batch, image=image, picture=picture, gpu_us=1)


def read(answer: Any) -> bytes:
    async def whole() -> bytes:
        return b"".join([part async for part in answer])

    if answer.streaming:
        return async_to_sync(whole)() if answer.is_async else b"".join(answer)
    return answer.content


def test_a_queued_call_is_answered_at_once_with_its_task(door):
    answer = post(door, "queue/txt2img", **SMALL, batch_size=2)
    job = RenderJob.objects.get()
    assert answer.json() == {"task_id": str(job.pk)} and answer.headers["X-Job-Id"] == str(job.pk)
    assert (job.state, job.source, job.images_total, job.get_lane_display()) == (
        "queued",
        "agent-scheduler",
        2,
        "Standard",
    )


def test_a_task_may_be_named_and_repeating_the_call_makes_no_second_one(door):
    assert {queued(door, force_task_id="mine"), queued(door, force_task_id="mine")} == {"mine"}
    assert RenderJob.objects.count() == 1 and door.get(f"{BASE}/task/mine").json()["data"]["id"] == "mine"


def test_the_queue_lists_own_tasks_oldest_first(door):
    tasks = [queued(door) for _ in range(3)]
    shown = door.get(f"{BASE}/queue?limit=2&offset=1").json()
    assert [task["id"] for task in shown["pending_tasks"]] == tasks[1:]
    assert [task["position"] for task in shown["pending_tasks"]] == [1, 2]
    assert (shown["total_pending_tasks"], shown["current_task_id"], shown["paused"]) == (3, None, False)
    task = shown["pending_tasks"][0]
    assert (task["type"], task["status"], task["params"]["prompt"], task["params"]["seed"]) == (
        "txt2img", "pending", "a red circle", 7,
    )  # fmt: skip
    assert task["params"]["checkpoint"].startswith("mini.safetensors [")


def test_the_queue_asks_the_database_as_often_for_many_tasks_as_for_one(door):
    def queries() -> int:
        with CaptureQueriesContext(connection) as asked:
            door.get(f"{BASE}/queue")
        return len(asked)

    queued(door)
    one = queries()
    for _ in range(4):
        queued(door)
    assert queries() == one


def test_a_task_goes_from_the_queue_to_the_history(door):
    task = queued(door)
    assert door.get(f"{BASE}/task/{task}/position").json()["data"] == {"status": "pending", "position": 0}
    batch = begun()
    assert door.get(f"{BASE}/queue").json()["current_task_id"] == task
    image_fail(batch=batch, image=batch.images[0], code="nan", message="All NaN.", retryable=False)
    assert door.get(f"{BASE}/queue").json()["total_pending_tasks"] == 0
    shown = door.get(f"{BASE}/history?status=failed").json()
    assert shown["total"] == 1 and shown["tasks"][0]["status"] == "failed"
    assert door.get(f"{BASE}/history?status=done").json() == {"tasks": [], "total": 0}


def test_results_are_the_stored_files_with_their_infotexts(door):
    task = queued(door, batch_size=2)
    assert door.get(f"{BASE}/task/{task}/results").json() == {"success": False, "message": "Task is pending"}
    render(b"picture")
    answer = json.loads(read(door.get(f"{BASE}/task/{task}/results")))
    text = f"data:image/png;base64,{base64.b64encode(b'picture').decode()}"
    assert answer == {"success": True, "data": [{"image": text, "infotext": f"infotext {n}"} for n in (0, 1)]}
    shown = json.loads(door.get(f"{BASE}/task/{task}").json()["data"]["result"])
    assert shown == {"images": 2, "infotexts": ["infotext 0", "infotext 1"]}


def test_results_come_as_one_archive(door):
    task = queued(door, batch_size=2)
    render(b"picture")
    answer = door.get(f"{BASE}/results/{task}?zip=true")
    with zipfile.ZipFile(io.BytesIO(read(answer))) as archive:
        assert archive.namelist() == ["00000.png", "00001.png"] and archive.read("00001.png") == b"picture"


def test_deleting_a_waiting_task_ends_it_and_an_ended_one_stays(door):
    task = queued(door)
    assert door.delete(f"{BASE}/task/{task}").json() == {"success": True, "message": "Task deleted"}
    assert door.get(f"{BASE}/task/{task}").json()["data"]["status"] == "interrupted"
    assert door.delete(f"{BASE}/task/{task}").json()["success"] is False


def test_deleting_a_running_task_interrupts_it(door):
    task = queued(door)
    begun()
    assert post(door, f"delete/{task}").json() == {"success": True, "message": "Task interrupted"}
    assert RenderJob.objects.get().state == "cancelled"


def test_clearing_the_queue_ends_what_waits_and_leaves_what_runs(door):
    running = queued(door)
    begun()
    queued(door, prompt="another")
    assert post(door, "queue/clear").json()["success"]
    assert set(RenderJob.objects.values_list("pk", "state")) == {
        (job.pk, "running" if str(job.pk) == running else "cancelled") for job in RenderJob.objects.all()
    }


def test_a_requeued_task_is_a_new_job_with_the_same_request(door):
    task = queued(door)
    batch = begun()
    image_fail(batch=batch, image=batch.images[0], code="nan", message="All NaN.", retryable=False)
    assert post(door, f"task/{task}/requeue").json() == {"success": True, "message": "Task requeued"}
    assert post(door, "task/requeue-failed").json() == {"success": True, "message": "Requeued 1 failed tasks"}
    first, *others = RenderJob.objects.order_by("pk")
    assert [job.state for job in others] == ["queued", "queued"]
    assert all(job.request == first.request for job in others)


def test_checkpoint_and_vae_are_chosen_by_their_own_fields(door):
    a_checkpoint("other", is_default=False)
    a_checkpoint("clear", kind="vae", is_default=False)
    task = queued(door, checkpoint="other", vae="clear.safetensors")
    assert door.get(f"{BASE}/task/{task}").json()["data"]["params"]["checkpoint"].startswith("other.safetensors")
    assert RenderJob.objects.get().assets.filter(name="clear", kind="vae").exists()


def test_a_picture_may_be_queued_to_be_changed(door):
    answer = post(door, "queue/img2img", **SMALL, init_images=[picture_text()])
    assert answer.status_code == 200 and RenderJob.objects.get().kind == "img2img"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"steps": "many"}, 422),
        ({"checkpoint": "nope"}, 404),
        ({"script_name": "x/y/z plot"}, 501),
        ({"callback_url": "http://127.0.0.1/"}, 501),
        ({"n_iter": 101}, 422),
    ],
)
def test_what_cannot_be_queued_is_refused_and_nothing_is_stored(door, body, status):
    assert post(door, "queue/txt2img", **{**SMALL, **body}).status_code == status
    assert not RenderJob.objects.exists()


@pytest.mark.parametrize("path", ["queue/pause", "queue/resume", "history/clear"])
def test_what_a_shared_queue_cannot_do_is_refused_in_the_extensions_shape(door, path):
    answer = post(door, path)
    assert answer.status_code == 200 and answer.json()["success"] is False and answer.json()["message"]


def test_an_unknown_task_is_answered_as_the_extension_does(door):
    for path in ("task/nope", "task/nope/position", "task/nope/results", f"task/{'0' * 32}"):
        assert door.get(f"{BASE}/{path}").json() == {"success": False, "message": "Task not found"}


def test_progress_and_interrupt_do_not_concern_queued_tasks(door):
    task = queued(door, force_task_id="mine")
    assert door.get("/sdapi/v1/progress").json()["state"]["job_count"] == 0
    door.post("/sdapi/v1/interrupt")
    assert door.get(f"{BASE}/task/{task}").json()["data"]["status"] == "pending"


def test_progress_of_a_queued_task_is_found_by_its_id(door):
    task = queued(door)
    begun()
    answer = door.post("/internal/progress", {"id_task": task}, content_type="application/json").json()
    assert answer["active"] is True
