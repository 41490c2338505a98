"""Calls that run a selectable script: begun, carried on step by step, answered. What a script does is in ``scripts``.

Every cell of a script is an ordinary job that names its call and its number in it. ``script_advance`` may be called at any time by
anybody (the waiting request, a chore every few seconds), also twice at once: it begins the next step when all jobs of the last one
have ended, and the number of a cell is unique within its call.
"""

from __future__ import annotations

import base64
import io
import json
import secrets
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from random import Random
from typing import Any

from django.conf import settings
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.db import IntegrityError, transaction
from django.db.models.functions import Now
from PIL import Image

from accounts.authentication import Caller
from assets.models import AssetKind
from assets.selectors import asset_find_loosely, newest_of
from assets.wildcards import lines_for
from common.errors import ConflictError, PlatformError
from common.pictures import UnreadablePictureError
from gpuworker.contract import Recipe
from renderjobs.choices import JOB_OPEN, ImageState, JobKind, Lane
from renderjobs.compat.pai.saving import saved_under
from renderjobs.compat.pai.wire import additions_of
from renderjobs.compat.sdapi import catalogue, wire
from renderjobs.compat.sdapi.dynamic_prompts import prompts_resolve
from renderjobs.compat.sdapi.errors import HandlerError, WireError
from renderjobs.compat.sdapi.infotext import extra_parameters_of
from renderjobs.compat.sdapi.profile import installed_options
from renderjobs.compat.sdapi.scripts import plan_of
from renderjobs.compat.sdapi.scripts.base import (
    Answer,
    Cell,
    Drawn,
    Enlargement,
    Plan,
    Step,
    Surroundings,
    advance,
    inherited,
    request_of,
)
from renderjobs.compat.sdapi.styling import styles_apply
from renderjobs.compat.sdapi.translate import Translation, to_request
from renderjobs.expansion import recipe_from
from renderjobs.inputs import picture_from_text
from renderjobs.models import RenderImage, RenderJob, ScriptCall
from renderjobs.models.jobs import Source
from renderjobs.pinning import pinned
from renderjobs.request import RenderRequest
from renderjobs.selectors import service_of
from renderjobs.submission import body_digest, job_cancel, job_submit

FIELDS = {JobKind.TXT2IMG: wire.TXT2IMG, JobKind.IMG2IMG: wire.IMG2IMG}
REFUSALS = (HandlerError, WireError, PlatformError)


@dataclass(frozen=True, slots=True)
class Progressed:
    """Where a call is: its open jobs, or its answer when there are none."""

    waiting: list[uuid.UUID]
    answer: Answer | None = None
    described: Mapping[str, Any] = field(default_factory=dict)
    """The values of the request that the answer describes."""


def script_begin(
    *,
    caller: Caller,
    body: Mapping[str, Any],
    tab: str,
    most_images: int,
    task_id: str = "",
    idempotency_key: str = "",
) -> ScriptCall:
    """Accept a call and begin its first step; the same task id or key names the same call again.

    Raises:
        HandlerError, WireError, PlatformError: The script, an argument or a cell cannot be accepted; nothing is stored.
    """
    digest = body_digest(body)
    if earlier := _earlier(caller, task_id, idempotency_key, digest):
        return earlier
    random_seed = secrets.randbits(62)
    values = _values(body, tab)
    plan = _plan(caller, values, tab, random_seed)
    if plan.images_total > most_images:
        message = f"The script makes {plan.images_total} pictures; a synchronous call makes at most {most_images}."
        raise HandlerError(422, message)
    call = ScriptCall(
        team=caller.team,
        user=caller.user,
        token=caller.token,
        service=service_of(caller),
        tab=tab,
        script=plan.title,
        body_sha256=digest,
        random_seed=random_seed,
        task_id=task_id,
        idempotency_key=idempotency_key,
        created_at=Now(),
    )
    call.body_key = default_storage.save(
        f"{caller.team.pk}/scripts/{call.pk}.json", ContentFile(json.dumps(body).encode())
    )
    try:
        with transaction.atomic():
            call.save(force_insert=True)
            _submit_step(caller, call, plan, values, [], plan.cells)
    except BaseException as error:
        default_storage.delete(call.body_key)
        if isinstance(error, IntegrityError) and (earlier := _earlier(caller, task_id, idempotency_key, digest)):
            return earlier  # two calls with one key raced
        raise
    return call


