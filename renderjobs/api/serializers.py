"""The wire of the job API: bodies in, representations out. Nothing is stored or looked up here."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any

from rest_framework import serializers

from billing.deployments import ACCRUED, UNBILLED
from billing.errors import budget_members
from billing.estimates import Estimate
from billing.holds import Free
from billing.models import UNALLOCATED, BudgetScope, Measure
from common.errors import FieldError, InvalidRequestError
from common.schema import ProblemSchema
from gpuworker.contract import SETTINGS
from gpuworker.contract.control_modules import CONTROL_MODES, CROP_AND_RESIZE, HIRES_OPTIONS, RESIZE_MODES
from gpuworker.contract.safety import VERDICTS
from gpuworker.contract.samplers import SCHEDULES, UnknownSamplerError, resolve_sampler
from renderjobs.api import control_units
from renderjobs.choices import JobKind, JobState, Lane
from renderjobs.compat.sdapi import controlnet, wire
from renderjobs.compat.sdapi.control_units import DEFAULT_UNITS, places_of
from renderjobs.compat.sdapi.control_units import OPTIONS as CONTROLNET_OPTIONS
from renderjobs.compat.sdapi.errors import HandlerError, WireError
from renderjobs.compat.sdapi.pictures import batch_extras
from renderjobs.compat.sdapi.profile import default_options
from renderjobs.compat.sdapi.translate import CONTROLNET, Translation, arguments_of, scripts_of, to_request
from renderjobs.compat.sdapi.wire import OURS
from renderjobs.files import file_url
from renderjobs.inputs import Upload
from renderjobs.models import ImageAttachment, JobEvent, RenderImage, RenderJob
from renderjobs.pinning import UnfitForFamilyError, UnknownNameError
from renderjobs.request import RenderRequest
from renderjobs.selectors import JobProgress

SAME_NAME = (
    "prompt", "negative_prompt", "seed", "subseed", "subseed_strength", "seed_resize_from_w", "seed_resize_from_h",
    "batch_size", "n_iter", "steps", "cfg_scale", "width", "height", "tiling", "eta", "s_churn", "s_tmin", "s_tmax",
    "s_noise",
)  # fmt: skip
"""A1111's field names that are ours as well."""
OPTIONS = {
    "sd_model_checkpoint": "checkpoint",
    "CLIP_stop_at_last_layers": "clip_skip",
    "eta_noise_seed_delta": "ensd",
    "emphasis": "emphasis",
}
"""Keys of ``override_settings`` → canonical names."""
FIELDS: dict[str, Mapping[str, wire.Field]] = {
    JobKind.TXT2IMG: wire.TXT2IMG,
    JobKind.IMG2IMG: wire.IMG2IMG,
    JobKind.EXTRAS: wire.EXTRAS_BATCH,
    JobKind.DETECT: wire.DETECT,
}
"""Kind → the fields of A1111's call of that kind."""
DRAWN = (JobKind.TXT2IMG, JobKind.IMG2IMG)
"""Kinds whose pictures are drawn, so that prompts and control take part."""
REQUEST_FIELDS = {*SAME_NAME, "sampler_name", "sampler_index", "scheduler", "sd_model_checkpoint", "override_settings"}
JOB_FIELDS = {"kind", "request", "lane", "project", "tags", "priority"}
MAX_NOTE_LENGTH = 500
LANES = {lane.name.lower(): lane for lane in Lane}
SPELLINGS = {spelling for schedule in SCHEDULES for spelling in schedule.spellings}


