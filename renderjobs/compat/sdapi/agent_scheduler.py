"""The routes of the agent-scheduler extension: queue a call, follow it, fetch its pictures, look back. A task is a job underneath.

Tasks wait in the standard lane, behind calls that somebody waits for, and neither `/progress` nor `/interrupt` concern them. What
the extension can do and a shared queue cannot (stop it, reorder it, forget what was charged) is refused in the extension's shape.
"""

from __future__ import annotations

import base64
import json
import tempfile
import uuid
import zipfile
from collections.abc import AsyncIterator, Callable
from typing import Any

from asgiref.sync import sync_to_async
from django.core.files.storage import default_storage
from django.db.models import QuerySet
from django.http import FileResponse, HttpRequest, JsonResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase

from accounts.authentication import Caller
from common.errors import NotFoundError
from renderjobs.choices import JOB_OPEN, JOB_TERMINAL, ImageState, JobKind, JobState, Lane
from renderjobs.compat.sdapi import catalogue, wire
from renderjobs.compat.sdapi.door import authenticated, listing
from renderjobs.compat.sdapi.errors import HandlerError, speaks_sdapi
from renderjobs.compat.sdapi.views import generation_submit, warn
from renderjobs.models import RenderImage, RenderJob
from renderjobs.models.jobs import Source
from renderjobs.request import RenderRequest
from renderjobs.submission import job_cancel, job_submit

STATUS = {
    JobState.HELD: "pending",
    JobState.QUEUED: "pending",
    JobState.RUNNING: "running",
    JobState.SUCCEEDED: "done",
    JobState.PARTLY_SUCCEEDED: "done",
    JobState.FAILED: "failed",
    JobState.CANCELLED: "interrupted",
}
"""State of a job → the extension's word."""
ALL, BOOKMARKED = "all", "bookmarked"
MOST_TASKS = 100
"""Of one page, and of one call that acts on many tasks."""
PAGE = {
    "limit": wire.Field(wire.integer, 20, nullable=False),
    "offset": wire.Field(wire.integer, 0, nullable=False),
}
HISTORY = {**PAGE, "status": wire.Field(wire.text)}
RESULTS = {"zip": wire.Field(wire.boolean, False)}
EXTRA_FIELDS = {
    "checkpoint": wire.Field(wire.text),
    "vae": wire.Field(wire.text),
    "callback_url": wire.Field(wire.text),
}
TXT2IMG = {**wire.TXT2IMG, **EXTRA_FIELDS}
IMG2IMG = {**wire.IMG2IMG, **EXTRA_FIELDS}
SHOWN = (
    "prompt", "negative_prompt", "seed", "subseed", "subseed_strength", "steps", "cfg_scale", "width", "height",
    "batch_size", "n_iter", "denoising_strength",
)  # fmt: skip
"""Fields of a request that a task's ``params`` show under the same name."""
NOT_FOUND = "Task not found"
Answer = dict[str, Any]


# --- whose tasks ------------------------------------------------------------------------------------------------------


def tasks_of(caller: Caller) -> QuerySet[RenderJob]:
    """The caller's own, oldest first."""
    mine = RenderJob.objects.filter(team=caller.team, user=caller.user, source=Source.AGENT_SCHEDULER)
    return mine.select_related("checkpoint").order_by("pk")


def task_get(caller: Caller, task_id: str) -> RenderJob:
    """Raises: NotFoundError: There is none, or it is somebody else's."""
    tasks = tasks_of(caller)
    found = tasks.filter(task_id=task_id).first()
    if found is None and (key := _key(task_id)) is not None:
        found = tasks.filter(pk=key).first()
    if found is None:
        raise NotFoundError(NOT_FOUND)
    return found


def _key(task_id: str) -> uuid.UUID | None:
    try:
        return uuid.UUID(task_id)
    except ValueError:
        return None


def name_of(job: RenderJob) -> str:
    return job.task_id or str(job.pk)


# --- what is shown ----------------------------------------------------------------------------------------------------


def shown(job: RenderJob, *, iso: bool = False, **more: Any) -> Answer:
    """Args: iso: Whether moments are texts, as where one task is shown; in lists they are milliseconds."""
    created, updated = job.created_at, job.finished_at or job.started_at or job.created_at
    return {
        "id": name_of(job),
        "api_task_id": None,
        "api_task_callback": None,
        "name": None,
        "type": job.kind,
        "status": STATUS[JobState(job.state)],
        "params": params_of(job),
        "priority": int(created.timestamp() * 1000),
        "position": None,
        "result": None,
        "bookmarked": False,
        "created_at": created.isoformat() if iso else int(created.timestamp() * 1000),
        "updated_at": updated.isoformat() if iso else int(updated.timestamp() * 1000),
        **more,
    }


def params_of(job: RenderJob) -> Answer:
    """The request by A1111's names, without pictures, which the extension leaves out too."""
    asked = RenderRequest.from_json(job.request)
    named = {name: getattr(asked, name) for name in SHOWN}
    title = job.checkpoint.title if job.checkpoint else None
    return {**named, "sampler_name": asked.sampler, "scheduler": asked.schedule, "checkpoint": title}


