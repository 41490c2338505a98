"""The calls of `/sdapi/v1`. A synchronous call is a job underneath: submit, wait without a thread, answer from the rows."""

from __future__ import annotations

import base64
import json
import math
import re
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from asgiref.sync import sync_to_async
from django.conf import settings
from django.core.files.storage import default_storage
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.utils import timezone

from accounts.authentication import Caller
from assets.models import AssetKind
from assets.styles import styles_of
from assets.wildcards import lines_for
from common.errors import FieldError, InvalidRequestError
from common.pictures import UnreadablePictureError
from gpuworker.contract.extras import extras_html
from renderjobs.choices import IMAGE_HELD, JobKind, JobState, Lane
from renderjobs.compat.eas.services import flags_shown
from renderjobs.compat.pai.answers import saved_answer, script_saved_answer, status_of
from renderjobs.compat.pai.saving import saved_under
from renderjobs.compat.pai.wire import additions_of, with_linked_picture
from renderjobs.compat.sdapi import catalogue, controlnet, infotext_parser, wire
from renderjobs.compat.sdapi.door import authenticated, listing
from renderjobs.compat.sdapi.dynamic_prompts import prompts_resolve
from renderjobs.compat.sdapi.errors import HandlerError, four_keys, speaks_sdapi
from renderjobs.compat.sdapi.info import delivered_images, files_of, info_of, info_of_request
from renderjobs.compat.sdapi.infotext_fields import with_infotext
from renderjobs.compat.sdapi.inside import InsideRequest
from renderjobs.compat.sdapi.links import pictures_behind, with_pictures
from renderjobs.compat.sdapi.pictures import batch_extras, single_extras
from renderjobs.compat.sdapi.poses import drawn, pose_documents
from renderjobs.compat.sdapi.profile import (
    chosen_checkpoint,
    default_options,
    installed_options,
    options_of,
    options_set,
    overrides_keep,
    with_profile,
)
from renderjobs.compat.sdapi.progress import own_job, progress_of
from renderjobs.compat.sdapi.script_calls import (
    Progressed,
    jobs_of_call,
    png,
    script_advance,
    script_begin,
    script_interrupt,
)
from renderjobs.compat.sdapi.scripts.base import Answer, Shown
from renderjobs.compat.sdapi.scripts.info import script_info as scripts_described
from renderjobs.compat.sdapi.scripts.info import scripts_listed
from renderjobs.compat.sdapi.styling import styles_apply
from renderjobs.compat.sdapi.translate import (
    CONTROLNET,
    arguments_of,
    grid_wanted,
    ignored_fields,
    names_of_units,
    scripts_of,
    to_request,
)
from renderjobs.grids import grid_ensure
from renderjobs.inputs import Upload, picture_from_text
from renderjobs.models import RenderImage, RenderJob, ScriptCall
from renderjobs.models.jobs import Source
from renderjobs.outputs import SavedUnder
from renderjobs.pinning import UnknownNameError
from renderjobs.request import RenderRequest
from renderjobs.submission import Submitted, job_cancel, job_submit
from renderjobs.waiting import job_wait, release_request_thread

PLAIN = re.compile(r"[\x21-\x7e][\x20-\x7e]*")
MAX_KEY_LENGTH, MAX_TASK_ID_LENGTH = 255, 120


def generation(kind: str, fields: Mapping[str, wire.Field]) -> Any:
    @speaks_sdapi("POST")
    async def view(request: HttpRequest) -> HttpResponseBase:
        """Render and answer in A1111's shape. Repeating the call with its task id or Idempotency-Key waits for the same job."""
        caller = await sync_to_async(authenticated)(request)
        sent = wire.body_of(request.body)
        body = await sync_to_async(filled)(caller, sent, kind)
        values = wire.parsed(body, {**fields, **wire.OURS})
        echo = {name: values[name] for name in fields}
        pictures = await pictures_behind(values)
        values, body_of_script = with_pictures(values, pictures), with_pictures(body, pictures)
        if kind == JobKind.IMG2IMG:
            values, body_of_script = with_linked_picture(values), with_linked_picture(body_of_script)
        if values["script_name"]:
            response = await scripted(request, caller, body_of_script, values, kind, echo)
        else:
            submitted = await sync_to_async(generation_submit)(request, caller, body, values, kind)
            await job_wait(submitted.job.pk)
            response = await sync_to_async(answer)(submitted.job.pk, caller, values, echo)
            warn(response, submitted)
        # The answer may be long on its way to a slow client; it needs neither this request's thread nor its connection.
        await release_request_thread()
        if ignored := ignored_fields(sent, values):
            response["X-Ignored-Fields"] = ", ".join(re.sub(r"[^\w.-]", "_", name)[:64] for name in ignored[:20])
        return response

    return view