def render_request(kind: str, body: Any) -> tuple[RenderRequest, list[Upload]]:
    """A job's ``request`` in A1111's field names of that kind → the canonical form, and the pictures it holds.

    Raises:
        InvalidRequestError: With every unknown or wrong field at once.
    """
    if not isinstance(body, Mapping):
        raise InvalidRequestError([FieldError("request", "request must be an object of A1111 field names.")])
    if (
        kind == JobKind.TXT2IMG
        and set(body) <= REQUEST_FIELDS
        and set(OPTIONS) >= set(body.get("override_settings") or ())
    ):
        return plain_request(body), []
    if kind not in FIELDS:
        return plain_request(body), []
    own = {control_units.PLACE} if kind in DRAWN else set()
    errors = unknown_fields(body, {*FIELDS[kind], *OURS, *own}, "request")
    errors += unknown_options(body.get("override_settings"))
    if errors:
        plain = {name: body[name] for name in REQUEST_FIELDS - {"override_settings"} & set(body)}
        raise InvalidRequestError([*errors, *errors_of(lambda: plain_request(plain))])
    if kind in DRAWN:
        # Numbers and texts are taken as strictly as in a plain request; only then is the rest read as A1111 reads it.
        strict = {name: body[name] for name in REQUEST_FIELDS - {"override_settings"} & set(body)}
        plain_request({name: value for name, value in strict.items() if name != "override_settings"})
    try:
        made = translated(kind, body)
    except WireError as error:
        raise InvalidRequestError(
            [FieldError(".".join(["request", *map(str, item["loc"][1:])]), item["msg"]) for item in error.details]
        ) from error
    except HandlerError as error:
        raise InvalidRequestError([FieldError("request", error.detail)]) from error
    made.names = {name: f"request.{wire_name}" for name, wire_name in made.names.items()}
    return made.build(), made.uploads


def unknown_options(overrides: Any) -> list[FieldError]:
    if overrides is None:
        return []
    if not isinstance(overrides, Mapping):
        return [FieldError("request.override_settings", "override_settings must be an object.")]
    known = {*default_options(), *SETTINGS, *CONTROLNET_OPTIONS}
    return unknown_fields(overrides, known, "request.override_settings")


def translated(kind: str, body: Mapping[str, Any]) -> Translation:
    values = wire.parsed(body, {**FIELDS[kind], **OURS})
    if kind == JobKind.EXTRAS:
        return batch_extras(values)
    if kind == JobKind.DETECT:
        return controlnet.detect(values)
    if "steps" not in body:
        values["steps"] = None  # our own default, not A1111's 50
    made = to_request(values, options=default_options(), kind=kind)
    made.canonical["strict_control"] = True
    if body.get(control_units.PLACE) is not None:
        control_units.add_units(made, body[control_units.PLACE])
    return made


def errors_of(work: Callable[[], Any]) -> list[FieldError]:
    try:
        work()
    except InvalidRequestError as error:
        return list(error.errors)
    return []


def plain_request(body: Mapping[str, Any]) -> RenderRequest:
    """Without pictures and further passes: every field in its own type, nothing converted."""
    errors = unknown_fields(body, REQUEST_FIELDS, "request")
    values: dict[str, Any] = {name: body.get(name) for name in SAME_NAME}
    names = {name: f"request.{name}" for name in SAME_NAME}
    values["checkpoint"], names["checkpoint"] = body.get("sd_model_checkpoint"), "request.sd_model_checkpoint"
    overrides = given(body, "override_settings", {})
    if not isinstance(overrides, Mapping):
        errors.append(FieldError("request.override_settings", "override_settings must be an object."))
        overrides = {}
    errors += unknown_fields(overrides, set(OPTIONS), "request.override_settings")
    for option, name in OPTIONS.items():
        if overrides.get(option) is not None:
            values[name], names[name] = overrides[option], f"request.override_settings.{option}"
    errors += resolve_names(body, values, names)
    try:
        request = RenderRequest.build(values, names=names)
    except InvalidRequestError as error:
        raise InvalidRequestError([*errors, *error.errors]) from error
    if errors:
        raise InvalidRequestError(errors)
    return request


def resolve_names(body: Mapping[str, Any], values: dict[str, Any], names: dict[str, str]) -> list[FieldError]:
    """Sampler and schedule, suffixes included; unlike the sdapi this door refuses what it does not know."""
    # sampler_index is the older name of the same field; as in A1111 it counts when sampler_name is not given.
    field = "sampler_name" if body.get("sampler_name") or not body.get("sampler_index") else "sampler_index"
    sampler, schedule = body.get(field), body.get("scheduler")
    names |= {"sampler": f"request.{field}", "schedule": "request.scheduler"}
    errors = [
        FieldError(f"request.{name}", f"{name} must be a text.", value)
        for name, value in ((field, sampler), ("scheduler", schedule))
        if value is not None and not isinstance(value, str)
    ]
    if not errors and schedule and schedule not in SPELLINGS:
        errors.append(
            FieldError("request.scheduler", f"Scheduler {schedule!r} is unknown; GET /sdapi/v1/schedulers lists them.")
        )
    if errors:
        return errors
    try:
        resolved = resolve_sampler(sampler or "Euler", schedule, strict=True)
    except UnknownSamplerError:
        return [FieldError(f"request.{field}", f"Sampler {sampler!r} is unknown; GET /sdapi/v1/samplers lists them.")]
    values["sampler"], values["schedule"] = resolved.sampler.name, resolved.schedule.label
    return []


