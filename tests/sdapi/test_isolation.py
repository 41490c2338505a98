"""Every route of the door with two callers at once: the one neither sees nor stops what is the other's."""

from __future__ import annotations

from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.test import Client

from accounts.authentication import Caller
from assets.models import Access, AssetKind, PromptStyle
from renderjobs.compat.sdapi.urls import PREFIXES, ROUTES
from renderjobs.models import OptionProfile, RenderJob
from tests.factories import a_caller, a_checkpoint, a_job, a_platform
from tests.sdapi.test_controlnet import picture_text

pytestmark = pytest.mark.django_db(transaction=True)
SECRET = "confidential"
TASK, SCHEDULED = f"task({SECRET})", f"{SECRET}-scheduled"
SMALL = {"prompt": "x", "width": 64, "height": 64, "steps": 1}
GET: dict[str, Any] | None = None
CALLS: dict[str, dict[str, Any] | list[Any] | None] = {
    "sdapi/v1/txt2img": SMALL,
    "sdapi/v1/img2img": {**SMALL, "init_images": [picture_text()]},
    "sdapi/v1/png-info": {"image": picture_text()},
    "sdapi/v1/extra-single-image": {"image": picture_text()},
    "sdapi/v1/extra-batch-images": {"imageList": [{"data": picture_text(), "name": "a"}]},
    "sdapi/v1/progress": GET,
    "sdapi/v1/interrupt": {},
    "sdapi/v1/skip": {},
    "sdapi/v1/options": {"CLIP_stop_at_last_layers": 3},
    "sdapi/v1/interrogate": {"image": picture_text()},
    "sdapi/v1/unload-checkpoint": {},
    "sdapi/v1/reload-checkpoint": {},
    "controlnet/detect": {"controlnet_input_images": [picture_text()]},
    "controlnet/render_openpose_json": [],
    **{f"sdapi/v1/{name}": {} for name in ROUTES if name.startswith(("create/", "train/", "refresh-", "server-"))},
    **{
        f"sdapi/v1/{name}": GET
        for name in (
            "sd-models", "samplers", "schedulers", "upscalers", "latent-upscale-modes", "sd-vae", "hypernetworks",
            "face-restorers", "loras", "prompt-styles", "embeddings", "scripts", "script-info", "realesrgan-models",
            "extensions", "memory", "cmd-flags",
        )
    },
    "internal/progress": {"id_task": TASK},
    **{
        f"internal/{name}": GET
        for name in ("pending-tasks", "ping", "quicksettings-hint", "profile-startup", "sysinfo", "sysinfo-download")
    },
    **{f"sd_extra_networks/{name}": GET for name in ("metadata", "get-single-card", "thumb", "cover-images")},
    **{f"controlnet/{name}": GET for name in ("version", "settings", "model_list", "module_list", "control_types")},
    "agent-scheduler/v1/queue/txt2img": SMALL,
    "agent-scheduler/v1/queue/img2img": {**SMALL, "init_images": [picture_text()]},
    **{
        f"agent-scheduler/v1/{name}": GET
        for name in (
            "samplers", "sd-models", "queue", "history", "task/<str:task_id>", "task/<str:task_id>/position",
            "task/<str:task_id>/results", "results/<str:task_id>",
        )
    },
    **{
        f"agent-scheduler/v1/{name}": {}
        for name in (
            "queue/pause", "queue/resume", "queue/clear", "pause", "resume", "history/clear", "task/requeue-failed",
            "task/<str:task_id>/run", "task/<str:task_id>/requeue", "task/<str:task_id>/move/<str:over_id>",
            "task/<str:task_id>/bookmark", "task/<str:task_id>/unbookmark", "task/<str:task_id>/rename",
            "run/<str:task_id>", "requeue/<str:task_id>", "delete/<str:task_id>", "bookmark/<str:task_id>",
            "unbookmark/<str:task_id>", "rename/<str:task_id>", "move/<str:task_id>/<str:over_id>",
        )
    },
}  # fmt: skip
"""Route → the body of a call, or a GET."""