async def scripted(
    request: HttpRequest,
    caller: Caller,
    body: dict[str, Any],
    values: dict[str, Any],
    kind: str,
    echo: dict[str, Any],
) -> HttpResponseBase:
    """Run a selectable script: wait for the jobs of each step, and answer with what it makes of them."""
    call = await sync_to_async(script_submit)(request, caller, body, values, kind)
    while (made := await sync_to_async(script_advance)(call.pk)).answer is None:
        for job_id in made.waiting:
            await job_wait(job_id)
    return await sync_to_async(script_answer)(call, made, values, echo)


txt2img = generation(JobKind.TXT2IMG, wire.TXT2IMG)
img2img = generation(JobKind.IMG2IMG, wire.IMG2IMG)


def made_picture(fields: Mapping[str, wire.Field], build: Any, shape: Any) -> Any:
    """A call whose job makes pictures out of pictures, without seeds and infotexts."""

    @speaks_sdapi("POST")
    async def view(request: HttpRequest) -> HttpResponseBase:
        caller = await sync_to_async(authenticated)(request)
        body = wire.body_of(request.body)
        values = wire.parsed(body, fields)
        values = with_pictures(values, await pictures_behind(values))
        if values.get("imageList") == []:
            return JsonResponse({"html_info": extras_html(""), "images": []})
        submitted = await sync_to_async(pictures_submit)(request, caller, body, build, values)
        await job_wait(submitted.job.pk)
        response = await sync_to_async(pictures_made)(submitted.job.pk, shape)
        await release_request_thread()
        warn(response, submitted)
        return response

    return view


def one_picture(texts: list[str], job: RenderJob) -> dict[str, Any]:
    return {"html_info": extras_html(texts[-1] if texts else ""), "image": PICTURE}


def all_pictures(texts: list[str], job: RenderJob) -> dict[str, Any]:
    return {"html_info": extras_html(texts[-1] if texts else ""), "images": PICTURES}


def detected_maps(texts: list[str], job: RenderJob) -> dict[str, Any]:
    return {"info": "Success", "images": PICTURES}


detect = made_picture(wire.DETECT_AS_SENT, controlnet.detect, detected_maps)
extra_single_image = made_picture(wire.EXTRAS_SINGLE, single_extras, one_picture)
extra_batch_images = made_picture(wire.EXTRAS_BATCH, batch_extras, all_pictures)


@speaks_sdapi("POST")
async def render_openpose_json(request: HttpRequest) -> HttpResponse:
    """Poses as maps; the body is a bare list. Nothing is stored."""
    await sync_to_async(authenticated)(request)
    documents = pose_documents(request.body)
    if not documents:
        return JsonResponse({"info": "No pose data detected."})
    images = await sync_to_async(lambda: [base64.b64encode(png(drawn(document))).decode() for document in documents])()
    return JsonResponse({"images": images, "info": "Success"})


@speaks_sdapi("GET")
async def module_list(request: HttpRequest) -> HttpResponse:
    await sync_to_async(authenticated)(request)
    labels = request.GET.get("alias_names", "").lower() in wire.TRUE
    return JsonResponse(controlnet.module_list(labels=labels))


@speaks_sdapi("POST")
async def png_info(request: HttpRequest) -> HttpResponse:
    """What a picture's file says about how it was made. Nothing is stored."""
    caller = await sync_to_async(authenticated)(request)
    values = wire.parsed(wire.body_of(request.body), wire.PNG_INFO)
    values = with_pictures(values, await pictures_behind(values))
    return JsonResponse(await sync_to_async(info_of_picture)(caller, values["image"]))


def info_of_picture(caller: Caller, text: str) -> dict[str, Any]:
    """Raises: HandlerError: It is no picture."""
    try:
        upload = picture_from_text(text.strip())
    except UnreadablePictureError as error:
        raise HandlerError(500, str(error)) from error
    return infotext_parser.png_info(upload.data, styles_known(caller))