def given(body: Mapping[str, Any], name: str, default: Any) -> Any:
    """The field's value; absent and null are the default, while false, 0 and the empty list are what they are."""
    value = body.get(name)
    return default if value is None else value


def unknown_fields(body: Mapping[str, Any], known: set[str], where: str) -> list[FieldError]:
    prefix = f"{where}." if where else ""
    return [
        FieldError(f"{prefix}{name}", f"Field {str(name)[:80]!r} is unknown or not supported by this version.")
        for name in sorted(set(body) - known)
    ]


def job_body(body: Any) -> dict[str, Any]:
    """The outer fields of ``POST /jobs`` as keyword arguments of ``job_submit``, the request included.

    Raises:
        InvalidRequestError: With everything that is wrong outside the request, or else inside it.
    """
    if not isinstance(body, Mapping):
        raise InvalidRequestError([FieldError("", "The body must be a JSON object.")])
    errors = unknown_fields(body, JOB_FIELDS, "")
    kind, lane, priority = body.get("kind"), given(body, "lane", "standard"), given(body, "priority", 0)
    if kind not in list(FIELDS):
        errors.append(FieldError("kind", f"kind is {kind!r}; accepted are {', '.join(FIELDS)}.", kind))
    if not isinstance(lane, str) or lane not in LANES:
        errors.append(FieldError("lane", f"lane is {lane!r}; accepted are {', '.join(LANES)}.", lane))
    if type(priority) is not int or not -100 <= priority <= 100:
        errors.append(FieldError("priority", "priority must be a whole number from -100 to 100.", priority))
    project, tags = given(body, "project", ""), given(body, "tags", {})
    if not isinstance(project, str) or "\x00" in project:
        errors.append(FieldError("project", "project must be a text.", project))
    if not isinstance(tags, Mapping) or any("\x00" in text for pair in tags.items() for text in map(str, pair)):
        errors.append(FieldError("tags", "tags must be an object of texts.", tags))
    try:
        request, uploads = render_request(kind if isinstance(kind, str) else "", body.get("request"))
    except InvalidRequestError as error:
        errors += error.errors
    if errors:
        raise InvalidRequestError(errors)
    return {
        "request": request,
        "uploads": uploads,
        "lane": LANES[lane],
        "priority": priority,
        "project": project,
        "tags": tags,
    }


def note_of(body: Any) -> str:
    """Of a decision's body, which may be empty. Raises: InvalidRequestError: It is anything else."""
    if not isinstance(body, Mapping):
        raise InvalidRequestError([FieldError("", "The body must be a JSON object.")])
    errors, note = unknown_fields(body, {"note"}, ""), given(body, "note", "")
    if not isinstance(note, str) or len(note) > MAX_NOTE_LENGTH or "\x00" in note:
        errors.append(FieldError("note", f"note must be a text of at most {MAX_NOTE_LENGTH} characters."))
    if errors:
        raise InvalidRequestError(errors)
    return str(note)


def as_written(error: InvalidRequestError, body: Mapping[str, Any]) -> InvalidRequestError:
    """The error of a submission with its field where this (valid) body has it: a checkpoint's, a control unit's, an option's."""
    overrides = body["request"].get("override_settings") or {}
    options = {name: f"request.override_settings.{name}" for name, value in overrides.items() if value is not None}
    places = {**options, **places_of_models(body["request"])}
    named = isinstance(error, UnknownNameError | UnfitForFamilyError)
    return InvalidRequestError(
        [
            replace(item, field=places.get(item.field, f"request.{item.field}" if named else item.field))
            for item in error.errors
        ]
    )