def position_of(caller: Caller, job: RenderJob) -> int | None:
    """Among the caller's own, from 0: how many others wait is not theirs to know."""
    if STATUS[JobState(job.state)] != "pending":
        return None
    return tasks_of(caller).filter(state__in=JOB_OPEN, pk__lt=job.pk).count()


def delivered(job: RenderJob) -> QuerySet[RenderImage]:
    return job.images.filter(state=ImageState.DELIVERED).order_by("index")


# --- calls ------------------------------------------------------------------------------------------------------------


def queued(kind: str, fields: dict[str, wire.Field]) -> Any:
    @speaks_sdapi("POST")
    async def view(request: HttpRequest) -> HttpResponseBase:
        """Accept a call and answer at once with the task's id."""
        caller = await sync_to_async(authenticated)(request)
        body = wire.body_of(request.body)
        values = wire.parsed(body, {**fields, **wire.OURS})
        submitted = await sync_to_async(queue)(request, caller, body, values, kind)
        response = JsonResponse({"task_id": name_of(submitted.job)})
        warn(response, submitted)
        return response

    return view


def queue(request: HttpRequest, caller: Caller, body: Answer, values: Answer, kind: str) -> Any:
    """Raises: HandlerError: It asks for what a queued call has not."""
    if values["script_name"]:
        raise HandlerError(501, "Selectable scripts are not queued; call /sdapi/v1 with script_name.")
    if values["callback_url"]:
        raise HandlerError(501, "callback_url is not supported; ask for the task.")
    chosen = {"sd_model_checkpoint": values["checkpoint"] or values["sd_model_checkpoint"]}
    if values["vae"]:
        chosen["override_settings"] = {**(values["override_settings"] or {}), "sd_vae": values["vae"]}
    return generation_submit(
        request, caller, body, {**values, **chosen}, kind, source=Source.AGENT_SCHEDULER, lane=Lane.STANDARD
    )


def queue_shown(caller: Caller, request: HttpRequest) -> Answer:
    page = wire.parsed(request.GET.dict(), PAGE, place="query")
    waiting = tasks_of(caller).filter(state__in=JOB_OPEN)
    running = waiting.filter(state=JobState.RUNNING).first()
    first, last = bounds(page)
    return {
        "current_task_id": name_of(running) if running else None,
        "pending_tasks": [
            shown(job, position=position) for position, job in enumerate(waiting[first:last], start=first)
        ],
        "total_pending_tasks": waiting.count(),
        "paused": False,
    }


def history_shown(caller: Caller, request: HttpRequest) -> Answer:
    page = wire.parsed(request.GET.dict(), HISTORY, place="query")
    wanted = page["status"] or ALL
    states = [state for state in JOB_TERMINAL if wanted in (ALL, STATUS[state])]
    ended = tasks_of(caller).filter(state__in=states).order_by("-pk")
    first, last = bounds(page)
    return {"tasks": [shown(job) for job in ended[first:last]], "total": ended.count()}


def bounds(page: Answer) -> tuple[int, int]:
    """Of at most ``MOST_TASKS``; a limit of 0 is none, as with the extension."""
    first = min(max(0, page["offset"]), 2**31)
    limit = page["limit"] if page["limit"] > 0 else MOST_TASKS
    return first, first + min(limit, MOST_TASKS)


def task_shown(caller: Caller, task_id: str) -> Answer:
    job = task_get(caller, task_id)
    result = {"images": job.images_delivered, "infotexts": list(delivered(job).values_list("infotext", flat=True))}
    return {
        "success": True,
        "data": shown(
            job,
            iso=True,
            position=position_of(caller, job),
            result=json.dumps(result) if job.state in JOB_TERMINAL else None,
        ),
    }


def task_position(caller: Caller, task_id: str) -> Answer:
    job = task_get(caller, task_id)
    return {"success": True, "data": {"status": STATUS[JobState(job.state)], "position": position_of(caller, job)}}


def task_delete(caller: Caller, task_id: str) -> Answer:
    """End it. One that has ended stays: it has been charged."""
    job = task_get(caller, task_id)
    if job.state in JOB_TERMINAL:
        return refused("The task has ended and stays in the history.")
    job_cancel(job=job, cause="deleted by the caller")
    return done("Task interrupted" if job.state == JobState.RUNNING else "Task deleted")


def task_requeue(caller: Caller, task_id: str) -> Answer:
    requeue(caller, task_get(caller, task_id))
    return done("Task requeued")


def requeue_failed(caller: Caller) -> Answer:
    """The newest ones, as new tasks; the failed ones stay in the history."""
    failed = list(tasks_of(caller).filter(state=JobState.FAILED).order_by("-pk")[:MOST_TASKS])
    if not failed:
        return refused("No failed tasks")
    for job in reversed(failed):
        requeue(caller, job)
    return done(f"Requeued {len(failed)} failed tasks")


def requeue(caller: Caller, job: RenderJob) -> None:
    """Its pictures are stored already."""
    asked = RenderRequest.from_json(job.request)
    job_submit(caller=caller, request=asked, source=Source.AGENT_SCHEDULER, lane=Lane.STANDARD)


