"""Progress of a caller's own calls: A1111's counters at every stage, by task id, and previews for who looks."""

from __future__ import annotations

import base64
import json
from datetime import timedelta
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

from renderjobs.models import Claim, OptionProfile, RenderJob, ScriptCall
from renderjobs.previews import preview_put, previews_asked
from renderjobs.submission import job_cancel
from tests.engine.recordings import A1111, needs_recordings
from tests.factories import a_caller, a_job, a_platform
from tests.renderjobs.test_delivery import begun, deliver

pytestmark = pytest.mark.django_db
TASK = "task(mine)"


def client_of(**caller: Any) -> Client:
    return Client(headers={"Authorization": f"Bearer {a_caller(**caller).token.text}"})


@pytest.fixture
def door() -> Client:
    a_platform()
    return client_of()


def a_call(*, task_id: str = "", **request: Any) -> RenderJob:
    """A job of the caller that came in by this door."""
    job = a_job(steps=20, **request)
    RenderJob.objects.filter(pk=job.pk).update(source="sdapi", task_id=task_id)
    return job


def rendering(step: int, steps: int = 20) -> Any:
    """A worker has begun the oldest call and is at ``step``."""
    batch = begun()
    Claim.objects.filter(pk=batch.claim_id).update(step=step, steps=steps)
    return batch


def progress(door: Client, query: str = "") -> dict[str, Any]:
    return door.get(f"/sdapi/v1/progress{query}").json()


def task(door: Client, task_id: str | None = TASK, **body: Any) -> dict[str, Any]:
    return door.post("/internal/progress", {"id_task": task_id, **body}, content_type="application/json").json()


def counters(shown: dict[str, Any]) -> tuple[int, ...]:
    return tuple(shown["state"][name] for name in ("job_count", "job_no", "sampling_step", "sampling_steps"))


# --- GET /progress ----------------------------------------------------------------------------------------------------


def test_idle_is_what_clients_wait_for(door, broker):
    shown = progress(door)
    assert shown["progress"] == 0 and counters(shown) == (0, 0, 0, 0) and shown["state"]["job_timestamp"] == "0"


@needs_recordings
def test_a_running_call_counts_as_recorded(door, broker):
    seen = json.loads((A1111 / "api" / "live_force_task_id.json").read_text())["log"][0]["body"]
    a_call()
    rendering(seen["state"]["sampling_step"])
    shown = progress(door)
    assert shown["progress"] == pytest.approx(seen["progress"])
    same = {**seen["state"], "job_timestamp": shown["state"]["job_timestamp"]}
    assert shown["state"] == same and list(shown) == list(seen)


@pytest.mark.parametrize(
    ("request_fields", "step", "expected", "name"),
    [
        ({"n_iter": 2}, 10, (2, 1, 0, 20), "Batch 2 out of 2"),
        ({"n_iter": 2}, 5, (2, 0, 10, 20), "Batch 1 out of 2"),
        ({"batch_size": 2}, 5, (1, 0, 5, 20), "scripts_txt2img"),
        ({"hires": {"scale": 2.0, "upscaler": "Latent"}}, 5, (2, 0, 10, 20), "scripts_txt2img"),
    ],
)
def test_batches_and_passes_are_counted_as_a1111_would_at_this_point(
    door, broker, request_fields, step, expected, name
):
    a_call(**({"denoising_strength": 0.5} if "hires" in request_fields else {}), **request_fields)
    rendering(step)
    shown = progress(door)
    assert counters(shown) == expected and shown["state"]["job"] == name


def test_the_time_left_follows_from_the_time_taken(door, broker):
    job = a_call()
    rendering(5)
    began = timezone.now() - timedelta(seconds=10)
    RenderJob.objects.filter(pk=job.pk).update(started_at=began)
    left, taken = progress(door)["eta_relative"], (timezone.now() - began).total_seconds()
    assert 3 * 10 - 0.1 < left < 3 * taken + 0.1  # a quarter is done


def test_what_waits_is_not_idle(door, broker):
    a_call()
    shown = progress(door)
    assert shown["progress"] > 0 and shown["state"]["job_count"] == 1 and shown["textinfo"] == "Waiting..."


def test_after_the_end_the_last_calls_numbers_stay(door, broker):
    job = a_call()
    deliver(rendering(20))
    shown = progress(door)
    assert shown["progress"] == 0 and counters(shown) == (0, 1, 0, 20)
    assert shown["state"]["job_timestamp"] == f"{job.created_at:%Y%m%d%H%M%S}" and not shown["state"]["interrupted"]


