"""Queued requests: taken from the input queue, called as the web API would be, answered in the sink queue exactly once.

::

    waiting ──requests_take──→ in hand (taken_until) ──call──→ request_answer: sink frame in, input frame out, one transaction
       ↑──────── request_again (another job, up to max_delivery) ────┤
       └──────── time is up: whoever took it was lost ───────────────┘

Taking twice is harmless: the call's idempotency key is the frame's, so the second call waits for the job of the first, and the
input frame can be replaced by its answer only once. Who runs the calls is ``workers``.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.db import transaction
from django.db.models import F, Q
from django.db.models.functions import Now

from accounts.authentication import Caller
from accounts.models import ApiToken, Scope
from common.database import now_plus
from renderjobs.choices import JOB_OPEN, Lane
from renderjobs.compat.eas.queues import NewFrame, Removed, frames_append, is_full, queue_locked, remove
from renderjobs.compat.eas.wakeups import announce
from renderjobs.compat.pai.wire import id_task_of
from renderjobs.compat.sdapi.inside import InsideRequest
from renderjobs.compat.sdapi.script_calls import script_interrupt
from renderjobs.models import EasEdition, EasFrame, EasQueue, EasService, IdempotencyRecord, QueueKind, ScriptCall
from renderjobs.models.jobs import Source
from renderjobs.submission import job_cancel

TAKEN_SECONDS = 30
"""A taken request that nobody renews for so long is taken by another worker."""
MAX_TRIES = 5
"""A request that was with so many workers which were all lost is answered instead of taking the next one along."""
LAST_CODE = "lastCode"
KEY = "eas-"
DELETED = "its queued request was deleted"
TRANSIENT = 500
"""From this status on, another delivery may help."""


@dataclass(frozen=True, slots=True)
class Taken:
    """A request in hand, and what is needed to answer it."""

    frame_id: int
    index: int
    delivery: int
    tries: int
    path: str
    data: bytes
    tags: Mapping[str, str]
    caller: Caller | None
    """None when the token it was put with has ended meanwhile."""
    service: EasService

    def as_request(self, caller: Caller) -> InsideRequest:
        path, _, query = self.path.partition("?")
        return InsideRequest(
            path=path,
            query=query,
            body=self.data,
            caller=caller,
            idempotency_key=key_of(self.frame_id, self.delivery),
            source=Source.EAS,
            lane=Lane.STANDARD,
        )


def key_of(frame_id: int, delivery: int) -> str:
    """The idempotency key of the call that is made for a request, the so-many-th time."""
    return f"{KEY}{frame_id}-{delivery}"


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes into the sink. An empty one with status 200 leaves no frame."""

    status: int
    data: bytes


# --- taking and giving back -------------------------------------------------------------------------------------------


def requests_take() -> list[Taken]:
    """Take what the windows of all services have room for."""
    waiting = EasFrame.objects.filter(_free()).values("queue")
    queues = EasQueue.objects.filter(
        pk__in=waiting, kind=QueueKind.INPUT, service__enabled=True, service__edition=EasEdition.API
    )
    return [taken for pk in queues.order_by("pk").values_list("pk", flat=True) for taken in _taken_of(pk)]


def _free() -> Q:
    return Q(taken_until=None) | Q(taken_until__lt=Now())


@transaction.atomic
def _taken_of(queue_id: int) -> list[Taken]:
    queue = EasQueue.objects.select_for_update().filter(pk=queue_id).first()
    if queue is None:
        return []
    service = EasService.objects.select_related("pool").defer("document").get(pk=queue.service_id)
    frames = EasFrame.objects.filter(queue=queue)
    room = service.window - frames.filter(taken_until__gte=Now()).count()
    sink = EasQueue.objects.get(service=service, kind=QueueKind.SINK)
    # A full sink stops the service: what is rendered must have a place to go to.
    if room <= 0 or is_full(sink, room_for=service.window, most=service.max_frames):
        return []
    rows = list(frames.filter(_free()).order_by("-priority", "index")[:room])
    ids = [row.pk for row in rows]
    EasFrame.objects.filter(pk__in=ids).update(taken_until=now_plus(TAKEN_SECONDS), tries=F("tries") + 1)
    callers = _callers(service, {row.token_id for row in rows if row.token_id})
    return [
        Taken(
            frame_id=row.pk,
            index=row.index,
            delivery=row.deliveries,
            tries=row.tries + 1,
            path=row.path or "/",
            data=bytes(row.data),
            tags=row.tags,
            caller=callers.get(row.token_id or 0),
            service=service,
        )
        for row in rows
    ]


def _callers(service: EasService, token_ids: set[int]) -> dict[int, Caller]:
    tokens = ApiToken.objects.usable().filter(pk__in=token_ids).select_related("user", "team", "eas_service")
    return {
        token.pk: Caller(token.user, token.team, token, through=service)
        for token in tokens
        if token.has_scope(Scope.SDAPI)
    }