def filled(caller: Caller, body: dict[str, Any], kind: str) -> dict[str, Any]:
    """The body with what its ``infotext`` says and it does not say itself."""
    if not body.get("infotext"):
        return body
    return with_infotext(body, kind=kind, options=options_of(caller), styles=styles_known(caller))


def styles_known(caller: Caller) -> list[infotext_parser.Style]:
    rows = styles_of(caller).order_by("pk").values_list("name", "prompt", "negative_prompt")
    return [infotext_parser.Style(*row) for row in rows]


def warn(response: HttpResponseBase, submitted: Submitted) -> None:
    response["X-Job-Id"] = str(submitted.job.pk)
    if submitted.replayed:
        response["Idempotency-Replayed"] = "true"
    if submitted.job.warnings:
        response["X-Warnings"] = " ".join(
            re.sub(r"[^\x20-\x7e]", "?", sentence) for sentence in submitted.job.warnings[:10]
        )


@speaks_sdapi("GET")
async def progress(request: HttpRequest) -> HttpResponse:
    """The caller's own work: the newest call that runs, else the newest that waits, else how the last one ended."""
    query = wire.parsed(request.GET.dict(), wire.PROGRESS, place="query")
    shown = sync_to_async(lambda: progress_of(authenticated(request), preview=not query["skip_current_image"]))
    return JsonResponse(await shown())


@speaks_sdapi("POST")
async def interrupt(request: HttpRequest) -> HttpResponse:
    """End the caller's running job; what is delivered stays, and the waiting call answers with it."""
    await sync_to_async(interrupt_own)(request)
    return JsonResponse({})


@speaks_sdapi("POST")
async def skip(request: HttpRequest) -> HttpResponse:
    """End the batch that is being rendered; the job's other batches go on."""
    await sync_to_async(skip_own)(request)
    return JsonResponse(None, safe=False)


@speaks_sdapi("POST")
async def refresh(request: HttpRequest) -> HttpResponse:
    """Nothing to do: the lists are read from the rows each time."""
    await sync_to_async(authenticated)(request)
    return JsonResponse(None, safe=False)


async def without_slash(request: HttpRequest, **names: str) -> HttpResponse:
    """FastAPI's answer to a trailing slash; method and body are kept by the client."""
    query = request.META.get("QUERY_STRING", "")
    location = request.path.rstrip("/") + (f"?{query}" if query else "")
    return HttpResponse(status=307, headers={"Location": location})


without_slash.csrf_exempt = True  # type: ignore[attr-defined]


@speaks_sdapi("GET", "POST")
async def options(request: HttpRequest) -> HttpResponse:
    """What the caller reads back, or keeps for the caller's further calls."""
    if request.method == "GET":
        return JsonResponse(await sync_to_async(lambda: options_of(authenticated(request)))())
    passed_over = await sync_to_async(options_kept)(request)
    response = JsonResponse(None, safe=False)
    if passed_over:
        response["X-Ignored-Fields"] = ", ".join(passed_over[:20])
    return response


def options_kept(request: HttpRequest) -> list[str]:
    return options_set(authenticated(request), wire.body_of(request.body))


@speaks_sdapi("POST")
async def models_stay(request: HttpRequest) -> HttpResponse:
    """Loading and unloading is the workers' business; the call is answered as if it had been done."""
    await sync_to_async(authenticated)(request)
    return JsonResponse({})


@speaks_sdapi("POST")
async def interrogate(request: HttpRequest) -> HttpResponse:
    """No picture is put into words here: that takes a model of its own."""
    caller = await sync_to_async(authenticated)(request)
    values = wire.parsed(wire.body_of(request.body), wire.INTERROGATE)
    values = with_pictures(values, await pictures_behind(values))
    await sync_to_async(info_of_picture)(caller, values["image"])
    raise HandlerError(501, "Interrogation is not installed here.")


@speaks_sdapi("POST")
async def training(request: HttpRequest) -> HttpResponse:
    await sync_to_async(authenticated)(request)
    raise HandlerError(501, "Training is not part of this server; import trained files instead.")