def test_an_interrupted_call_stays_shown_as_such(door, broker):
    job_cancel(job=a_call())
    shown = progress(door)
    assert shown["state"]["interrupted"] and counters(shown)[:2] == (0, 0)


def test_a_script_is_one_progress_bar(door, broker):
    caller, now = a_caller(), timezone.now()
    call = ScriptCall.objects.create(
        team=caller.team, user=caller.user, tab="txt2img", body_key="x", random_seed=1, created_at=now, task_id=TASK
    )
    jobs = [a_call(), a_call(seed=7)]
    for cell, job in enumerate(jobs):
        RenderJob.objects.filter(pk=job.pk).update(script_call=call, script_cell=cell)
    rendering(10)
    assert counters(progress(door))[0] == 2 and task(door)["active"]


@pytest.mark.parametrize(("query", "status"), [("?skip_current_image=true", 200), ("?skip_current_image=maybe", 422)])
def test_the_querys_flag_is_read_as_a_flag(door, broker, query, status):
    answer = door.get(f"/sdapi/v1/progress{query}")
    assert answer.status_code == status
    assert status == 200 or answer.json()["detail"][0]["loc"] == ["query", "skip_current_image"]


# --- previews ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def drawn(door, broker) -> int:
    """The id of an image that is being rendered and has a preview."""
    a_call(task_id=TASK)
    image = rendering(10).images[0].image_id
    preview_put(image, b"a picture")
    return image


def test_progress_has_the_newest_preview_as_bare_base64(door, drawn):
    assert base64.b64decode(progress(door)["current_image"]) == b"a picture"


def test_nobody_asks_for_a_preview_by_a_look_without_one(door, drawn):
    assert progress(door, "?skip_current_image=true")["current_image"] is None
    assert task(door, live_preview=False)["live_preview"] is None
    assert previews_asked([drawn]) == set()


def test_a_caller_can_switch_previews_off(door, drawn):
    caller = a_caller()
    OptionProfile.objects.create(team=caller.team, user=caller.user, values={"live_previews_enable": False})
    assert progress(door)["current_image"] is None and previews_asked([drawn]) == set()


def test_a_task_gets_a_preview_once(door, drawn):
    first = task(door)
    assert base64.b64decode(first["live_preview"].removeprefix("data:image/png;base64,")) == b"a picture"
    again = task(door, id_live_preview=first["id_live_preview"])
    assert again["live_preview"] is None and again["id_live_preview"] == first["id_live_preview"]
    preview_put(drawn, b"another")
    assert task(door, id_live_preview=first["id_live_preview"])["live_preview"]


# --- POST /internal/progress ------------------------------------------------------------------------------------------


def flags(shown: dict[str, Any]) -> tuple[bool, bool, bool]:
    return shown["active"], shown["queued"], shown["completed"]


def test_a_task_waits_runs_and_ends(door, broker):
    a_call(width=128)
    a_call(task_id=TASK)
    assert flags(task(door)) == (False, True, False) and task(door)["textinfo"] == "In queue: 2/2"
    deliver(rendering(20))
    batch = rendering(10)
    shown = task(door)
    assert flags(shown) == (True, False, False) and shown["progress"] == 0.5
    deliver(batch, key="b.png")
    assert flags(task(door)) == (False, False, True)


@pytest.mark.parametrize("task_id", ["task(nobody's)", None, "", "task(txt2img-00000000-0000-0000-0000-000000000000)"])
def test_an_unknown_task_is_in_no_state(door, broker, task_id):
    assert task(door, task_id) == {
        "active": False, "queued": False, "completed": False, "progress": None, "eta": None, "live_preview": None,
        "id_live_preview": -1, "textinfo": "Waiting...",
    }  # fmt: skip


def test_anothers_task_is_unknown(door, drawn):
    for other in (client_of(user="bob"), client_of(team="rivals", user="eve")):
        assert flags(task(other)) == (False, False, False)


def test_pending_tasks_are_the_callers_own_that_wait(door, broker):
    named, nameless = a_call(task_id=TASK), a_call()
    listed = door.get("/internal/pending-tasks").json()
    assert listed == {"size": 2, "tasks": [TASK, f"task(txt2img-{nameless.pk})"]} and named.task_id == ""
    assert all(task(door, name)["queued"] for name in listed["tasks"])
    assert client_of(user="bob").get("/internal/pending-tasks").json() == {"size": 0, "tasks": []}
