"""`/api/predict/<service>[/<path>]` over HTTP: the method and the underscored parameters select the operation.

Plain asynchronous views on the raw body: the clients send no Content-Type.
"""

from __future__ import annotations

import json
import time
import uuid
from functools import partial
from urllib.parse import parse_qs

from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.utils import timezone

from accounts.authentication import Caller, address_of
from renderjobs.compat.eas import queues
from renderjobs.compat.eas.access import Signed, service_called
from renderjobs.compat.eas.browser import is_opened, page_of
from renderjobs.compat.eas.errors import EasError, plain, speaks_eas
from renderjobs.compat.eas.frames import PROTOBUF, Frame, attributes_to_protobuf, list_to_protobuf
from renderjobs.compat.eas.requests import requests_abandon
from renderjobs.compat.eas.synchronous import call_answer
from renderjobs.compat.eas.threads import in_database
from renderjobs.compat.eas.wakeups import QueueHub
from renderjobs.compat.eas.watching import stream_of
from renderjobs.compat.eas.wire import (
    NEWEST,
    PRIORITY_HEADER,
    REQUEST_ID,
    REQUEST_ID_HEADER,
    Query,
    addressed,
    member_of,
)
from renderjobs.models import EasQueue, EasService, QueueKind

DEFAULT_GET_SECONDS, LONGEST_GET_SECONDS = 0.0, 30.0
EARLY_SECONDS = 0.5
"""A waiting get is answered so much before its time: the clients' socket times out at the very same moment."""
PRIORITIES = ("0", "1")
MAX_PATH = 200
METHODS = ("GET", "POST", "PUT", "DELETE")


@speaks_eas
async def predict(request: HttpRequest, service: str, path: str = "") -> HttpResponseBase:
    if request.method not in METHODS:
        return _not_allowed()
    query = Query.of(request.META.get("QUERY_STRING", ""))
    kind, path = addressed(path)
    if kind == QueueKind.INPUT and is_opened(request, query, path):
        return await in_database(page_of, request, service)
    try:
        return await _operation(request, query, service, kind, path)
    except queues.NoQueueError:
        if not path:
            raise
    called, caller = await in_database(_service, request, service)
    return await call_answer(request, called, caller, path)


def _not_allowed() -> HttpResponse:
    response = plain(405, "Method Not Allowed")
    response["Allow"] = ", ".join(METHODS)
    return response


async def _operation(request: HttpRequest, query: Query, name: str, kind: str, path: str) -> HttpResponseBase:
    match request.method:
        case "POST" if query.flag("_eos_"):
            raise EasError(403, "A queue of this server is not ended by its clients; truncate it or stop the service.")
        case "POST":
            return await _put(request, query, name, kind, path)
        case "PUT" if query.flag("_negative_"):
            return await in_database(_give_back, request, query, name, kind)
        case "PUT":
            return await in_database(_commit, request, query, name, kind)
        case "DELETE" if query.flag("_trunc_"):
            return await in_database(_truncate, request, query, name, kind)
        case "DELETE":
            return await in_database(_delete, request, query, name, kind)
    for parameter, answer in READS.items():
        if query.flag(parameter):
            return await in_database(answer, request, query, name, kind)
    if query.flag("_watch_"):
        return await _watch(request, query, name, kind)
    return await _get(request, query, name, kind)


def _queue(request: HttpRequest, name: str, kind: str) -> tuple[EasQueue, Caller]:
    """Raises: EasError: As ``service_called``; or the service has no queue."""
    service, caller = _service(request, name)
    return queues.queue_of(service, kind), caller


def _service(request: HttpRequest, name: str) -> tuple[EasService, Caller]:
    """Asked once per request: it is counted then, and a call of a service without queues comes here twice."""
    if found := getattr(request, "service_called", None):
        return found  # type: ignore[no-any-return]
    header = request.headers.get("Authorization", "")
    signed = Signed(request.path, request.headers, request.body) if request.method == "POST" else None
    found = service_called(name, header, signed, address=address_of(request))
    request.service_called = found  # type: ignore[attr-defined]
    return found


# --- put --------------------------------------------------------------------------------------------------------------


async def _put(request: HttpRequest, query: Query, name: str, kind: str, path: str) -> HttpResponseBase:
    index, request_id = await in_database(_put_now, request, query, name, kind, path)
    response = plain(200, str(index))
    response[REQUEST_ID_HEADER] = request_id
    return response


def _put_now(request: HttpRequest, query: Query, name: str, kind: str, path: str) -> tuple[int, str]:
    queue, caller = _queue(request, name, kind)
    most, size = queue.service.max_payload_bytes, len(request.body)
    if size > most:
        advice = "send pictures as image_link and results to save_dir"
        raise EasError(413, f"The data has {size} bytes; at most {most} are accepted. To keep it small, {advice}.")
    if len(path) > MAX_PATH or "\0" in path:
        raise EasError(400, f"The path is at most {MAX_PATH} characters of text.")
    query.check_request_id()
    frame = queues.NewFrame(
        data=request.body, tags=query.tags, priority=_priority(request, query), path=path, token=caller.token
    )
    (row,) = queues.frames_put(queue=queue, frames=[frame])
    return row.index, row.request_id


def _priority(request: HttpRequest, query: Query) -> int:
    """Raises: EasError: It is no priority."""
    text = query.own.get("_priority_") or request.headers.get(PRIORITY_HEADER) or "0"
    if text not in PRIORITIES:
        raise EasError(400, f"_priority_ is {text[:20]!r}; accepted are {' and '.join(PRIORITIES)}.")
    return int(text)