def _earlier(caller: Caller, task_id: str, key: str, digest: str) -> ScriptCall | None:
    """Raises: ConflictError: The key or task id means something else."""
    calls = ScriptCall.objects.filter(team=caller.team)
    by_task = calls.filter(task_id=task_id).first() if task_id else None
    if by_task is not None:
        if by_task.user_id != caller.user.pk:
            raise ConflictError(f"Task id {task_id!r} is in use by another member of the team.", field="force_task_id")
        return by_task
    by_key = calls.filter(token=caller.token, idempotency_key=key).first() if key and caller.token else None
    if by_key is not None and by_key.body_sha256 != digest:
        raise ConflictError(f"Idempotency-Key {key!r} was used before with another body.", field="Idempotency-Key")
    return by_key


def script_advance(call_id: uuid.UUID) -> Progressed:
    """Go on as far as the ended jobs allow."""
    with transaction.atomic():
        call = (
            ScriptCall.objects.select_for_update(of=("self",))
            .select_related("team", "user", "token", "service")
            .get(pk=call_id)
        )
        jobs = list(RenderJob.objects.filter(script_call=call).order_by("script_cell"))
        if waiting := [job.pk for job in jobs if job.state in JOB_OPEN]:
            return Progressed(waiting)
        caller = Caller(user=call.user, team=call.team, token=call.token, through=call.service)
        values = _values(_body(call), call.tab)
        plan = _plan(caller, values, call.tab, call.random_seed)
        done, cells, following = _walked(
            plan, jobs, stopped=call.interrupted or bool(call.error) or call.ended_at is not None
        )
        if isinstance(following, Answer):
            ScriptCall.objects.filter(pk=call.pk, ended_at=None).update(ended_at=Now())
            cell = cells[following.described] if following.described is not None else None
            return Progressed([], following, request_of(values, cell) if isinstance(cell, Cell) else values)
        try:
            with transaction.atomic():
                submitted = _submit_step(caller, call, plan, values, done, following)
        except REFUSALS as error:
            ScriptCall.objects.filter(pk=call.pk).update(error=str(error)[:500])
        else:
            return Progressed(submitted)
    return script_advance(call_id)


def scripts_to_advance() -> list[uuid.UUID]:
    """Calls none of whose jobs is open: their client has left, or is about to ask."""
    open_jobs = RenderJob.objects.filter(state__in=JOB_OPEN, script_call__isnull=False)
    idle = ScriptCall.objects.filter(ended_at=None).exclude(pk__in=open_jobs.values("script_call"))
    return list(idle.values_list("pk", flat=True))


def script_interrupt(call: ScriptCall, *, cause: str) -> None:
    """Begin nothing more and take back what is not delivered; the answer has what there is."""
    ScriptCall.objects.filter(pk=call.pk).update(interrupted=True)
    for job in RenderJob.objects.filter(script_call=call, state__in=JOB_OPEN):
        job_cancel(job=job, cause=cause)


# --- plans ------------------------------------------------------------------------------------------------------------


def _values(body: Mapping[str, Any], tab: str) -> dict[str, Any]:
    return wire.parsed(body, {**FIELDS[JobKind(tab)], **wire.OURS})


def _body(call: ScriptCall) -> dict[str, Any]:
    with default_storage.open(call.body_key) as file:
        return json.load(file)


def _plan(caller: Caller, values: Mapping[str, Any], tab: str, random_seed: int) -> Plan:
    """Raises: HandlerError: There is no such script, or an argument is none it takes."""
    around = Surroundings(
        options=installed_options(caller),
        checkpoint=lambda name: _checkpoint_name(caller, name),
        vaes=tuple(asset.filename for asset in newest_of(caller, AssetKind.VAE)),
        upscalers=tuple(row["name"] for row in catalogue.upscalers(caller)),
        picture=_opened,
    )
    plan = plan_of(tab, values, around, random=Random(random_seed))
    assert plan is not None
    return plan


def _checkpoint_name(caller: Caller, name: str) -> str | None:
    asset = asset_find_loosely(caller, AssetKind.CHECKPOINT, name)
    return asset.filename if asset else None


def _opened(text: str) -> Image.Image:
    """Raises: HandlerError: It is no picture."""
    try:
        return Image.open(io.BytesIO(picture_from_text(text).data))
    except UnreadablePictureError as error:
        raise HandlerError(500, str(error)) from error


def _walked(
    plan: Plan, jobs: Sequence[RenderJob], *, stopped: bool
) -> tuple[list[tuple[Drawn, ...]], Step, Step | Answer]:
    """The steps that are done, their cells, and what follows. Of a call that was stopped, cells without a job drew nothing."""
    by_cell = {job.script_cell: job for job in jobs}
    done: list[tuple[Drawn, ...]] = []
    cells: Step = ()
    while True:
        following = advance(plan, done)
        if isinstance(following, Answer) or (len(cells) not in by_cell and not stopped):
            return done, cells, following
        done.append(tuple(_drawn(by_cell.get(len(cells) + offset)) for offset in range(len(following))))
        cells += following


