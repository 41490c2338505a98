"""The calls of `/sdapi/v1`. A synchronous call is a job underneath: submit, wait without a thread, answer from the rows."""

from __future__ import annotations

import base64
import json
import re
import uuid
from collections.abc import Callable
from typing import Any

from asgiref.sync import sync_to_async
from django.conf import settings
from django.core.files.storage import default_storage
from django.db.models.functions import Now
from django.http import HttpRequest, HttpResponse, JsonResponse

from accounts.authentication import Caller, caller_of
from accounts.models import Scope
from assets.selectors import checkpoint_find
from common.errors import FieldError, InvalidRequestError
from renderjobs.choices import JOB_OPEN, ImageState, JobState, Lane
from renderjobs.compat.sdapi import catalogue, wire
from renderjobs.compat.sdapi.errors import HandlerError, speaks_sdapi
from renderjobs.compat.sdapi.infotext import VERSION
from renderjobs.compat.sdapi.profile import options_of
from renderjobs.compat.sdapi.translate import to_request
from renderjobs.grids import grid_ensure
from renderjobs.models import RenderImage, RenderJob
from renderjobs.models.jobs import Source
from renderjobs.request import RenderRequest
from renderjobs.selectors import job_progress
from renderjobs.submission import Submitted, job_cancel, job_submit
from renderjobs.waiting import job_wait

TASK_ID = re.compile(r"[\x21-\x7e][\x20-\x7e]{0,119}")


@speaks_sdapi("POST")
async def txt2img(request: HttpRequest) -> HttpResponse:
    """Render and answer in A1111's shape. Repeating the call with its task id or Idempotency-Key waits for the same job."""
    body = wire.body_of(request.body)
    values = wire.parsed(body, {**wire.TXT2IMG, **wire.OURS})
    submitted = await sync_to_async(submit)(request, body, values)
    await job_wait(submitted.job.pk)
    answer = await sync_to_async(result_of)(submitted.job.pk, values)
    response = HttpResponse(answer, content_type="application/json")
    response["X-Job-Id"] = str(submitted.job.pk)
    if ignored := [name for name in body if name not in wire.TXT2IMG and name not in wire.OURS]:
        response["X-Ignored-Fields"] = ", ".join(re.sub(r"[^\w.-]", "_", name)[:64] for name in ignored[:20])
    return response


@speaks_sdapi("GET")
async def progress(request: HttpRequest) -> HttpResponse:
    """The caller's own work: the newest job that runs, else the newest that waits."""
    return JsonResponse(await sync_to_async(progress_of)(request))


@speaks_sdapi("POST")
async def interrupt(request: HttpRequest) -> HttpResponse:
    """End the caller's running job; what is delivered stays, and the waiting call answers with it."""
    await sync_to_async(interrupt_own)(request)
    return JsonResponse({})


@speaks_sdapi("GET", "POST")
async def options(request: HttpRequest) -> HttpResponse:
    if request.method == "POST":
        await sync_to_async(options_refused)(request)
        return JsonResponse(None, safe=False)
    return JsonResponse(await sync_to_async(lambda: options_of(authenticated(request)))())


def listing(read: Callable[[Caller], Any]) -> Any:
    """A GET that shows a list."""

    @speaks_sdapi("GET")
    async def view(request: HttpRequest) -> HttpResponse:
        found = await sync_to_async(lambda: read(authenticated(request)))()
        return JsonResponse(found, safe=False)

    return view


sd_models = listing(catalogue.sd_models)
samplers = listing(lambda _: catalogue.samplers())
schedulers = listing(lambda _: catalogue.schedulers())
upscalers = listing(lambda _: catalogue.upscalers())
latent_upscale_modes = listing(lambda _: catalogue.latent_upscale_modes())
nothing_yet = listing(lambda _: [])
no_embeddings = listing(lambda _: {"loaded": {}, "skipped": {}})


def authenticated(request: HttpRequest) -> Caller:
    """Raises: HandlerError: No usable token (401), or one without the scope (403)."""
    header = request.headers.get("Authorization", "")
    caller = caller_of(header) if header.strip() else None
    if caller is None:
        raise HandlerError(401, "Incorrect username or password" if header.strip() else "Not authenticated")
    caller.require(Scope.SDAPI)
    return caller


def submit(request: HttpRequest, body: dict[str, Any], values: dict[str, Any]) -> Submitted:
    caller = authenticated(request)
    render = to_request(values, options=options_of(caller))
    if render.images_total > settings.MAX_SYNC_IMAGES:
        message = (
            f"n_iter x batch_size is {render.images_total}; a synchronous call makes at most {settings.MAX_SYNC_IMAGES} "
            "images. POST /api/v1/jobs takes more."
        )
        raise InvalidRequestError([FieldError("n_iter", message)])
    if render.checkpoint and checkpoint_find(caller, render.checkpoint) is None:
        # A1111 drops an unknown name and renders with another checkpoint; see docs/decisions.
        raise HandlerError(404, f"model '{render.checkpoint}' not found")
    task_id = values["force_task_id"] or ""
    if task_id and not TASK_ID.fullmatch(task_id):
        raise InvalidRequestError(
            [FieldError("force_task_id", "force_task_id must be 1 to 120 printable ASCII characters.")]
        )
    return job_submit(
        caller=caller,
        request=render,
        source=Source.SDAPI,
        body=body,
        idempotency_key=request.headers.get("Idempotency-Key", "")[:255],
        task_id=task_id,
        lane=Lane.INTERACTIVE,
    )