@speaks_sdapi("POST")
async def server_control(request: HttpRequest) -> HttpResponse:
    await sync_to_async(authenticated)(request)
    raise HandlerError(501, "This server is shared; it is stopped and restarted by its administrators, not by its API.")


sd_models = listing(catalogue.sd_models)
samplers = listing(lambda _: catalogue.samplers())
schedulers = listing(lambda _: catalogue.schedulers())
upscalers = listing(catalogue.upscalers)
loras = listing(catalogue.loras)
hypernetworks = listing(catalogue.hypernetworks)
sd_vae = listing(catalogue.sd_vae)
embeddings = listing(lambda caller: catalogue.embeddings(caller, chosen_checkpoint(caller)))
prompt_styles = listing(catalogue.prompt_styles)
memory = listing(lambda _: catalogue.memory())
cmd_flags = listing(lambda caller: {**catalogue.cmd_flags(), **flags_shown(caller)})
nothing = listing(lambda _: [])
face_restorers = listing(lambda _: catalogue.face_restorers())
latent_upscale_modes = listing(lambda _: catalogue.latent_upscale_modes())
controlnet_version = listing(lambda _: controlnet.version())
controlnet_settings = listing(lambda _: controlnet.settings())
model_list = listing(controlnet.model_list)
control_types = listing(controlnet.control_types)
scripts = listing(lambda _: scripts_listed())
script_info = listing(
    lambda caller: scripts_described(
        checkpoints=[row["title"] for row in catalogue.sd_models(caller)],
        upscalers=[row["name"] for row in catalogue.upscalers(caller)],
    )
)


def generation_submit(
    request: HttpRequest,
    caller: Caller,
    body: dict[str, Any],
    values: dict[str, Any],
    kind: str,
    *,
    source: str = Source.SDAPI,
    lane: int = Lane.INTERACTIVE,
) -> Submitted:
    made = to_request(with_profile(caller, values), options=installed_options(caller), kind=kind)
    styles_apply(caller, values["styles"] or (), made.canonical)
    prompts_resolve(made, values, wildcards=lines_for(caller), most=settings.MAX_SYNC_IMAGES)
    render = made.build()
    if render.images_total > settings.MAX_SYNC_IMAGES:
        message = (
            f"n_iter x batch_size is {render.images_total}; a synchronous call makes at most {settings.MAX_SYNC_IMAGES} "
            "images. POST /api/v1/jobs takes more."
        )
        raise InvalidRequestError([FieldError("n_iter", message)])
    task_id = name_given("force_task_id", values["force_task_id"], MAX_TASK_ID_LENGTH)
    additions = additions_of(values["alwayson_scripts"])
    submitted = submit(
        request,
        caller,
        body,
        render,
        made.uploads,
        task_id=task_id,
        source=source,
        lane=lane,
        tags=additions.tags,
        saved=saved_under(caller, additions.save_dir),
    )
    if not submitted.replayed:
        overrides_keep(caller, values)
    return submitted


def script_submit(
    request: HttpRequest, caller: Caller, body: dict[str, Any], values: dict[str, Any], kind: str
) -> ScriptCall:
    try:
        call = script_begin(
            caller=caller,
            body={**body, "override_settings": with_profile(caller, values)["override_settings"]},
            tab=kind,
            most_images=settings.MAX_SYNC_IMAGES,
            task_id=name_given("force_task_id", values["force_task_id"], MAX_TASK_ID_LENGTH),
            idempotency_key=name_given("Idempotency-Key", request.headers.get("Idempotency-Key"), MAX_KEY_LENGTH),
        )
    except UnknownNameError as error:
        raise unknown_name(error) from error
    except InvalidRequestError as error:
        raise as_sent(error, body) from error
    overrides_keep(caller, values)
    return call