# --- get --------------------------------------------------------------------------------------------------------------


async def _get(request: HttpRequest, query: Query, name: str, kind: str) -> HttpResponseBase:
    queue, _ = await in_database(_queue, request, name, kind)
    if kind == QueueKind.INPUT and not query.own and REQUEST_ID not in query.tags:
        # Who takes this address for the web API itself would take somebody's request out of the queue.
        raise EasError(400, f"Nothing is read here; GET /api/predict/{name}/sink reads results.")
    seconds = min(query.seconds("_timeout_", DEFAULT_GET_SECONDS), LONGEST_GET_SECONDS)
    deadline = time.monotonic() + seconds - EARLY_SECONDS
    wanted = {
        "index": query.number("_index_", 0, first=NEWEST),
        "length": query.number("_length_", 1, first=1),
        "tags": query.tags,
    }
    hub = QueueHub.of_this_loop()
    while True:
        left = deadline - time.monotonic()
        seen = hub.changes_of(queue.pk) if left > 0 else 0
        enough = left <= 0 or await in_database(queues.frames_ready, queue=queue, **wanted)
        if enough:
            delete = query.flag("_auto_delete_", default=True)
            found = await in_database(queues.frames_get, queue=queue, auto_delete=delete, **wanted)
            if found or left <= 0:
                return _frames_answer(request, query, found)
        await hub.wait(queue.pk, since=seen, seconds=max(left, 0.01))


def _frames_answer(request: HttpRequest, query: Query, found: list[Frame]) -> HttpResponse:
    if not found:
        return HttpResponse(status=204)
    if query.flag("_raw_", default=True) and len(found) == 1 and PROTOBUF not in request.headers.get("Accept", ""):
        response = HttpResponse(found[0].data, content_type="application/octet-stream")
        response[REQUEST_ID_HEADER] = found[0].tags.get(REQUEST_ID, "")
        return response
    if PROTOBUF in request.headers.get("Accept", ""):
        return HttpResponse(list_to_protobuf(found), content_type=PROTOBUF)
    return JsonResponse([frame.to_json() for frame in found], safe=False)


async def _watch(request: HttpRequest, query: Query, name: str, kind: str) -> HttpResponseBase:
    """For clients without WebSockets."""
    watch = await in_database(_watch_asked, request, query, name, kind)
    header, address = request.headers.get("Authorization", ""), address_of(request)
    admit = partial(service_called, name, header, address=address, gated=False)
    response = StreamingHttpResponse(stream_of(watch, admit), content_type="application/octet-stream")
    response["X-Accel-Buffering"] = "no"  # a proxy that waits for more would keep frames back
    return response


def _watch_asked(request: HttpRequest, query: Query, name: str, kind: str) -> queues.Watch:
    queue, _ = _queue(request, name, kind)
    return queues.watch_asked(queue, query, request.headers, uid=str(uuid.uuid4()))


# --- the others -------------------------------------------------------------------------------------------------------


def _commit(request: HttpRequest, query: Query, name: str, kind: str) -> HttpResponse:
    queue, _ = _queue(request, name, kind)
    queues.frames_commit(queue=queue, group=member_of(request.headers)[0], indexes=query.indexes())
    return plain(200, "OK")


def _give_back(request: HttpRequest, query: Query, name: str, kind: str) -> HttpResponse:
    queue, _ = _queue(request, name, kind)
    code = parse_qs(request.body.decode("latin-1")).get("_code_", [""])[0]
    if len(code) > 20:
        raise EasError(400, "_code_ has at most 20 characters.")
    queues.frames_give_back(queue=queue, group=member_of(request.headers)[0], indexes=query.indexes())
    return plain(200, "OK")


def _delete(request: HttpRequest, query: Query, name: str, kind: str) -> HttpResponse:
    queue, _ = _queue(request, name, kind)
    removed = queues.frames_delete(queue=queue, indexes=query.indexes())
    requests_abandon(service=queue.service, removed=removed)
    return plain(200, "OK")


def _truncate(request: HttpRequest, query: Query, name: str, kind: str) -> HttpResponse:
    queue, _ = _queue(request, name, kind)
    removed = queues.queue_truncate(queue=queue, index=query.number("_index_", 0))
    requests_abandon(service=queue.service, removed=removed)
    return plain(200, "OK")


def _attributes(request: HttpRequest, query: Query, name: str, kind: str) -> HttpResponse:
    queue, _ = _queue(request, name, kind)
    attributes = queues.attributes_of(queue, now=timezone.now())
    if PROTOBUF in request.headers.get("Accept", ""):
        return HttpResponse(attributes_to_protobuf(attributes), content_type=PROTOBUF)
    return JsonResponse(attributes)


def _search(request: HttpRequest, query: Query, name: str, kind: str) -> HttpResponse:
    queue, _ = _queue(request, name, kind)
    found = queues.frame_search(queue=queue, index=query.number("_index_", 0))
    return HttpResponse(json.dumps(found, separators=(",", ":")), content_type="application/json")


def _count(request: HttpRequest, query: Query, name: str, kind: str) -> HttpResponse:
    queue, _ = _queue(request, name, kind)
    priority = query.number("_priority_", 0) if "_priority_" in query.own else None
    return plain(200, str(queues.frames_count(queue=queue, tags=query.tags, priority=priority)))


READS = {"_attrs_": _attributes, "_search_": _search, "_count_": _count}