def _drawn(job: RenderJob | None) -> Drawn:
    if job is None:
        return Drawn(pictures=())
    images = delivered(job)
    request, recipe = RenderRequest.from_json(job.request), recipe_from(job.lock)
    seeds = list(job.images.order_by("index").values_list("seed", "subseed"))
    texts = [request.of_image(index) for index in range(len(seeds))]
    return Drawn(
        pictures=StoredPictures(images),
        infotexts=[image.infotext for image in images],
        prompts=[own.prompt for own in texts],
        negative_prompts=[own.negative_prompt for own in texts],
        seeds=[seed for seed, _ in seeds],
        subseeds=[subseed for _, subseed in seeds],
        extra=extra_parameters_of(recipe) if isinstance(recipe, Recipe) else {},
    )


def delivered(job: RenderJob) -> list[RenderImage]:
    return list(job.images.filter(state=ImageState.DELIVERED).order_by("index").prefetch_related("attachments"))


class StoredPictures(Sequence[Image.Image]):
    """Opened when they are looked at: most scripts need few of them."""

    def __init__(self, images: Sequence[RenderImage]) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: Any) -> Any:
        with default_storage.open(self._images[index].file_key) as file:
            return Image.open(io.BytesIO(file.read()))


# --- cells ------------------------------------------------------------------------------------------------------------


def _submit_step(
    caller: Caller,
    call: ScriptCall,
    plan: Plan,
    values: Mapping[str, Any],
    done: Sequence[Sequence[Drawn]],
    step: Step,
) -> list[uuid.UUID]:
    """One job per cell. Every cell is translated before the first is stored."""
    first = sum(len(cells) for cells in done)
    made = [_translated(caller, call.tab, values, cell) for cell in step]
    additions = additions_of(values["alwayson_scripts"])
    saved = saved_under(caller, additions.save_dir)
    if plan.shares_notes:
        _share_notes(caller, made)
    jobs = [
        job_submit(
            caller=caller,
            request=translation.build(),
            uploads=translation.uploads,
            source=Source.SDAPI,
            lane=Lane.INTERACTIVE,
            script=(call, first + offset),
            tags=additions.tags,
            saved=saved,
        ).job
        for offset, translation in enumerate(made)
    ]
    return [job.pk for job in jobs]


def _translated(caller: Caller, tab: str, values: Mapping[str, Any], cell: Cell | Enlargement) -> Translation:
    if isinstance(cell, Enlargement):
        made = Translation({"kind": JobKind.EXTRAS})
        picture = made.picture(_text(cell.picture))
        made.canonical["extras"] = {"picture": picture, "upscaler_1": cell.upscaler, "upscaling_resize": cell.scale}
        return made
    own = request_of(values, cell)
    if cell.init_images:
        own["init_images"] = [_text(picture) for picture in cell.init_images]
    if cell.mask is not None:
        own["mask"] = _text(cell.mask)
    made = to_request(own, options=installed_options(caller), kind=tab)
    styles_apply(caller, own["styles"] or (), made.canonical)
    most = settings.MAX_SYNC_IMAGES
    prompts_resolve(made, own, wildcards=lines_for(caller), most=most, part_of_script=True)
    made.canonical["notes"] = dict(cell.notes)
    if cell.latent_mask is not None:
        latent_mask = made.picture(_text(cell.latent_mask))
        for given in made.canonical["img2img"]:
            given["inpaint"] = given["inpaint"] and {**given["inpaint"], "latent_mask": latent_mask}
    if cell.reconstruction is not None:
        for given in made.canonical["img2img"]:
            given["reconstruction"] = asdict(cell.reconstruction)
    return made


def _share_notes(caller: Caller, made: Sequence[Translation]) -> None:
    """What the infotext of each cell repeats of those before it."""
    recipes = [pinned(caller, translation.build()).recipe for translation in made]
    extras = [extra_parameters_of(recipe) if isinstance(recipe, Recipe) else {} for recipe in recipes]
    for translation, before in zip(made, inherited(extras), strict=True):
        translation.canonical["notes"] = {**before, **translation.canonical.get("notes", {})}


def _text(picture: Image.Image) -> str:
    return base64.b64encode(png(picture)).decode()


def png(picture: Image.Image) -> bytes:
    """With the texts the picture carries, as A1111 sends them."""
    from PIL.PngImagePlugin import PngInfo

    texts = PngInfo()
    for key, value in picture.info.items():
        if isinstance(key, str) and isinstance(value, str):
            texts.add_text(key, value)
    data = io.BytesIO()
    picture.save(data, "PNG", pnginfo=texts)
    return data.getvalue()


def jobs_of_call(call: ScriptCall) -> Iterator[RenderJob]:
    yield from RenderJob.objects.filter(script_call=call).select_related("checkpoint").order_by("script_cell")
