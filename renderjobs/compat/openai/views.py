"""`/v1/images/generations`, `/v1/images/edits` and `/v1/models`. A call is a job underneath: submit, wait, answer from the rows."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import math
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from asgiref.sync import sync_to_async
from django.conf import settings
from django.core.exceptions import RequestDataTooBig
from django.db import connections
from django.http import HttpRequest, JsonResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase

from accounts.authentication import Caller, address_of, credential_of
from accounts.authentication import caller_with as caller_of_token
from accounts.models import Scope
from assets.selectors import checkpoint_default, checkpoint_find, checkpoints_of
from renderjobs.choices import IMAGE_HELD, ImageState, JobState, Lane
from renderjobs.compat.openai import translate, wire
from renderjobs.compat.openai.errors import ApiError, answer_of, api_error, failed, speaks_openai, wrong
from renderjobs.compat.sdapi.translate import Translation
from renderjobs.compat.sdapi.views import MAX_KEY_LENGTH, encoded, name_given
from renderjobs.files import base_of, file_url
from renderjobs.models import RenderImage, RenderJob
from renderjobs.models.jobs import Source
from renderjobs.previews import preview_ask
from renderjobs.submission import Submitted, job_submit
from renderjobs.waiting import job_wait, release_request_thread

PATCH = 32
"""Side in pixels of what counts as one image token."""
CHARACTERS_PER_TOKEN = 4
LOOK_SECONDS = 0.5
"""Between two looks for a preview."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A call that was accepted, and what its answer repeats of it."""

    submitted: Submitted
    values: dict[str, Any]
    kind: str
    """``image_generation`` or ``image_edit``, of which the events of a stream are named."""
    base: str


def authenticated(request: HttpRequest) -> Caller:
    """Raises: ApiError, ForbiddenError: No usable token, or one without the scope."""
    credential = credential_of(request.headers.get("Authorization", ""))
    if credential is None or credential.scheme != "bearer":
        message = "You didn't provide an API key. Send it in the header 'Authorization: Bearer YOUR_TOKEN'."
        raise ApiError(401, message)
    caller = caller_of_token(credential.token, address=address_of(request))
    if caller is None:
        raise ApiError(401, "Incorrect API key provided.", code="invalid_api_key")
    caller.require(Scope.JOBS_WRITE)
    return caller


@speaks_openai("POST")
async def generations(request: HttpRequest) -> HttpResponseBase:
    return await answered(await sync_to_async(generation_submit)(request))


@speaks_openai("POST")
async def edits(request: HttpRequest) -> HttpResponseBase:
    return await answered(await sync_to_async(edit_submit)(request))


@speaks_openai("GET")
async def models(request: HttpRequest) -> HttpResponseBase:
    """The checkpoints that the caller may name as ``model``."""
    return JsonResponse({"object": "list", "data": await sync_to_async(models_listed)(request)})


def models_listed(request: HttpRequest) -> list[dict[str, Any]]:
    newest: dict[str, dict[str, Any]] = {}
    for asset in checkpoints_of(authenticated(request)):
        created = int(asset.created_at.timestamp())
        newest.setdefault(
            asset.name, {"id": asset.name, "object": "model", "created": created, "owned_by": "renderkiln"}
        )
    return list(newest.values())


# --- in ---------------------------------------------------------------------------------------------------------------


def generation_submit(request: HttpRequest) -> Asked:
    caller = authenticated(request)
    body = wire.object_of(request.body)
    values = wire.parsed(body, wire.GENERATION)
    checkpoint = checkpoint_find(caller, values["model"]) if values["model"] else checkpoint_default(caller)
    made = translate.generation(values, family=checkpoint.family if checkpoint else "")
    return submit(request, caller, made, values, body, kind="image_generation")


def edit_submit(request: HttpRequest) -> Asked:
    """Multipart, as OpenAI's clients send it. Raises: ApiError: No picture, or several."""
    caller = authenticated(request)
    if request.content_type != "multipart/form-data":
        raise ApiError(400, "The body of an edit is multipart/form-data.", code="unsupported_content_type")
    if int(request.META.get("CONTENT_LENGTH") or 0) > settings.DATA_UPLOAD_MAX_MEMORY_SIZE:
        raise RequestDataTooBig
    body = {**request.POST.dict(), **{name: name for name in request.FILES}}
    values = wire.parsed(body, wire.EDIT, ignored=wire.PICTURES)
    pictures = [file.read() for name in ("image", "image[]") for file in request.FILES.getlist(name)]
    if len(pictures) != 1:
        code = "invalid_value" if pictures else "missing_required_parameter"
        raise wrong("image", f"An edit begins from one image, not from {len(pictures)}.", code)
    mask = request.FILES["mask"].read() if "mask" in request.FILES else None
    made = translate.edit(values, picture=pictures[0], mask=mask)
    compared = {**body, "image": digest(pictures[0]), "mask": digest(mask or b"")}
    return submit(request, caller, made, values, compared, kind="image_edit")


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def submit(
    request: HttpRequest, caller: Caller, made: Translation, values: dict[str, Any], body: Any, *, kind: str
) -> Asked:
    submitted = job_submit(
        caller=caller,
        request=made.build(),
        source=Source.OPENAI,
        body=body,
        idempotency_key=name_given("Idempotency-Key", request.headers.get("Idempotency-Key"), MAX_KEY_LENGTH),
        lane=Lane.INTERACTIVE,
        uploads=made.uploads,
    )
    return Asked(submitted, values, kind, base_of(request))


# --- out --------------------------------------------------------------------------------------------------------------