def queue_clear(caller: Caller) -> Answer:
    for job in tasks_of(caller).filter(state__in=(JobState.HELD, JobState.QUEUED))[:MOST_TASKS]:
        job_cancel(job=job, cause="the queue was cleared by the caller")
    return done("Queue cleared.")


def done(message: str) -> Answer:
    return {"success": True, "message": message}


def refused(message: str) -> Answer:
    return {"success": False, "message": message}


def acting(act: Callable[..., Answer], method: str = "POST") -> Any:
    """A call that acts on one task, or on all."""

    @speaks_sdapi(method)
    async def view(request: HttpRequest, **names: str) -> HttpResponseBase:
        return JsonResponse(await sync_to_async(lambda: answered(act, authenticated(request), names))())

    return view


def answered(act: Callable[..., Answer], caller: Caller, names: dict[str, str]) -> Answer:
    """An unknown task is no error of this interface but an answer."""
    try:
        return act(caller, **names)
    except NotFoundError as error:
        return refused(error.message)


def not_offered(message: str) -> Callable[..., Answer]:
    def act(caller: Caller, task_id: str = "", over_id: str = "") -> Answer:
        if task_id:
            task_get(caller, task_id)
        return refused(message)

    return act


def by_method(**views: Any) -> Any:
    @speaks_sdapi(*views)
    async def view(request: HttpRequest, **names: str) -> HttpResponseBase:
        return await views[request.method](request, **names)

    return view


def reading(read: Callable[[Caller, HttpRequest], Answer]) -> Any:
    @speaks_sdapi("GET")
    async def view(request: HttpRequest) -> HttpResponseBase:
        return JsonResponse(await sync_to_async(lambda: read(authenticated(request), request))())

    return view


# --- pictures ---------------------------------------------------------------------------------------------------------


@speaks_sdapi("GET")
async def results(request: HttpRequest, task_id: str) -> HttpResponseBase:
    """The stored files of a task that has ended: texts with their infotexts, or one archive."""
    caller = await sync_to_async(authenticated)(request)
    query = wire.parsed(request.GET.dict(), RESULTS, place="query")
    images = await sync_to_async(answered)(images_of_task, caller, {"task_id": task_id})
    if "success" in images:
        return JsonResponse(images)
    if query["zip"]:
        archive = await sync_to_async(archived, thread_sensitive=False)(images["images"])
        return FileResponse(archive, as_attachment=True, filename=f"results-{task_id}.zip")
    return StreamingHttpResponse(result_parts(images["images"]), content_type="application/json")


def images_of_task(caller: Caller, task_id: str) -> Answer:
    job = task_get(caller, task_id)
    if STATUS[JobState(job.state)] != "done":
        return refused(f"Task is {STATUS[JobState(job.state)]}")
    return {"images": list(delivered(job))}


async def result_parts(images: list[RenderImage]) -> AsyncIterator[bytes]:
    """One picture in memory at a time."""
    yield b'{"success": true, "data": ['
    for number, image in enumerate(images):
        text = await sync_to_async(data_uri, thread_sensitive=False)(image)
        yield (b", " if number else b"") + json.dumps({"image": text, "infotext": image.infotext}).encode()
    yield b"]}"


def data_uri(image: RenderImage) -> str:
    kind = image.file_key.rpartition(".")[2]
    with default_storage.open(image.file_key) as file:
        return f"data:image/{kind};base64,{base64.b64encode(file.read()).decode()}"


def archived(images: list[RenderImage]) -> Any:
    """An archive on disk; the answer that sends it closes it."""
    file = tempfile.TemporaryFile()  # noqa: SIM115
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for image in images:
            with default_storage.open(image.file_key) as picture:
                archive.writestr(f"{image.index:05}.{image.file_key.rpartition('.')[2]}", picture.read())
    file.seek(0)
    return file


# --- views ------------------------------------------------------------------------------------------------------------

SHARED = "The queue is shared: it is not stopped and not reordered by those who wait in it."
KEPT = "What has been charged stays in the history."
NO_NOTES = "Tasks have no names and bookmarks here; use tags of the job API."

samplers = listing(lambda _: [row["name"] for row in catalogue.samplers()])
sd_models = listing(lambda caller: [row["title"] for row in catalogue.sd_models(caller)])
queue_txt2img = queued(JobKind.TXT2IMG, TXT2IMG)
queue_img2img = queued(JobKind.IMG2IMG, IMG2IMG)
queue_state = reading(queue_shown)
history = reading(history_shown)
task = by_method(
    GET=acting(task_shown, "GET"),
    DELETE=acting(task_delete, "DELETE"),
    PUT=acting(not_offered("A task is not changed once it is accepted."), "PUT"),
)
position = acting(task_position, "GET")
delete = acting(task_delete)
requeue_one = acting(task_requeue)
requeue_all = acting(requeue_failed)
clear = acting(queue_clear)
clear_history = acting(not_offered(KEPT))
shared_queue = acting(not_offered(SHARED))
no_notes = acting(not_offered(NO_NOTES))
