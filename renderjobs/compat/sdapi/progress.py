"""What a progress bar shows: of the caller's own calls only, from the rows, with a preview where somebody looks.

A1111 counts passes and steps of one job at a time. Here micro-batches of one call run side by side, so its counters are those that
A1111 would show at the same fraction of the work.
"""

from __future__ import annotations

import base64
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db.models import QuerySet
from django.db.models.functions import Now

from accounts.authentication import Caller
from renderjobs.choices import IMAGE_HELD, JOB_OPEN, JOB_TERMINAL, JobKind, JobState
from renderjobs.compat.sdapi.profile import profile_of
from renderjobs.models import RenderImage, RenderJob, ScriptCall
from renderjobs.models.jobs import Source
from renderjobs.previews import preview_ask
from renderjobs.request import RenderRequest
from renderjobs.selectors import JobProgress, jobs_progress

LISTED_TASKS = 100
LISTED_NAME = re.compile(r"(task\(\w+-)?(?P<id>[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12})(?(1)\)|)")
"""What a task is called that got no name from its caller: by A1111's routes, and by agent-scheduler's, without the frame."""
PREVIEWS = "live_previews_enable"
GENERATIONS = (JobKind.TXT2IMG, JobKind.IMG2IMG)


@dataclass(frozen=True, slots=True)
class Bar:
    """A1111's counters at ``fraction`` of the work."""

    fraction: float
    eta_seconds: float | None
    job: str
    job_count: int
    job_no: int
    sampling_step: int
    sampling_steps: int


# --- whose work -------------------------------------------------------------------------------------------------------


def own_calls(caller: Caller, *sources: str) -> QuerySet[RenderJob]:
    """Jobs that came in by this door; a batch of another is not the progress bar's, nor may a stray interrupt end it.

    Args:
        sources: Doors that are asked for instead.
    """
    mine = RenderJob.objects.filter(team=caller.team, user=caller.user, source__in=sources or (Source.SDAPI,))
    return mine.select_related("script_call").annotate(now=Now()).order_by("-pk")


def own_job(caller: Caller) -> RenderJob | None:
    """The newest that runs, else the newest that waits."""
    mine = own_calls(caller).filter(state__in=JOB_OPEN)
    return mine.filter(state=JobState.RUNNING).first() or mine.first()


def same_call(job: RenderJob) -> list[RenderJob]:
    """The job, or all jobs of the script it belongs to."""
    if job.script_call is None:
        return [job]
    jobs = RenderJob.objects.filter(script_call=job.script_call).annotate(now=Now())
    return list(jobs.order_by("script_cell"))


def jobs_of_task(caller: Caller, task_id: str) -> list[RenderJob]:
    """Of the task that its caller named so, or that ``pending_tasks`` lists so; none when it is not the caller's."""
    mine, own = own_calls(caller, Source.SDAPI, Source.AGENT_SCHEDULER), {"team": caller.team, "user": caller.user}
    if job := mine.filter(task_id=task_id).first():
        return [job]
    if call := ScriptCall.objects.filter(**own, task_id=task_id).first():
        return list(mine.filter(script_call=call).order_by("script_cell"))
    listed = LISTED_NAME.fullmatch(task_id)
    found = mine.filter(pk=listed["id"]).first() if listed else None
    return same_call(found) if found else []


# --- GET /progress ----------------------------------------------------------------------------------------------------


def progress_of(caller: Caller, *, preview: bool) -> dict[str, Any]:
    job = own_job(caller)
    if job is None:
        return _idle(own_calls(caller).first())
    jobs = same_call(job)
    bar = bar_of(jobs)
    shown = newest_preview(caller, jobs) if preview else None
    return {
        "progress": min(1.0, 0.01 + bar.fraction),
        "eta_relative": bar.eta_seconds or 0.0,
        "state": {**_state(jobs[0]), "job": bar.job, "job_count": bar.job_count, "job_no": bar.job_no,
                  "sampling_step": bar.sampling_step, "sampling_steps": bar.sampling_steps},
        "current_image": base64.b64encode(shown).decode() if shown else None,
        "textinfo": None if job.state == JobState.RUNNING else "Waiting...",
    }  # fmt: skip


def _idle(last: RenderJob | None) -> dict[str, Any]:
    """Nothing is under way; some counters stay as the last call left them."""
    state = _state(last)
    if last is not None:
        bar = bar_of([last])
        state |= {"job_no": bar.job_no, "sampling_steps": bar.sampling_steps}
        state["interrupted"] = last.state == JobState.CANCELLED
    return {"progress": 0.0, "eta_relative": 0.0, "state": state, "current_image": None, "textinfo": None}


def _state(job: RenderJob | None) -> dict[str, Any]:
    return {
        "skipped": False,
        "interrupted": False,
        "stopping_generation": False,
        "job": "",
        "job_count": 0,
        "job_timestamp": f"{job.created_at:%Y%m%d%H%M%S}" if job else "0",
        "job_no": 0,
        "sampling_step": 0,
        "sampling_steps": 0,
    }


