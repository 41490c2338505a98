"""The OpenAPI document of this door, made from the tables that read its bodies. What a field does is said in docs/sdapi.md."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from django.http import HttpRequest, JsonResponse

from renderjobs.compat.sdapi import agent_scheduler, wire
from renderjobs.compat.sdapi.catalogue import cmd_flags
from renderjobs.compat.sdapi.infotext import VERSION
from renderjobs.compat.sdapi.profile import default_options

Schema = dict[str, Any]

ANYTHING: Schema = {}
TEXT: Schema = {"type": "string"}
INTEGER: Schema = {"type": "integer"}
NUMBER: Schema = {"type": "number"}
BOOLEAN: Schema = {"type": "boolean"}
OBJECT: Schema = {"type": "object"}
NULL: Schema = {"nullable": True, "enum": [None]}


def nullable(schema: Schema) -> Schema:
    return {**schema, "nullable": True}


def many(schema: Schema) -> Schema:
    return {"type": "array", "items": schema}


def named(schema: Schema) -> Schema:
    """An object whose keys are names."""
    return {"type": "object", "additionalProperties": schema}


def record(**properties: Schema) -> Schema:
    """What is answered: every field is there, and null only where it says so."""
    return {"type": "object", "required": list(properties), "properties": properties}


def ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


# --- bodies -----------------------------------------------------------------------------------------------------------

TYPES: dict[Callable[[Any], Any], Schema] = {
    wire.integer: INTEGER,
    wire.number: NUMBER,
    wire.text: TEXT,
    wire.boolean: BOOLEAN,
    wire.mapping: OBJECT,
    wire.items: many(ANYTHING),
    wire.texts: many(TEXT),
    wire.named_pictures: many(ref("FileData")),
}


def type_of(coerce: Callable[[Any], Any]) -> Schema:
    match coerce:
        case wire.Chosen(accepted):
            return {"type": "integer", "enum": list(accepted)}
        case wire.AtLeast(first):
            return {"type": "integer", "minimum": first}
        case wire.Bounded(first, last, open_start):
            low: Schema = {"minimum": first, "exclusiveMinimum": True} if open_start else {"minimum": first}
            return {"type": "number", **low, **({"maximum": last} if math.isfinite(last) else {})}
    return TYPES[coerce]


def field_schema(field: wire.Field) -> Schema:
    schema = nullable(type_of(field.coerce)) if field.nullable else type_of(field.coerce)
    if field.default is None:
        return schema
    return {**schema, "default": list(field.default) if isinstance(field.default, tuple) else field.default}


def body_schema(fields: Mapping[str, wire.Field]) -> Schema:
    required = [name for name, field in fields.items() if field.required]
    properties = {name: field_schema(field) for name, field in fields.items()}
    return {"type": "object", **({"required": required} if required else {}), "properties": properties}


BODIES = {
    "StableDiffusionProcessingTxt2Img": wire.TXT2IMG,
    "StableDiffusionProcessingImg2Img": wire.IMG2IMG,
    "ExtrasSingleImageRequest": wire.EXTRAS_SINGLE,
    "ExtrasBatchImagesRequest": wire.EXTRAS_BATCH,
    "PNGInfoRequest": wire.PNG_INFO,
    "InterrogateRequest": wire.INTERROGATE,
    "ProgressRequest": wire.TASK_PROGRESS,
    "DetectRequest": wire.DETECT_AS_SENT,
    "Txt2ImgApiTaskArgs": agent_scheduler.TXT2IMG,
    "Img2ImgApiTaskArgs": agent_scheduler.IMG2IMG,
}

# --- answers ----------------------------------------------------------------------------------------------------------

GENERATED = record(images=many(TEXT), parameters=OBJECT, info=TEXT)
EMBEDDING = record(
    step=nullable(INTEGER),
    sd_checkpoint=nullable(TEXT),
    sd_checkpoint_name=nullable(TEXT),
    shape=INTEGER,
    vectors=INTEGER,
)
EXTENSION = record(
    name=TEXT, remote=TEXT, branch=TEXT, commit_hash=TEXT, version=TEXT, commit_date=TEXT, enabled=BOOLEAN
)
PROGRESS = record(
    progress=NUMBER,
    eta_relative=NUMBER,
    state=OBJECT,
    current_image=nullable(TEXT),
    textinfo=nullable(TEXT),
)
TASK_PROGRESS = record(
    active=BOOLEAN,
    queued=BOOLEAN,
    completed=BOOLEAN,
    progress=nullable(NUMBER),
    eta=nullable(NUMBER),
    live_preview=nullable(TEXT),
    id_live_preview=INTEGER,
    textinfo=nullable(TEXT),
)
SCHEDULER = record(name=TEXT, label=TEXT, aliases=nullable(many(TEXT)), default_rho=NUMBER, need_inner_model=BOOLEAN)
SD_MODEL = record(title=TEXT, model_name=TEXT, hash=TEXT, sha256=TEXT, filename=TEXT, config=nullable(TEXT))
SCRIPT_ARG = record(
    label=nullable(TEXT),
    value=ANYTHING,
    minimum=ANYTHING,
    maximum=ANYTHING,
    step=ANYTHING,
    choices=nullable(many(TEXT)),
)
UPSCALER = record(
    name=TEXT, model_name=nullable(TEXT), model_path=nullable(TEXT), model_url=nullable(TEXT), scale=NUMBER
)
CONTROL_TYPE = record(module_list=many(TEXT), model_list=many(TEXT), default_option=TEXT, default_model=TEXT)
MODULES = record(module_list=many(TEXT), module_detail=named(record(model_free=BOOLEAN, sliders=many(OBJECT))))
VALIDATION_ERROR = record(loc=many({"anyOf": [TEXT, INTEGER]}), msg=TEXT, type=TEXT)
TASK = record(
    id=TEXT,
    api_task_id=nullable(TEXT),
    api_task_callback=nullable(TEXT),
    name=nullable(TEXT),
    type=TEXT,
    status={**TEXT, "enum": ["pending", "running", "done", "failed", "interrupted"]},
    params=OBJECT,
    priority=INTEGER,
    position=nullable(INTEGER),
    result=nullable(TEXT),
    bookmarked=BOOLEAN,
    created_at={"anyOf": [INTEGER, TEXT]},
    updated_at={"anyOf": [INTEGER, TEXT]},
)
QUEUE = record(
    current_task_id=nullable(TEXT), pending_tasks=many(ref("TaskModel")), total_pending_tasks=INTEGER, paused=BOOLEAN
)
SAID = {
    "type": "object",
    "required": ["success"],
    "properties": {"success": BOOLEAN, "message": TEXT, "data": ANYTHING},
}
FOUR_KEYS = record(error=TEXT, detail=TEXT, body=TEXT, errors=TEXT)

POINTS = nullable(many(NUMBER))
"""x, y and how sure the detector was, of one point after the other."""
POSES: Schema = {
    "type": "object",
    "required": ["people", "canvas_width", "canvas_height"],
    "properties": {
        "people": many(
            {
                "type": "object",
                "required": ["pose_keypoints_2d"],
                "properties": {
                    "pose_keypoints_2d": many(NUMBER),
                    "hand_left_keypoints_2d": POINTS,
                    "hand_right_keypoints_2d": POINTS,
                    "face_keypoints_2d": POINTS,
                },
            }
        ),
        "canvas_width": {"type": "integer", "minimum": 1},
        "canvas_height": {"type": "integer", "minimum": 1},
    },
}
ANSWERS = {
    "TextToImageResponse": GENERATED,
    "ImageToImageResponse": GENERATED,
    "ExtrasSingleImageResponse": record(html_info=TEXT, image=TEXT),
    "ExtrasBatchImagesResponse": record(html_info=TEXT, images=many(TEXT)),
    "FileData": {"type": "object", "required": ["data", "name"], "properties": {"data": TEXT, "name": TEXT}},
    "PNGInfoResponse": record(info=TEXT, items=OBJECT, parameters=OBJECT),
    "ProgressResponse": PROGRESS,
    "TaskProgressResponse": TASK_PROGRESS,
    "SamplerItem": record(name=TEXT, aliases=many(TEXT), options=named(TEXT)),
    "SchedulerItem": SCHEDULER,
    "UpscalerItem": UPSCALER,
    "LatentUpscalerModeItem": record(name=TEXT),
    "SDModelItem": SD_MODEL,
    "SDVaeItem": record(model_name=TEXT, filename=TEXT),
    "HypernetworkItem": record(name=TEXT, path=TEXT),
    "FaceRestorerItem": record(name=TEXT, cmd_dir=nullable(TEXT)),
    "RealesrganItem": record(name=TEXT, path=nullable(TEXT), scale=nullable(INTEGER)),
    "PromptStyleItem": record(name=TEXT, prompt=nullable(TEXT), negative_prompt=nullable(TEXT)),
    "EmbeddingItem": EMBEDDING,
    "EmbeddingsResponse": record(loaded=named(ref("EmbeddingItem")), skipped=named(ref("EmbeddingItem"))),
    "LoraItem": record(name=TEXT, alias=TEXT, path=TEXT, metadata=OBJECT),
    "CreateResponse": record(info=TEXT),
    "TrainResponse": record(info=TEXT),
    "MemoryResponse": record(ram=OBJECT, cuda=OBJECT),
    "ScriptsList": record(txt2img=many(ANYTHING), img2img=many(ANYTHING)),
    "ScriptArg": SCRIPT_ARG,
    "ScriptInfo": record(name=TEXT, is_alwayson=BOOLEAN, is_img2img=BOOLEAN, args=many(ref("ScriptArg"))),
    "ExtensionItem": EXTENSION,
    "ControlModules": MODULES,
    "ControlTypes": record(control_types=named(CONTROL_TYPE)),
    "PoseDocument": POSES,
    "TaskModel": TASK,
    "QueueTaskResponse": record(task_id=TEXT),
    "QueueStatusResponse": QUEUE,
    "HistoryResponse": record(tasks=many(ref("TaskModel")), total=INTEGER),
    "TaskAnswer": SAID,
    "ValidationError": VALIDATION_ERROR,
    "HTTPValidationError": record(detail=many(ref("ValidationError"))),
    "HTTPException": FOUR_KEYS,
}
JSON_TYPES = {bool: "boolean", int: "number", float: "number", str: "string", list: "array", dict: "object"}


def value_schema(value: Any) -> Schema:
    """Of an option by its default; an empty one tells no type, as A1111 has it."""
    if not value:
        return {} if value is None else {"default": value}
    schema = {"type": JSON_TYPES[type(value)], "default": value}
    return {**schema, "items": ANYTHING} if isinstance(value, list) else schema


def options_schema() -> Schema:
    defaults = {**default_options(), "sd_model_checkpoint": None, "sd_checkpoint_hash": ""}
    return {"type": "object", "properties": {name: value_schema(value) for name, value in defaults.items()}}


def flags_schema() -> Schema:
    return {"type": "object", "properties": {name: flag_schema(value) for name, value in cmd_flags().items()}}


def flag_schema(value: Any) -> Schema:
    """A start flag: what is null takes a text."""
    if value is None:
        return nullable(TEXT)
    schema = {"type": "integer" if type(value) is int else JSON_TYPES[type(value)], "default": value}
    return {**schema, "items": ANYTHING} if isinstance(value, list) else schema


# --- calls ------------------------------------------------------------------------------------------------------------

REFUSED = (401, 403, 500, 503)
READING = (413, 422)
WORKING = (*READING, 402, 404, 409, 429, 501)
NOT_HERE = (501,)


@dataclass(frozen=True, slots=True)
class Call:
    """One operation: what 200 answers, what it reads, and the other statuses it may answer with."""

    answer: Schema
    body: str | Schema | None = None
    query: Mapping[str, Schema] = field(default_factory=dict)
    statuses: tuple[int, ...] = ()
    content_type: str = "application/json"


def work(answer: str, body: str) -> Call:
    return Call(ref(answer), body=body, statuses=WORKING)


def listed(item: str) -> Call:
    return Call(many(ref(item)))


def training(answer: str) -> Call:
    return Call(ref(answer), body=OBJECT, statuses=NOT_HERE)


def said(*statuses: int) -> Call:
    """What agent-scheduler answers about a task, also when there is none."""
    return Call(ref("TaskAnswer"), statuses=statuses)


FLAG = {**BOOLEAN, "default": False}
PAGE = {"limit": {**INTEGER, "default": 20}, "offset": {**INTEGER, "default": 0}}
CALLS: dict[tuple[str, str], Call] = {
    ("post", "/sdapi/v1/txt2img"): work("TextToImageResponse", "StableDiffusionProcessingTxt2Img"),
    ("post", "/sdapi/v1/img2img"): work("ImageToImageResponse", "StableDiffusionProcessingImg2Img"),
    ("post", "/sdapi/v1/extra-single-image"): work("ExtrasSingleImageResponse", "ExtrasSingleImageRequest"),
    ("post", "/sdapi/v1/extra-batch-images"): work("ExtrasBatchImagesResponse", "ExtrasBatchImagesRequest"),
    ("post", "/sdapi/v1/png-info"): Call(ref("PNGInfoResponse"), body="PNGInfoRequest", statuses=READING),
    ("get", "/sdapi/v1/progress"): Call(ref("ProgressResponse"), query={"skip_current_image": FLAG}, statuses=(422,)),
    ("post", "/sdapi/v1/interrogate"): Call(ANYTHING, body="InterrogateRequest", statuses=(*READING, *NOT_HERE)),
    ("post", "/sdapi/v1/interrupt"): Call(OBJECT),
    ("post", "/sdapi/v1/skip"): Call(NULL),
    ("get", "/sdapi/v1/options"): Call(ref("Options")),
    ("post", "/sdapi/v1/options"): Call(NULL, body=OBJECT, statuses=(*READING, *NOT_HERE)),
    ("get", "/sdapi/v1/cmd-flags"): Call(ref("Flags")),
    ("get", "/sdapi/v1/samplers"): listed("SamplerItem"),
    ("get", "/sdapi/v1/schedulers"): listed("SchedulerItem"),
    ("get", "/sdapi/v1/upscalers"): listed("UpscalerItem"),
    ("get", "/sdapi/v1/latent-upscale-modes"): listed("LatentUpscalerModeItem"),
    ("get", "/sdapi/v1/sd-models"): listed("SDModelItem"),
    ("get", "/sdapi/v1/sd-vae"): listed("SDVaeItem"),
    ("get", "/sdapi/v1/hypernetworks"): listed("HypernetworkItem"),
    ("get", "/sdapi/v1/face-restorers"): listed("FaceRestorerItem"),
    ("get", "/sdapi/v1/realesrgan-models"): listed("RealesrganItem"),
    ("get", "/sdapi/v1/prompt-styles"): listed("PromptStyleItem"),
    ("get", "/sdapi/v1/embeddings"): Call(ref("EmbeddingsResponse")),
    **{("post", f"/sdapi/v1/refresh-{name}"): Call(NULL) for name in ("embeddings", "checkpoints", "vae", "loras")},
    **{("post", f"/sdapi/v1/create/{name}"): training("CreateResponse") for name in ("embedding", "hypernetwork")},
    **{("post", f"/sdapi/v1/train/{name}"): training("TrainResponse") for name in ("embedding", "hypernetwork")},
    ("get", "/sdapi/v1/memory"): Call(ref("MemoryResponse")),
    ("post", "/sdapi/v1/unload-checkpoint"): Call(OBJECT),
    ("post", "/sdapi/v1/reload-checkpoint"): Call(OBJECT),
    ("get", "/sdapi/v1/scripts"): Call(ref("ScriptsList")),
    ("get", "/sdapi/v1/script-info"): listed("ScriptInfo"),
    ("get", "/sdapi/v1/extensions"): listed("ExtensionItem"),
    **{("post", f"/sdapi/v1/server-{name}"): Call(TEXT, statuses=NOT_HERE) for name in ("kill", "restart", "stop")},
    ("get", "/sdapi/v1/loras"): listed("LoraItem"),
    ("get", "/controlnet/version"): Call(record(version=INTEGER)),
    ("get", "/controlnet/settings"): Call(record(control_net_unit_count=INTEGER)),
    ("get", "/controlnet/model_list"): Call(record(model_list=many(TEXT))),
    ("get", "/controlnet/module_list"): Call(ref("ControlModules"), query={"alias_names": FLAG}),
    ("get", "/controlnet/control_types"): Call(ref("ControlTypes")),
    ("post", "/controlnet/render_openpose_json"): Call(
        {**record(info=TEXT, images=many(TEXT)), "required": ["info"]}, body=many(ref("PoseDocument")), statuses=READING
    ),
    ("post", "/controlnet/detect"): Call(record(info=TEXT, images=many(TEXT)), body="DetectRequest", statuses=WORKING),
    ("post", "/internal/progress"): Call(ref("TaskProgressResponse"), body="ProgressRequest", statuses=READING),
    ("get", "/internal/pending-tasks"): Call(record(size=INTEGER, tasks=many(TEXT))),
    ("get", "/internal/ping"): Call(OBJECT),
    ("get", "/internal/quicksettings-hint"): Call(many(record(name=TEXT, label=TEXT))),
    ("get", "/internal/profile-startup"): Call(OBJECT),
    ("get", "/internal/sysinfo"): Call(TEXT, content_type="text/plain"),
    ("get", "/internal/sysinfo-download"): Call(TEXT, content_type="text/plain"),
    ("get", "/sd_extra_networks/metadata"): Call(OBJECT, query={"page": TEXT, "item": TEXT}),
    ("get", "/sd_extra_networks/get-single-card"): Call(OBJECT, query={"page": TEXT, "tabname": TEXT, "name": TEXT}),
    ("get", "/sd_extra_networks/thumb"): Call(ANYTHING, query={"filename": TEXT}, statuses=(404,)),
    ("get", "/sd_extra_networks/cover-images"): Call(
        ANYTHING, query={"page": TEXT, "item": TEXT, "index": INTEGER}, statuses=(404,)
    ),
    ("get", "/agent-scheduler/v1/samplers"): Call(many(TEXT)),
    ("get", "/agent-scheduler/v1/sd-models"): Call(many(TEXT)),
    ("post", "/agent-scheduler/v1/queue/txt2img"): work("QueueTaskResponse", "Txt2ImgApiTaskArgs"),
    ("post", "/agent-scheduler/v1/queue/img2img"): work("QueueTaskResponse", "Img2ImgApiTaskArgs"),
    ("get", "/agent-scheduler/v1/queue"): Call(ref("QueueStatusResponse"), query=PAGE, statuses=(422,)),
    ("get", "/agent-scheduler/v1/history"): Call(
        ref("HistoryResponse"), query={**PAGE, "status": TEXT}, statuses=(422,)
    ),
    ("get", "/agent-scheduler/v1/task/{task_id}"): said(),
    ("put", "/agent-scheduler/v1/task/{task_id}"): said(),
    ("delete", "/agent-scheduler/v1/task/{task_id}"): said(),
    ("get", "/agent-scheduler/v1/task/{task_id}/position"): said(),
    **{
        ("post", f"/agent-scheduler/v1/{name}"): said(429, 402)
        for name in ("task/{task_id}/requeue", "requeue/{task_id}", "task/requeue-failed")
    },
    **{
        ("get", f"/agent-scheduler/v1/{name}"): Call(ref("TaskAnswer"), query={"zip": FLAG}, statuses=(422,))
        for name in ("task/{task_id}/results", "results/{task_id}")
    },
    **{
        ("post", f"/agent-scheduler/v1/{name}"): said()
        for name in (
            "queue/pause", "queue/resume", "queue/clear", "pause", "resume", "history/clear", "task/{task_id}/run",
            "task/{task_id}/move/{over_id}", "task/{task_id}/bookmark", "task/{task_id}/unbookmark",
            "task/{task_id}/rename", "run/{task_id}", "delete/{task_id}", "bookmark/{task_id}", "unbookmark/{task_id}",
            "rename/{task_id}", "move/{task_id}/{over_id}",
        )
    },
}  # fmt: skip
"""Method and path → what is read and answered, in A1111's order."""
REASONS = {
    401: "No token, or one that is not valid.",
    402: "A budget or the credit does not cover it.",
    403: "The token lacks the scope.",
    404: "A name in the request is unknown.",
    409: "The task id or Idempotency-Key is in use for something else.",
    413: "The body is too large.",
    422: "A field is wrong, or asks for what is not supported.",
    429: "A quota is used up.",
    500: "What the request names or sends cannot be used, in A1111's words.",
    501: "Not part of this server.",
    503: "The service is not available just now.",
}
WRONG_FIELDS = {"oneOf": [ref("HTTPValidationError"), ref("HTTPException")]}