def places_of_models(request: Mapping[str, Any]) -> dict[str, str]:
    """Where the networks of the units that take part are named; units that are switched off stand between them."""
    where, units = f"request.{control_units.PLACE}", request.get(control_units.PLACE)
    if units is None:
        where = f"request.alwayson_scripts.{CONTROLNET}.args"
        scripts = wire.mapping(request.get("alwayson_scripts") or {})
        units = arguments_of(scripts_of({"alwayson_scripts": scripts}).get(CONTROLNET))[:DEFAULT_UNITS]
    places = places_of(units, most=len(units))
    return {f"control.{index}.model": f"{where}.{place}.model" for index, place in enumerate(places)}


def job_json(job: RenderJob, progress: JobProgress, *, base: str) -> dict[str, Any]:
    """The job as every call of this API shows it."""
    address = f"{base}/api/v1/jobs/{job.pk}"
    error = {"code": job.error_code, "message": job.error_message} if job.error_code else None
    return {
        "id": str(job.pk),
        "kind": job.kind,
        "state": job.state,
        "lane": Lane(job.lane).name.lower(),
        "priority": job.priority,
        "project": job.project.name if job.project else None,
        "service": job.service.name if job.service else None,
        "tags": job.tags,
        "task_id": job.task_id or None,
        "images_total": job.images_total,
        "images_delivered": job.images_delivered,
        "images_failed": job.images_failed,
        "images_cancelled": job.images_cancelled,
        "progress": round(progress.fraction, 4),
        "eta_seconds": progress.eta_seconds,
        "gpu_seconds": seconds(job.gpu_us),
        "cost": {"amount": f"{job.cost_amount:.6f}", "currency": job.currency},
        "hold": hold_json(job),
        "created_at": job.created_at.isoformat(),
        "started_at": job.started_at.isoformat() if job.started_at else None,
        "finished_at": job.finished_at.isoformat() if job.finished_at else None,
        "paused_at": job.paused_at.isoformat() if job.paused_at else None,
        "error": error,
        "warnings": job.warnings,
        "request": job.request,
        "links": {
            "self": address,
            "images": f"{address}/images",
            "events": f"{address}/events",
            "grid": f"{address}/grid",
            "cancel": f"{address}/cancel",
        },
    }


def image_json(image: RenderImage, job: Any, *, base: str) -> dict[str, Any]:
    """``job`` comes from ``jobs_of``."""
    error = {"code": image.error_code, "message": image.error_message} if image.error_code else None
    return {
        "index": image.index,
        "state": image.state,
        "seed": image.seed,
        "subseed": image.subseed,
        "width": image.width or None,
        "height": image.height or None,
        "sha256": image.sha256 or None,
        "url": file_url(image.file_key, base=base) if image.file_key else None,
        "infotext": image.infotext or None,
        "attachments": [attachment_json(one, base=base) for one in image.attachments.all()],
        "warnings": image.warnings,
        "safety": image.safety_verdict or None,
        "attempts": image.attempts,
        "gpu_seconds": seconds(image.gpu_us),
        "cost": {"amount": f"{image.cost_amount:.6f}", "currency": job.currency, "rate_card": job.rate_card},
        "delivered_at": image.delivered_at.isoformat() if image.delivered_at else None,
        "error": error,
    }


def attachment_json(attachment: ImageAttachment, *, base: str) -> dict[str, Any]:
    return {
        "role": attachment.role,
        "width": attachment.width,
        "height": attachment.height,
        "sha256": attachment.sha256,
        "url": file_url(attachment.file_key, base=base),
    }


def hold_json(job: Any) -> dict[str, Any] | None:
    """What was set aside at submission, and what of it still is; ``job`` comes from ``jobs_of``."""
    if job.hold_amount is None:
        return None
    return {
        "amount": money_text(job.hold_amount),
        "remaining": money_text(job.hold_remaining),
        "currency": job.currency,
    }


def event_json(event: JobEvent) -> dict[str, Any]:
    return {
        "sequence": event.sequence,
        "image_index": event.image_index,
        "from_state": event.from_state or None,
        "to_state": event.to_state,
        "cause": event.cause,
        "created_at": event.created_at.isoformat(),
    }