async def answered(asked: Asked) -> HttpResponseBase:
    response: HttpResponseBase
    if asked.values["stream"]:
        response = StreamingHttpResponse(events(asked), content_type="text/event-stream")
        response["Cache-Control"] = "no-store"
        response["X-Accel-Buffering"] = "no"
    else:
        response = await whole_answer(asked)
    response["X-Job-Id"] = str(asked.submitted.job.pk)
    if asked.submitted.replayed:
        response["Idempotency-Replayed"] = "true"
    return response


async def whole_answer(asked: Asked) -> HttpResponseBase:
    job_id = asked.submitted.job.pk
    await job_wait(job_id)
    try:
        job, images = await sync_to_async(ended)(job_id)
    except ApiError as error:
        return answer_of(error)
    await release_request_thread()
    return StreamingHttpResponse(answer_parts(asked, job, images), content_type="application/json")


def ended(job_id: uuid.UUID) -> tuple[RenderJob, list[RenderImage]]:
    """Raises: ApiError: There is no picture, with the reason."""
    job = RenderJob.objects.get(pk=job_id)
    images = list(job.images.filter(state=ImageState.DELIVERED).order_by("index"))
    if images:
        return job, images
    if job.state == JobState.CANCELLED:
        raise ApiError(400, "The job was cancelled before it made a picture.", code="cancelled")
    raise failed(job.error_message or "The job failed.", job.error_code or "failed")


async def answer_parts(asked: Asked, job: RenderJob, images: list[RenderImage]) -> AsyncIterator[bytes]:
    """One picture in memory at a time."""
    described = {**description(asked, images[0]), "usage": usage(asked, images)}
    yield f'{{"created": {int(job.created_at.timestamp())}, "data": ['.encode()
    for number, image in enumerate(images):
        yield (b", " if number else b"") + json.dumps(await shown(asked, image)).encode()
    yield b"], " + json.dumps(described).encode()[1:]


async def shown(asked: Asked, image: RenderImage) -> dict[str, str]:
    if asked.values["response_format"] == "url":
        return {"url": file_url(image.file_key, base=asked.base)}
    return {"b64_json": (await sync_to_async(encoded, thread_sensitive=False)(image.file_key)).decode()}


def description(asked: Asked, image: RenderImage) -> dict[str, Any]:
    quality = asked.values["quality"]
    return {
        "background": "opaque",
        "output_format": asked.values["output_format"],
        "quality": {"standard": "medium", "auto": "medium", "hd": "high"}.get(quality, quality),
        "size": f"{image.width}x{image.height}",
    }


def usage(asked: Asked, images: list[RenderImage]) -> dict[str, Any]:
    """By size: these models count no tokens, and what is charged is in the job."""
    words = math.ceil(len(asked.values["prompt"]) / CHARACTERS_PER_TOKEN)
    made = sum(patches(image.width, image.height) for image in images)
    sent = [
        patches(one["picture"]["width"], one["picture"]["height"]) for one in asked.submitted.job.request["img2img"]
    ]
    return {
        "input_tokens": words + sum(sent),
        "input_tokens_details": {"text_tokens": words, "image_tokens": sum(sent)},
        "output_tokens": made,
        "total_tokens": words + sum(sent) + made,
    }


def patches(width: int, height: int) -> int:
    return math.ceil(width / PATCH) * math.ceil(height / PATCH)


# --- streams ----------------------------------------------------------------------------------------------------------


async def events(asked: Asked) -> AsyncIterator[bytes]:
    """Previews while it is drawn, as many as were asked for and there are; then the pictures. An error is an event, too."""
    try:
        async for number, preview in previews(asked):
            yield event(
                f"{asked.kind}.partial_image",
                b64_json=base64.b64encode(preview).decode(),
                partial_image_index=number,
                **{**described_by_request(asked), "output_format": "png"},
            )
        job, images = await sync_to_async(ended)(asked.submitted.job.pk)
        await release_request_thread()
        for image in images:
            picture = await shown(asked, image)
            told = {**described_by_request(asked), **description(asked, image), "usage": usage(asked, [image])}
            yield event(f"{asked.kind}.completed", **picture, **told)
    except Exception as error:
        yield event("error", **api_error(error).body)


def described_by_request(asked: Asked) -> dict[str, Any]:
    size = asked.values["size"]
    return {
        "created_at": int(asked.submitted.job.created_at.timestamp()),
        "background": "opaque",
        "output_format": asked.values["output_format"],
        "quality": asked.values["quality"],
        "size": f"{size[0]}x{size[1]}" if size else wire.AUTO,
    }


async def previews(asked: Asked) -> AsyncIterator[tuple[int, bytes]]:
    """Until the job ends. Previews are PNG and small, whatever the pictures are."""
    waiting = asyncio.ensure_future(job_wait(asked.submitted.job.pk))
    wanted, seen, last = asked.values["partial_images"], 0, b""
    try:
        while not waiting.done():
            await asyncio.wait([waiting], timeout=LOOK_SECONDS if seen < wanted else None)
            if not waiting.done() and seen < wanted:
                found = await sync_to_async(newest_preview, thread_sensitive=False)(asked.submitted.job.pk)
                if found and found != last:
                    yield seen, found
                    seen, last = seen + 1, found
        await waiting
    finally:
        waiting.cancel()


def newest_preview(job_id: uuid.UUID) -> bytes | None:
    """On a borrowed thread, whose connection is closed again."""
    try:
        held = RenderImage.objects.filter(job=job_id, state__in=IMAGE_HELD).order_by("index")
        image_id = held.values_list("pk", flat=True).first()
    finally:
        connections.close_all()
    return preview_ask(image_id) if image_id else None


def event(name: str, **data: Any) -> bytes:
    return f"event: {name}\ndata: {json.dumps({'type': name, **data})}\n\n".encode()