def script_answer(call: ScriptCall, made: Progressed, values: dict[str, Any], echo: dict[str, Any]) -> HttpResponseBase:
    """A script's pictures in its own order; ``info`` describes one of its requests where it does not say itself."""
    jobs = list(jobs_of_call(call))
    images = [delivered_images(job) for job in jobs]
    if call_error := ScriptCall.objects.values_list("error", flat=True).get(pk=call.pk):
        return four_keys(500, "RuntimeError", errors=call_error)
    if failed := next((job for job in jobs if job.state == JobState.FAILED), None):
        return four_keys(500, "RuntimeError", errors=failed.error_message or "The job failed.")
    answer = made.answer
    assert answer is not None
    if jobs and jobs[0].save_dir:
        return JsonResponse(script_saved_answer(call, jobs, shown_by(answer, images), answer.described or 0))
    files: list[Stored] = []
    for shown in answer.shown:
        if not isinstance(shown, Shown):
            files.append(png(shown))
        elif shown.number is None:
            files += files_of(images[shown.cell])
        else:
            image = images[shown.cell][shown.number]
            files.append((image.file_key, image.size_bytes))
    number, asked = answer.described or 0, dict(made.described)
    if jobs:
        info = info_of(jobs[number], images[number], asked, with_grid=False)
    else:
        request = to_request({**asked, "script_name": None}, options=default_options(), kind=call.tab).build()
        info = info_of_request(request, asked, timezone.now())
    info |= answer.info
    if "init_images" in echo and not values["include_init_images"]:
        echo |= {"init_images": None, "mask": None}
    rest = {"images": PICTURES, "parameters": echo, "info": json.dumps(info)}
    response = pictures_answer(files if values["send_images"] else [], rest)
    if jobs:
        response["X-Job-Id"] = str(jobs[number].pk)
    return response


def shown_by(answer: Answer, images: Sequence[Sequence[RenderImage]]) -> list[RenderImage | bytes]:
    """What a script shows, one by one, without the masks and maps that came along."""
    shown: list[RenderImage | bytes] = []
    for one in answer.shown:
        if not isinstance(one, Shown):
            shown.append(png(one))
        else:
            shown += images[one.cell] if one.number is None else [images[one.cell][one.number]]
    return shown


def pictures_submit(
    request: HttpRequest, caller: Caller, body: dict[str, Any], build: Any, values: dict[str, Any]
) -> Submitted:
    made = build(values)
    return submit(request, caller, body, made.build(), made.uploads)


def submit(
    request: HttpRequest,
    caller: Caller,
    body: dict[str, Any],
    render: RenderRequest,
    uploads: list[Upload],
    *,
    task_id: str = "",
    source: str = Source.SDAPI,
    lane: int = Lane.INTERACTIVE,
    tags: Mapping[str, str] | None = None,
    saved: SavedUnder | None = None,
) -> Submitted:
    """Raises: HandlerError: A name is unknown, in A1111's words."""
    inside = request if isinstance(request, InsideRequest) else None
    try:
        return job_submit(
            caller=caller,
            request=render,
            source=inside.source if inside else source,
            body=body,
            idempotency_key=name_given("Idempotency-Key", request.headers.get("Idempotency-Key"), MAX_KEY_LENGTH),
            task_id=task_id,
            lane=inside.lane if inside else lane,
            tags=tags,
            uploads=uploads,
            saved=saved,
        )
    except UnknownNameError as error:
        raise unknown_name(error) from error
    except InvalidRequestError as error:
        raise as_sent(error, body) from error


def as_sent(error: InvalidRequestError, body: Mapping[str, Any]) -> InvalidRequestError:
    """The error of a submission with a control unit's field where this (valid) body has it."""
    scripts = body.get("alwayson_scripts")
    sent = scripts_of({"alwayson_scripts": scripts}) if isinstance(scripts, Mapping) else {}
    names = names_of_units(arguments_of(sent.get(CONTROLNET)))
    return InvalidRequestError([replace(item, field=names.get(item.field, item.field)) for item in error.errors])


def unknown_name(error: UnknownNameError) -> HandlerError:
    where = error.errors[0].field
    if error.kind == AssetKind.UPSCALER:
        kind = "AssertionError" if where.startswith("upscaler_") else "Exception"
        return HandlerError(500, f"could not find upscaler named {error.name}", error=kind)
    if where in ("refiner_checkpoint", "hr_checkpoint_name"):
        return HandlerError(500, f"Could not find checkpoint with name {error.name}", error="Exception")
    # A1111 drops an unknown name and renders with another checkpoint: docs/decisions/unknown-checkpoint-in-sdapi.md
    return HandlerError(404, f"model '{error.name}' not found")


def name_given(field: str, value: str | None, longest: int) -> str:
    """Raises: InvalidRequestError: It is too long to be kept, or no plain text; cut short it might be another call's."""
    if value and (len(value) > longest or not PLAIN.fullmatch(value)):
        message = f"{field} must be at most {longest} printable ASCII characters."
        raise InvalidRequestError([FieldError(field, message)])
    return value or ""