def estimate_json(estimate: Estimate, budgets: Sequence[Free]) -> dict[str, Any]:
    """``fits`` says whether every budget would take the hold now."""
    price = estimate.price
    frees = [budget.free for budget in budgets if budget.free is not None]
    return {
        "images": estimate.images,
        "currency": price.currency,
        "rate_card": price.rate_card_name,
        "likely": money_text(estimate.likely),
        "most": money_text(estimate.most),
        "likely_gpu_seconds": seconds(estimate.images * estimate.p50_us),
        "measured": estimate.measured,
        "fits": all(free >= estimate.most for free in frees),
        "free": money_text(min(frees, default=None)),
        "budgets": [
            {
                **budget_members(row.account.budget),
                "period": row.account.period,
                "limit": money_text(row.most),
                "spent": money_text(row.account.spent),
                "held": money_text(row.account.held),
                "free": money_text(row.free),
            }
            for row in budgets
        ],
    }


def money_text(amount: Decimal | None) -> str | None:
    return None if amount is None else f"{amount:.6f}"


def usage_json(row: dict[str, Any]) -> dict[str, Any]:
    """A report row with GPU time in seconds and money as text."""
    shown = {name: value for name, value in row.items() if name != "gpu_us"}
    shown |= {name: f"{row[name]:.6f}" for name in ("amount", "deployment") if name in row}
    return {**shown, "gpu_seconds": seconds(row["gpu_us"])}


def seconds(microseconds: int) -> float:
    return math.floor(microseconds) / 1_000_000


# What follows documents the bodies above in the OpenAPI page; the functions are the truth, a test compares the two.


class MoneySchema(serializers.Serializer):
    amount = serializers.CharField(help_text="Six decimal places.")
    currency = serializers.CharField()


class ImageMoneySchema(MoneySchema):
    rate_card = serializers.CharField(allow_null=True)


class HoldSchema(MoneySchema):
    remaining = serializers.CharField(help_text="Shrinks with each delivered image; 0 once the job has ended.")


class ErrorSchema(serializers.Serializer):
    code = serializers.CharField()
    message = serializers.CharField()


class LinksSchema(serializers.Serializer):
    self = serializers.URLField()
    images = serializers.URLField()
    events = serializers.URLField()
    grid = serializers.URLField()
    cancel = serializers.URLField()


class JobSchema(serializers.Serializer):
    id = serializers.UUIDField()
    kind = serializers.ChoiceField(JobKind.choices)
    state = serializers.ChoiceField(JobState.values)
    lane = serializers.ChoiceField(list(LANES))
    priority = serializers.IntegerField()
    project = serializers.CharField(allow_null=True)
    service = serializers.CharField(allow_null=True, help_text="The EAS service it came through.")
    tags = serializers.DictField(child=serializers.CharField())
    task_id = serializers.CharField(allow_null=True)
    images_total = serializers.IntegerField()
    images_delivered = serializers.IntegerField()
    images_failed = serializers.IntegerField()
    images_cancelled = serializers.IntegerField()
    progress = serializers.FloatField(min_value=0, max_value=1)
    eta_seconds = serializers.FloatField(allow_null=True)
    gpu_seconds = serializers.FloatField()
    cost = MoneySchema()
    hold = HoldSchema(allow_null=True)
    created_at = serializers.DateTimeField()
    started_at = serializers.DateTimeField(allow_null=True)
    finished_at = serializers.DateTimeField(allow_null=True)
    paused_at = serializers.DateTimeField(allow_null=True, help_text="Since when none of its images is begun.")
    error = ErrorSchema(allow_null=True)
    warnings = serializers.ListField(child=serializers.CharField(), help_text="What was asked for and cannot be had.")
    request = serializers.DictField(help_text="The canonical request.")
    links = LinksSchema()


class AttachmentSchema(serializers.Serializer):
    role = serializers.CharField(help_text="mask, mask_composite or control_map.")
    width = serializers.IntegerField()
    height = serializers.IntegerField()
    sha256 = serializers.CharField()
    url = serializers.URLField(help_text="As the image's.")


class ImageSchema(serializers.Serializer):
    index = serializers.IntegerField()
    state = serializers.CharField()
    seed = serializers.IntegerField()
    subseed = serializers.IntegerField()
    width = serializers.IntegerField(allow_null=True)
    height = serializers.IntegerField(allow_null=True)
    sha256 = serializers.CharField(allow_null=True)
    url = serializers.URLField(allow_null=True, help_text="Signed; needs no header; expires within the hour.")
    infotext = serializers.CharField(allow_null=True)
    attachments = AttachmentSchema(many=True, help_text="Pictures that came along.")
    warnings = serializers.ListField(child=serializers.CharField(), help_text="What had no effect on this image.")
    safety = serializers.ChoiceField(
        VERDICTS, allow_null=True, help_text="Of the safety filter; null where none looked."
    )
    attempts = serializers.IntegerField()
    gpu_seconds = serializers.FloatField()
    cost = ImageMoneySchema()
    delivered_at = serializers.DateTimeField(allow_null=True)
    error = ErrorSchema(allow_null=True)