def test_every_route_is_called_here():
    assert set(CALLS) == {f"{prefix}/{name}" for prefix, routes in PREFIXES.items() for name in routes}


@pytest.fixture
def owner_job() -> RenderJob:
    """A team's running job, and everything else of theirs that has a name."""
    a_platform()
    owner = a_caller("team-a", "ada")
    for kind in AssetKind.values:
        a_checkpoint(f"{SECRET}-{kind}", kind=kind, is_default=False, access=Access.TEAMS).teams.set([owner.team])
    PromptStyle.objects.create(team=owner.team, name=SECRET, prompt=SECRET)
    OptionProfile.objects.create(team=owner.team, user=owner.user, values={"CLIP_stop_at_last_layers": 2})
    job = a_job(owner, prompt=SECRET)
    RenderJob.objects.filter(pk=job.pk).update(state="running", source="sdapi", started_at=job.created_at, task_id=TASK)
    return job


@pytest.fixture
def stranger(monkeypatch) -> Client:
    """Another team's caller, whose own jobs end at once."""
    caller = a_caller("rivals", "eve")

    async def end_own(job_id: object) -> None:
        await sync_to_async(RenderJob.objects.filter(pk=job_id, team=caller.team).update)(state="cancelled")

    monkeypatch.setattr("renderjobs.compat.sdapi.views.job_wait", end_own)
    return Client(headers={"Authorization": f"Bearer {caller.token.text}"})


def whole(answer: Any) -> bytes:
    async def read() -> bytes:
        return b"".join([part async for part in answer])

    return async_to_sync(read)() if answer.streaming else answer.content


def test_n10_a_stranger_neither_sees_nor_stops_anothers_work(owner_job, stranger):
    """All routes in one test: an emptied database for each would take most of the time."""
    scheduled = a_job(Caller(owner_job.user, owner_job.team, owner_job.token), prompt=SECRET)
    RenderJob.objects.filter(pk=scheduled.pk).update(source="agent-scheduler", task_id=SCHEDULED)
    for route, body in CALLS.items():
        path = f"/{route}".replace("<str:task_id>", SCHEDULED).replace("<str:over_id>", "top")
        answer = stranger.get(path) if body is None else stranger.post(path, body, content_type="application/json")
        assert answer.status_code in (200, 404, 500, 501) and SECRET.encode() not in whole(answer), route
        owner_job.refresh_from_db()
        scheduled.refresh_from_db()
        assert scheduled.state == "queued", route
        assert owner_job.state == "running" and not owner_job.images.exclude(state="waiting").exists(), route
        assert OptionProfile.objects.get(team=owner_job.team).values == {"CLIP_stop_at_last_layers": 2}, route
    for call in (stranger.delete, stranger.put):
        assert call(f"/agent-scheduler/v1/task/{SCHEDULED}").json() == {"success": False, "message": "Task not found"}
    scheduled.refresh_from_db()
    assert scheduled.state == "queued"


@pytest.mark.parametrize(
    "route",
    [f"{prefix}/{kind}" for prefix in ("sdapi/v1", "agent-scheduler/v1/queue") for kind in ("txt2img", "img2img")],
)
@pytest.mark.parametrize("named", ["checkpoint", "style", "lora"])
def test_what_is_anothers_cannot_be_used_by_its_name(owner_job, stranger, route, named):
    body = {
        "checkpoint": {"override_settings": {"sd_model_checkpoint": f"{SECRET}-checkpoint"}},
        "style": {"styles": [SECRET]},
        "lora": {"prompt": f"x <lora:{SECRET}-lora:1>"},
    }[named]
    answer = stranger.post(f"/{route}", {**CALLS[route], **body}, content_type="application/json")
    own = RenderJob.objects.filter(team__name="rivals").first()
    if named == "checkpoint":
        assert (answer.status_code, own) == (404, None)
    else:
        assert not own.assets.filter(name__startswith=SECRET).exists() and own.request["prompt"].startswith("x")