def result_of(job_id: uuid.UUID, values: dict[str, Any]) -> str:
    """The body of A1111's answer; pictures are the stored bytes.

    Raises:
        HandlerError: The job failed; with the reason that was recorded.
    """
    job = RenderJob.objects.select_related("checkpoint").get(pk=job_id)
    images = list(job.images.filter(state=ImageState.DELIVERED).order_by("index"))
    if not images and job.state == JobState.FAILED:
        raise HandlerError(500, job.error_message or "The job failed.", error="RuntimeError")
    keys = [image.file_key for image in images]
    with_grid = values["save_images"] and len(images) > 1
    if with_grid:
        keys.insert(0, grid_ensure(job))
    pictures = [encoded(key) for key in keys] if values["send_images"] else []
    info = info_of(job, images, values, with_grid=with_grid)
    echo = {name: values[name] for name in wire.TXT2IMG}
    return json.dumps({"images": pictures, "parameters": echo, "info": json.dumps(info)})


def encoded(key: str) -> str:
    with default_storage.open(key) as file:
        return base64.b64encode(file.read()).decode()


def info_of(job: RenderJob, images: list[RenderImage], values: dict[str, Any], *, with_grid: bool) -> dict[str, Any]:
    """The ``info`` object, keys in A1111's order. Prompts and seeds are listed for all images asked for."""
    request = RenderRequest.from_json(job.request)
    count = job.images_total
    seeds = list(job.images.order_by("index").values_list("seed", "subseed"))
    infotexts = [image.infotext for image in images]
    if with_grid:
        infotexts.insert(0, infotexts[0])
    return {
        "prompt": request.prompt,
        "all_prompts": [request.prompt] * count,
        "negative_prompt": request.negative_prompt,
        "all_negative_prompts": [request.negative_prompt] * count,
        "seed": seeds[0][0],
        "all_seeds": [seed for seed, _ in seeds],
        "subseed": seeds[0][1],
        "all_subseeds": [subseed for _, subseed in seeds],
        "subseed_strength": values["subseed_strength"] or 0,
        "width": request.width,
        "height": request.height,
        "sampler_name": request.sampler,
        "cfg_scale": float(request.cfg_scale),
        "steps": request.steps,
        "batch_size": request.batch_size,
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": job.checkpoint.name,
        "sd_model_hash": job.checkpoint.short_hash,
        "sd_vae_name": None,
        "sd_vae_hash": None,
        "seed_resize_from_w": request.seed_resize_from_w,
        "seed_resize_from_h": request.seed_resize_from_h,
        "denoising_strength": values["denoising_strength"],
        "extra_generation_params": {},
        "index_of_first_image": int(with_grid),
        "infotexts": infotexts,
        "styles": values["styles"] or [],
        "job_timestamp": f"{job.created_at:%Y%m%d%H%M%S}",
        "clip_skip": request.clip_skip,
        "is_using_inpainting_conditioning": False,
        "version": VERSION,
    }


def own_job(caller: Caller) -> RenderJob | None:
    """What the caller's progress bar is about."""
    mine = RenderJob.objects.filter(team=caller.team, user=caller.user, state__in=JOB_OPEN).annotate(now=Now())
    running = mine.filter(state=JobState.RUNNING).order_by("-pk").first()
    return running or mine.order_by("-pk").first()


def progress_of(request: HttpRequest) -> dict[str, Any]:
    job = own_job(authenticated(request))
    state = {
        "skipped": False,
        "interrupted": False,
        "stopping_generation": False,
        "job": "",
        "job_count": 0,
        "job_timestamp": "0",
        "job_no": 0,
        "sampling_step": 0,
        "sampling_steps": 0,
    }
    if job is None:
        return {"progress": 0.0, "eta_relative": 0.0, "state": state, "current_image": None, "textinfo": None}
    made, asked = job_progress(job), RenderRequest.from_json(job.request)
    number = min(asked.n_iter - 1, job.images_ended // asked.batch_size)
    state |= {
        "job": "scripts_txt2img" if asked.n_iter == 1 else f"Batch {number + 1} out of {asked.n_iter}",
        "job_count": asked.n_iter,
        "job_timestamp": f"{job.created_at:%Y%m%d%H%M%S}",
        "job_no": number,
        "sampling_step": made.step,
        "sampling_steps": made.steps or asked.steps,
    }
    textinfo = None if job.state == JobState.RUNNING else "Waiting..."
    return {
        "progress": min(1.0, 0.01 + made.fraction),
        "eta_relative": made.eta_seconds or 0.0,
        "state": state,
        "current_image": None,
        "textinfo": textinfo,
    }


def interrupt_own(request: HttpRequest) -> None:
    job = own_job(authenticated(request))
    if job is not None:
        job_cancel(job=job, cause="interrupted by the caller")


def options_refused(request: HttpRequest) -> None:
    """Raises: HandlerError: Options cannot be kept by this version, except as they already are."""
    current = options_of(authenticated(request))
    for name, value in wire.body_of(request.body).items():
        if name not in current:
            raise HandlerError(500, repr(name), error="KeyError")
        if value != current[name]:
            detail = f"Option {name!r} cannot be stored by this version; send it in override_settings of each call."
            raise HandlerError(501, detail)