def operation(method: str, path: str, call: Call) -> dict[str, Any]:
    made: dict[str, Any] = {
        "operationId": f"{re.sub(r'[^a-z0-9]+', '_', path).strip('_')}_{method}",
        "responses": {"200": {"description": "Done.", "content": {call.content_type: {"schema": call.answer}}}},
    }
    for status in sorted({*REFUSED, *call.statuses}):
        schema = WRONG_FIELDS if status == 422 else ref("HTTPException")
        content = {"application/json": {"schema": schema}}
        made["responses"][str(status)] = {"description": REASONS[status], "content": content}
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": TEXT} for name in re.findall(r"{(\w+)}", path)
    ] + [{"name": name, "in": "query", "required": False, "schema": schema} for name, schema in call.query.items()]
    if parameters:
        made["parameters"] = parameters
    if call.body is not None:
        schema = ref(call.body) if isinstance(call.body, str) else call.body
        made["requestBody"] = {"content": {"application/json": {"schema": schema}}, "required": True}
    return made


@cache
def document() -> dict[str, Any]:
    paths: dict[str, Any] = {}
    for (method, path), call in CALLS.items():
        paths.setdefault(path, {})[method] = operation(method, path, call)
    schemas = {name: body_schema(fields) for name, fields in BODIES.items()} | ANSWERS
    return {
        "openapi": "3.0.2",
        "info": {"title": "AUTOMATIC1111's interface, as Renderkiln answers it", "version": VERSION},
        "paths": paths,
        "components": {
            "schemas": {**schemas, "Options": options_schema(), "Flags": flags_schema()},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "basic": {"type": "http", "scheme": "basic", "description": "The token is the password."},
            },
        },
        "security": [{"bearer": []}, {"basic": []}],
    }


async def openapi_json(request: HttpRequest) -> JsonResponse:
    """Where FastAPI has it. Nothing of an installation is in it, so it is open to all."""
    return JsonResponse(document())