class EventSchema(serializers.Serializer):
    sequence = serializers.IntegerField()
    image_index = serializers.IntegerField(allow_null=True, help_text="Null for the job's own moves.")
    from_state = serializers.CharField(allow_null=True)
    to_state = serializers.CharField()
    cause = serializers.CharField()
    created_at = serializers.DateTimeField()


class OptionsSchema(serializers.Serializer):
    sd_model_checkpoint = serializers.CharField(required=False)
    CLIP_stop_at_last_layers = serializers.IntegerField(required=False)
    eta_noise_seed_delta = serializers.IntegerField(required=False)
    emphasis = serializers.CharField(required=False)


class ControlUnitSchema(serializers.Serializer):
    enabled = serializers.BooleanField(required=False, default=True)
    module = serializers.CharField(required=False, default="none")
    model = serializers.CharField(
        required=False, help_text="Stem, with or without its hash; GET /controlnet/model_list."
    )
    image = serializers.CharField(
        required=False, help_text="Base64 or a data URI; absent takes the picture of img2img."
    )
    mask = serializers.CharField(required=False)
    effective_region_mask = serializers.CharField(required=False)
    weight = serializers.FloatField(required=False, default=1, min_value=0, max_value=2)
    resize_mode = serializers.ChoiceField(RESIZE_MODES, required=False, default=CROP_AND_RESIZE)
    processor_res = serializers.IntegerField(required=False)
    threshold_a = serializers.FloatField(required=False)
    threshold_b = serializers.FloatField(required=False)
    guidance_start = serializers.FloatField(required=False, default=0, min_value=0, max_value=1)
    guidance_end = serializers.FloatField(required=False, default=1, min_value=0, max_value=1)
    pixel_perfect = serializers.BooleanField(required=False, default=False)
    control_mode = serializers.ChoiceField(CONTROL_MODES, required=False, default=CONTROL_MODES[0])
    hr_option = serializers.ChoiceField(HIRES_OPTIONS, required=False, default=HIRES_OPTIONS[0])
    inpaint_crop_input_image = serializers.BooleanField(required=False, default=True)
    advanced_weighting = serializers.ListField(child=serializers.FloatField(), required=False)
    save_detected_map = serializers.BooleanField(required=False, default=True)


class RequestSchema(serializers.Serializer):
    prompt = serializers.CharField(required=False)
    negative_prompt = serializers.CharField(required=False)
    seed = serializers.IntegerField(required=False, default=-1)
    subseed = serializers.IntegerField(required=False, default=-1)
    subseed_strength = serializers.FloatField(required=False, default=0)
    seed_resize_from_w = serializers.IntegerField(required=False, default=-1)
    seed_resize_from_h = serializers.IntegerField(required=False, default=-1)
    sampler_name = serializers.CharField(required=False, default="Euler")
    sampler_index = serializers.CharField(required=False, help_text="The older name of sampler_name.")
    scheduler = serializers.CharField(required=False, default="Automatic")
    batch_size = serializers.IntegerField(required=False, default=1)
    n_iter = serializers.IntegerField(required=False, default=1)
    steps = serializers.IntegerField(required=False, default=20)
    cfg_scale = serializers.FloatField(required=False, default=7)
    width = serializers.IntegerField(required=False, default=512)
    height = serializers.IntegerField(required=False, default=512)
    tiling = serializers.BooleanField(required=False, default=False)
    eta = serializers.FloatField(required=False)
    s_churn = serializers.FloatField(required=False, default=0)
    s_tmin = serializers.FloatField(required=False, default=0)
    s_tmax = serializers.FloatField(required=False, default=0)
    s_noise = serializers.FloatField(required=False, default=1)
    sd_model_checkpoint = serializers.CharField(required=False)
    override_settings = OptionsSchema(required=False)
    control = ControlUnitSchema(many=True, required=False)