# --- POST /internal/progress and GET /internal/pending-tasks ----------------------------------------------------------


def task_progress(caller: Caller, *, task_id: str | None, seen_preview: int, preview: bool) -> dict[str, Any]:
    """Progress of one task of the caller; another's is as unknown as one that never was.

    Args:
        seen_preview: The id of the preview that the client has; the same one is not sent again.
    """
    jobs = jobs_of_task(caller, task_id) if task_id else []
    active = any(one.state == JobState.RUNNING for one in jobs)
    queued = not active and any(one.state in JOB_OPEN for one in jobs)
    answer = {"active": active, "queued": queued, "completed": bool(jobs) and not active and not queued}
    if not active:
        text = _place_in_queue(caller, jobs) if queued else "Waiting..."
        return {**answer, "progress": None, "eta": None, "live_preview": None, "id_live_preview": -1, "textinfo": text}
    bar = bar_of(jobs)
    shown = newest_preview(caller, jobs) if preview else None
    number = zlib.crc32(shown) if shown else seen_preview
    fresh = shown if number != seen_preview else None
    return {
        **answer,
        "progress": bar.fraction,
        "eta": bar.eta_seconds,
        "live_preview": f"data:image/png;base64,{base64.b64encode(fresh).decode()}" if fresh else None,
        "id_live_preview": number,
        "textinfo": None,
    }


def _place_in_queue(caller: Caller, jobs: Sequence[RenderJob]) -> str:
    """Among the caller's own: how many others wait is not theirs to know."""
    first = min(job.pk for job in jobs if job.state in JOB_OPEN)
    waiting = own_calls(caller, jobs[0].source).filter(state=JobState.QUEUED)
    return f"In queue: {waiting.filter(pk__lte=first).count()}/{waiting.count()}"


def pending_tasks(caller: Caller) -> dict[str, Any]:
    """What waits, oldest first; what has no name of its caller's goes by its kind and id."""
    waiting = own_calls(caller).filter(state=JobState.QUEUED).order_by("pk")
    return {"size": waiting.count(), "tasks": [task_name(job) for job in waiting[:LISTED_TASKS]]}


def task_name(job: RenderJob) -> str:
    given = job.task_id or (job.script_call.task_id if job.script_call else "")
    return given or f"task({job.kind}-{job.pk})"


# --- counting ---------------------------------------------------------------------------------------------------------


def bar_of(jobs: Sequence[RenderJob]) -> Bar:
    """The counters of one call's jobs; they come with ``now``."""
    made = jobs_progress(jobs)
    images = sum(job.images_total for job in jobs)
    fraction = sum(_done(made[job.pk], job) for job in jobs) / images
    batches, passes, steps = 0, 1, 0
    for job in jobs:
        count, per_batch, of_pass = _passes(job, made[job.pk])
        batches, passes, steps = batches + count, max(passes, per_batch), max(steps, of_pass)
    total = batches * passes
    at = min(fraction * total, total)
    open_jobs = [job for job in jobs if job.state in JOB_OPEN]
    whole = min(int(at), total - 1) if open_jobs else int(at)
    return Bar(
        fraction=fraction,
        eta_seconds=_eta(jobs, fraction),
        job=_name(jobs[0], whole // passes, batches),
        job_count=total,
        job_no=whole,
        sampling_step=round((at - whole) * steps),
        sampling_steps=steps,
    )


def _done(made: JobProgress, job: RenderJob) -> float:
    """In images."""
    if job.state in JOB_TERMINAL:
        return job.images_delivered if job.state == JobState.CANCELLED else job.images_total
    return made.fraction * job.images_total


def _passes(job: RenderJob, made: JobProgress) -> tuple[int, int, int]:
    """Batches, passes of each, and steps of a pass."""
    if job.kind not in GENERATIONS:
        return job.images_total, 1, made.steps
    asked = RenderRequest.from_json(job.request)
    if asked.hires is not None:
        return asked.n_iter, 2, asked.steps
    return asked.n_iter, 1, made.steps or asked.steps


def _name(job: RenderJob, batch: int, batches: int) -> str:
    if job.kind not in GENERATIONS:
        return str(job.kind)
    return f"scripts_{job.kind}" if batches == 1 else f"Batch {min(batch + 1, batches)} out of {batches}"


def _eta(jobs: Sequence[RenderJob], fraction: float) -> float | None:
    begun: list[datetime] = [job.started_at for job in jobs if job.started_at is not None]
    if not fraction or not begun:
        return None
    elapsed = (jobs[0].now - min(begun)).total_seconds()  # type: ignore[attr-defined]
    return round(elapsed / fraction - elapsed, 1)


def newest_preview(caller: Caller, jobs: Sequence[RenderJob]) -> bytes | None:
    """Of the image that a worker is at, as PNG; None while there is none, or the caller has switched previews off."""
    held = RenderImage.objects.filter(job__in=jobs, state__in=IMAGE_HELD).order_by("job_id", "index")
    image_id = held.values_list("pk", flat=True).first()
    if image_id is None or not profile_of(caller).get(PREVIEWS, True):
        return None
    return preview_ask(image_id)