def request_keep(taken: Taken) -> bool:
    """Say that it is still in hand; False when it was deleted meanwhile."""
    return bool(EasFrame.objects.filter(pk=taken.frame_id).update(taken_until=now_plus(TAKEN_SECONDS)))


def requests_release(taken: Sequence[Taken]) -> None:
    """A worker that stops gives back what it has in hand; the jobs go on and are found again by their keys."""
    rows = EasFrame.objects.filter(pk__in=[one.frame_id for one in taken])
    queue_ids = list(rows.order_by("queue").values_list("queue", flat=True).distinct())
    rows.filter(tries__gt=0).update(taken_until=None, tries=F("tries") - 1)
    for queue_id in queue_ids:
        announce(queue_id)


def request_again(taken: Taken) -> bool:
    """Let another job be made for it, where the service allows one more; False when it does not."""
    if taken.delivery >= taken.service.max_delivery:
        return False
    row = EasFrame.objects.filter(pk=taken.frame_id, deliveries=taken.delivery)
    row.update(deliveries=taken.delivery + 1, taken_until=None, tries=0)
    for queue_id in EasFrame.objects.filter(pk=taken.frame_id).values_list("queue", flat=True):
        announce(queue_id)
    return True


def requests_abandon(*, service: EasService, removed: Iterable[Removed]) -> None:
    """Take back what is not delivered for requests that were deleted; what was held for it is free then.

    Doing it twice does nothing more. A job that is made at the same moment is taken back by who keeps its request in hand.
    """
    keys = {(one.token_id, key_of(one.frame_id, one.delivery)) for one in removed if one.token_id}
    if not keys:
        return
    # By what is open, which is little, not by what was deleted, which may be a whole queue.
    records = IdempotencyRecord.objects.filter(job__service=service, job__state__in=JOB_OPEN, key__startswith=KEY)
    for record in records.select_related("job").order_by("pk"):
        if (record.token_id, record.key) in keys:
            job_cancel(job=record.job, cause=DELETED)
    calls = ScriptCall.objects.filter(service=service, ended_at=None, idempotency_key__startswith=KEY)
    for call in calls.order_by("pk"):
        if (call.token_id, call.idempotency_key) in keys:
            script_interrupt(call, cause=DELETED)


def request_abandon(taken: Taken) -> None:
    token = taken.caller.token if taken.caller else None
    removed = Removed(taken.frame_id, token.pk if token else None, taken.delivery)
    requests_abandon(service=taken.service, removed=[removed])


# --- answering --------------------------------------------------------------------------------------------------------


@transaction.atomic
def request_answer(*, taken: Taken, answer: Answer) -> bool:
    """Put the answer into the sink in place of the request; False when it was answered or deleted before."""
    row = EasFrame.objects.filter(pk=taken.frame_id).defer("data").first()
    if row is None:
        return False
    queue_locked(row.queue_id)
    if not remove([row.pk]):
        return False
    announce(row.queue_id)
    if answer.status == 200 and not answer.data:
        return True
    tags = dict(taken.tags) if answer.status == 200 else {**taken.tags, LAST_CODE: str(answer.status)}
    sink = EasQueue.objects.get(service=taken.service, kind=QueueKind.SINK)
    frame = NewFrame(data=answer.data, tags=tags, priority=row.priority, answer_to=row.index)
    # Whether it has room was asked when the request was taken; a result is never thrown away.
    frames_append(queue_id=sink.pk, frames=[frame], most=None)
    announce(sink.pk)
    return True


def refusal(taken: Taken, status: int, message: str, *, body: bytes = b"") -> Answer:
    """An error in the shape results have, beside what the web API itself answered."""
    said = _object(body)
    result = {
        **said,
        "images": [],
        "parameters": {
            "id_task": id_task_of(_object(taken.data).get("alwayson_scripts")),
            "status": status,
            "image_url": "",
            "seed": "",
            "error_msg": message or _reason(said) or f"The call was answered with status {status}.",
            "image_mask_url": "",
        },
        "info": json.dumps({"hostname": platform.node()}),
    }
    return Answer(status, json.dumps(result).encode())


def answer_made(taken: Taken, status: int, body: bytes) -> Answer:
    return Answer(200, body) if status == 200 else refusal(taken, status, "", body=body)


def too_large(taken: Taken, size: int) -> Answer:
    most = taken.service.max_payload_bytes
    return refusal(taken, 413, f"The result has {size} bytes; at most {most} fit the queue. Set save_dir.")


def _reason(said: Mapping[str, Any]) -> str:
    """A1111's errors say it under one of these keys, an answer of paths among its parameters."""
    parameters = said.get("parameters")
    if isinstance(parameters, dict) and parameters.get("error_msg"):
        return str(parameters["error_msg"])
    for key in ("errors", "detail", "error"):
        if value := said.get(key):
            return value if isinstance(value, str) else json.dumps(value)
    return ""


def _object(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