class NewJobSchema(serializers.Serializer):
    kind = serializers.ChoiceField(JobKind.choices)
    request = RequestSchema()
    lane = serializers.ChoiceField(list(LANES), required=False, default="standard")
    project = serializers.CharField(required=False)
    tags = serializers.DictField(child=serializers.CharField(), required=False)
    priority = serializers.IntegerField(required=False, default=0, min_value=-100, max_value=100)


class BudgetLeftSchema(serializers.Serializer):
    id = serializers.IntegerField()
    name = serializers.CharField()
    scope = serializers.ChoiceField(BudgetScope.values)
    period = serializers.CharField(help_text="YYYY-MM, or total.")
    limit = serializers.CharField(allow_null=True, help_text="Null for a budget that only warns.")
    spent = serializers.CharField()
    held = serializers.CharField()
    free = serializers.CharField(allow_null=True)


class EstimateSchema(serializers.Serializer):
    images = serializers.IntegerField()
    currency = serializers.CharField()
    rate_card = serializers.CharField()
    likely = serializers.CharField(help_text="What half of such jobs cost at most.")
    most = serializers.CharField(help_text="What is held, and the most that is charged.")
    likely_gpu_seconds = serializers.FloatField()
    measured = serializers.BooleanField(help_text="False where nothing alike was rendered before.")
    fits = serializers.BooleanField(help_text="Whether every budget would take the hold now.")
    free = serializers.CharField(allow_null=True, help_text="Of the tightest budget; null where none blocks.")
    budgets = BudgetLeftSchema(many=True)


class DecisionSchema(serializers.Serializer):
    note = serializers.CharField(required=False, max_length=MAX_NOTE_LENGTH)


class GridSchema(serializers.Serializer):
    url = serializers.URLField()
    images = serializers.IntegerField()
    width = serializers.IntegerField()
    height = serializers.IntegerField()


class UsageRowSchema(serializers.Serializer):
    images = serializers.IntegerField()
    gpu_seconds = serializers.FloatField()
    amount = serializers.CharField()
    deployment = serializers.CharField(help_text="What of the amount is for deployed instances.")
    currency = serializers.CharField()


class UnsettledRowSchema(serializers.Serializer):
    cost = serializers.ChoiceField((ACCRUED, UNBILLED))
    team = serializers.CharField()
    service = serializers.CharField()
    pool = serializers.CharField()
    gpu_seconds = serializers.FloatField(help_text="Instances times time.")
    amount = serializers.CharField()
    currency = serializers.CharField()


class UnallocatedRowSchema(serializers.Serializer):
    cost = serializers.ChoiceField([account.value for account in UNALLOCATED])
    team = serializers.CharField(allow_null=True)
    pool = serializers.CharField()
    events = serializers.IntegerField()
    gpu_seconds = serializers.FloatField()
    amount = serializers.CharField()
    currency = serializers.CharField()


class UsageSchema(serializers.Serializer):
    results = UsageRowSchema(many=True)
    unallocated = UnallocatedRowSchema(many=True, help_text="On nobody's bill; what is placed beside the team.")
    deployments = UnsettledRowSchema(
        many=True, help_text="Of deployed instances, what is not on the bill yet, and what has no price."
    )
    next = serializers.URLField(allow_null=True)


class BudgetNameSchema(serializers.Serializer):
    id = serializers.IntegerField()
    name = serializers.CharField()
    scope = serializers.ChoiceField(BudgetScope.values)


class BudgetProblemSchema(ProblemSchema):
    budget = BudgetNameSchema()
    period = serializers.CharField()
    currency = serializers.CharField()
    limit = serializers.CharField()
    spent = serializers.CharField()
    held = serializers.CharField()
    asked = serializers.CharField()


class QuotaProblemSchema(ProblemSchema):
    quota = serializers.ChoiceField(Measure.values)
    whose = serializers.ChoiceField(("token", "member", "team", "organisation"))
    limit = serializers.IntegerField()
    used = serializers.IntegerField()
    asked = serializers.IntegerField()
    resets_at = serializers.DateTimeField(allow_null=True)


def page_of(name: str, row: type[serializers.Serializer]) -> serializers.Serializer:
    """The schema of one page: ``results`` and the address of the next page."""
    fields = {"results": row(many=True), "next": serializers.URLField(allow_null=True)}
    return type(name, (serializers.Serializer,), fields)()