def answer(job_id: uuid.UUID, caller: Caller, values: dict[str, Any], echo: dict[str, Any]) -> HttpResponseBase:
    """A1111's answer to an ended job: a failed one's reason, else the pictures there are; they are the stored bytes."""
    job = RenderJob.objects.select_related("checkpoint").get(pk=job_id)
    if job.save_dir:
        return JsonResponse(saved_answer(job), status=status_of(job))
    images = delivered_images(job)
    if not images and job.state == JobState.FAILED:
        return four_keys(500, "RuntimeError", errors=job.error_message or "The job failed.")
    files = files_of(images)
    with_grid = grid_wanted(values, options_of(caller), len(images))
    if with_grid:
        grid = grid_ensure(job)
        files.insert(0, (grid, default_storage.size(grid)))
    if "init_images" in echo and not values["include_init_images"]:
        echo |= {"init_images": None, "mask": None}
    info = info_of(job, images, values, with_grid=with_grid)
    rest = {"images": PICTURES, "parameters": echo, "info": json.dumps(info)}
    response = pictures_answer(files if values["send_images"] else [], rest)
    if any(image.safety_verdict for image in images):
        response["X-Safety-Verdicts"] = ", ".join(image.safety_verdict for image in images)
    return response


def pictures_made(job_id: uuid.UUID, shape: Any) -> HttpResponseBase:
    job = RenderJob.objects.get(pk=job_id)
    images = delivered_images(job)
    if len(images) < job.images_total:
        return four_keys(500, "RuntimeError", errors=job.error_message or "The job did not make every picture.")
    return pictures_answer(files_of(images), shape([image.infotext for image in images], job))


PICTURE, PICTURES = "the picture", "the pictures"
"""Stand in a body for what is put there while the answer is sent."""


Stored = tuple[str, int] | bytes
"""A picture's storage key and size in bytes, or a picture that is not stored."""


def pictures_answer(files: Sequence[Stored], body: dict[str, Any]) -> HttpResponseBase:
    """An answer that reads its pictures while it is sent, so that only one of them is in memory at a time.

    Args:
        files: The sizes make the Content-Length, by which a client notices a cut answer.
        body: With ``PICTURE`` or ``PICTURES`` as the value of a key.
    """
    several = PICTURES in body.values()
    mark = json.dumps(PICTURES if several else PICTURE)
    before, _, after = json.dumps(body).partition(mark)
    head, tail = (f"{before}[", f"]{after}") if several else (before, after)
    between = b", "

    async def parts() -> AsyncIterator[bytes]:
        yield head.encode()
        for number, file in enumerate(files):
            yield (between if number else b"") + b'"'
            if isinstance(file, bytes):
                yield base64.b64encode(file)
            else:
                yield await sync_to_async(encoded, thread_sensitive=False)(file[0])
            yield b'"'
        yield tail.encode()

    sizes = [len(file) if isinstance(file, bytes) else file[1] for file in files]
    pictures = sum(len('""') + base64_length(size) for size in sizes) + len(between) * max(0, len(files) - 1)
    length = len(head) + pictures + len(tail)
    return StreamingHttpResponse(parts(), content_type="application/json", headers={"Content-Length": str(length)})


def base64_length(size: int) -> int:
    return 4 * math.ceil(size / 3)


def encoded(key: str) -> bytes:
    with default_storage.open(key) as file:
        return base64.b64encode(file.read())


def interrupt_own(request: HttpRequest) -> None:
    job = own_job(authenticated(request))
    if job is not None and job.script_call is not None:
        script_interrupt(job.script_call, cause="interrupted by the caller")
    elif job is not None:
        job_cancel(job=job, cause="interrupted by the caller")


def skip_own(request: HttpRequest) -> None:
    """Take back the images of the batch (of ``batch_size``) that a worker is at."""
    job = own_job(authenticated(request))
    held = job and job.images.filter(state__in=IMAGE_HELD).order_by("index").first()
    if job and held:
        size = RenderRequest.from_json(job.request).batch_size
        first = held.index - held.index % size
        job_cancel(job=job, indices=range(first, first + size), cause="skipped by the caller")
