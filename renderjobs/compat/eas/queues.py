"""The durable queues: put, get, watch, commit, negative, delete, truncate, search, attributes.

Every write of a queue holds the lock of its row, so that indexes become visible in their order and no two consumers of a group
take one frame. Transactions are short: nothing is rendered, fetched or sent within one. After each, ``announce`` wakes who waits.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from django.db import transaction
from django.db.models import Count, Exists, F, Max, Min, OuterRef, Q, QuerySet
from django.db.models.functions import Length, Now

from accounts.models import ApiToken
from common.database import ValueOfKey, now_plus
from renderjobs.compat.eas.errors import EasError
from renderjobs.compat.eas.frames import Frame
from renderjobs.compat.eas.wakeups import announce
from renderjobs.compat.eas.wire import (
    GROUP_HEADER,
    MAX_TAG_VALUE,
    NEWEST,
    PRIORITY_HEADER,
    REQUEST_ID,
    UID_HEADER,
    Query,
    member_of,
)
from renderjobs.models import EasConsumer, EasDelivery, EasFrame, EasQueue, EasService, QueueKind
from renderjobs.transitions import ROWS_PER_STATEMENT, batched

GRACE_SECONDS = 5
"""A consumer that left may come back within this and finds its frames where they were."""
SILENT_SECONDS = 15
"""A consumer not seen for this long is gone, though nobody said so (its server was killed)."""
FORGOTTEN_SECONDS = 3600
MAX_WINDOW = 1000
MAX_GET = 1000
BYTES_AT_ONCE = 64 * 2**20
"""Data that is read for one answer, or for one step of a watch; a single frame may have more."""


@dataclass(frozen=True, slots=True)
class NewFrame:
    """What is to be put. ``answer_to`` is the index of the request a result belongs to."""

    data: bytes
    tags: Mapping[str, str] = field(default_factory=dict)
    priority: int = 0
    path: str = ""
    token: ApiToken | None = None
    answer_to: int | None = None


@dataclass(frozen=True, slots=True)
class Removed:
    """What is to be known of a frame that was deleted: whether work goes on for it."""

    frame_id: int
    token_id: int | None
    delivery: int


@dataclass(frozen=True, slots=True)
class Watch:
    """What a consumer asked for."""

    queue_id: int
    group: str
    uid: str
    index: int = 0
    window: int = 1
    auto_commit: bool = False
    index_only: bool = False
    tags: Mapping[str, str] = field(default_factory=dict)


def watch_asked(queue: EasQueue, query: Query, headers: Mapping[str, str], *, uid: str) -> Watch:
    """What the parameters and headers of a watcher ask for; ``uid`` stands in for an id of its own.

    Raises:
        EasError: A parameter cannot be read.
    """
    group, own_uid = member_of(headers)
    return Watch(
        queue_id=queue.pk,
        group=group,
        uid=own_uid or uid,
        index=query.number("_index_", 0, first=NEWEST),
        window=min(query.number("_window_", 1, first=1), MAX_WINDOW),
        auto_commit=query.flag("_auto_commit_"),
        index_only=query.flag("_index_only_"),
        tags=query.tags,
    )


@dataclass(frozen=True, slots=True)
class Seat:
    """A consumer's place in its group, as long as its ``connection`` is the newest."""

    consumer_id: int
    connection: uuid.UUID
    watch: Watch
    start_index: int


class NoQueueError(EasError):
    """The service answers synchronously."""


class SeatTaken(Exception):
    """A newer connection of the same consumer took over. An expected end."""


def queue_of(service: EasService, kind: str) -> EasQueue:
    queue = EasQueue.objects.filter(service=service, kind=kind).first()
    if queue is None:
        raise NoQueueError(404, f"Service {service.name!r} has no queue.")
    queue.service = service
    return queue


# --- put and get ------------------------------------------------------------------------------------------------------


def frames_put(*, queue: EasQueue, frames: Sequence[NewFrame]) -> list[EasFrame]:
    """Append frames in one transaction: all of them or, when the queue is full, none.

    Raises:
        EasError: The queue is full (429).
    """
    with transaction.atomic():
        rows = frames_append(queue_id=queue.pk, frames=frames, most=queue.service.max_frames)
    announce(queue.pk)
    return rows


def frames_append(*, queue_id: int, frames: Sequence[NewFrame], most: int | None) -> list[EasFrame]:
    """Within the caller's transaction. ``most`` None: however many there are."""
    queue = queue_locked(queue_id)
    if most is not None and is_full(queue, room_for=len(frames), most=most):
        raise EasError(429, f"The queue is full; it holds at most {most} frames.")
    rows = []
    for offset, new in enumerate(frames, start=1):
        request_id = new.tags.get(REQUEST_ID) or str(uuid.uuid4())
        rows.append(
            EasFrame(
                queue=queue,
                index=queue.last_index + offset,
                priority=new.priority,
                tags={**new.tags, REQUEST_ID: request_id},
                data=new.data,
                request_id=request_id,
                created_at=Now(),
                path=new.path,
                token=new.token,
                answer_to=new.answer_to,
            )
        )
    EasQueue.objects.filter(pk=queue.pk).update(last_index=F("last_index") + len(rows))
    EasFrame.objects.bulk_create(rows, batch_size=ROWS_PER_STATEMENT // 10)
    return rows


def queue_locked(queue_id: int) -> EasQueue:
    """Raises: EasError: It was removed meanwhile."""
    queue = EasQueue.objects.select_for_update().filter(pk=queue_id).first()
    if queue is None:
        raise EasError(404, "There is no such queue any more.")
    return queue


def is_full(queue: EasQueue, *, room_for: int, most: int) -> bool:
    """Counts only when the span of the indexes leaves it open."""
    first = EasFrame.objects.filter(queue=queue).aggregate(first=Min("index"))["first"]
    if first is None or queue.last_index - first + 1 + room_for <= most:
        return room_for > most
    return EasFrame.objects.filter(queue=queue).count() + room_for > most


def frames_ready(*, queue: EasQueue, index: int, length: int, tags: Mapping[str, str]) -> bool:
    """Whether as many frames are there as are asked for."""
    wanted = 1 if index == NEWEST else min(length, MAX_GET)
    return _readable(queue, index, tags)[:wanted].count() == wanted


def frames_get(*, queue: EasQueue, index: int, length: int, tags: Mapping[str, str], auto_delete: bool) -> list[Frame]:
    """Frames at or after ``index``, by priority, then index. They are deleted with ``auto_delete``."""
    most = 1 if index == NEWEST else min(length, MAX_GET)
    found = _readable(queue, index, tags)
    if not auto_delete:
        return [as_frame(row) for row in _fitting(found, most)]
    if not found.exists():  # polls find nothing most of the time and should not take the lock
        return []
    with transaction.atomic():
        queue_locked(queue.pk)
        rows = _fitting(found, most)
        remove([row.pk for row in rows])
    announce(queue.pk)
    return [as_frame(row) for row in rows]


def _readable(queue: EasQueue, index: int, tags: Mapping[str, str]) -> QuerySet[EasFrame]:
    """What the service's workers are at is not there to be taken away."""
    found = matching(EasFrame.objects.filter(queue=queue, taken_until=None), tags)
    if index == NEWEST:
        return found.order_by("-index")
    return found.filter(index__gte=index).order_by("-priority", "index")


def matching(rows: QuerySet[EasFrame], tags: Mapping[str, str]) -> QuerySet[EasFrame]:
    """Frames whose tags contain all of ``tags``."""
    for number, (key, value) in enumerate(tags.items()):
        if key == REQUEST_ID:
            rows = rows.filter(request_id=value[:MAX_TAG_VALUE])
        else:
            rows = rows.alias(**{f"tag_{number}": ValueOfKey("tags", key)})
            rows = rows.filter(**{f"tag_{number}": value})
    return rows


def _fitting(rows: QuerySet[EasFrame], most: int) -> list[EasFrame]:
    """The first ``most`` of the rows, or fewer when their data would be too much to hold at once."""
    if most <= 1:
        return list(rows[:most])
    ids: list[int] = []
    size = 0
    for pk, its_size in rows[:most].values_list("pk", Length("data")):
        size += its_size
        if ids and size > BYTES_AT_ONCE:
            break
        ids.append(pk)
    found = EasFrame.objects.in_bulk(ids)
    return [found[pk] for pk in ids if pk in found]


def as_frame(row: EasFrame, *, index_only: bool = False) -> Frame:
    return Frame(row.index, row.tags, b"" if index_only else bytes(row.data))


def remove(frame_ids: Sequence[int]) -> int:
    """Delete frames within the caller's transaction; their deliveries go with them. Django's own way reads the data first."""
    removed = 0
    for some in batched(frame_ids, ROWS_PER_STATEMENT):
        EasDelivery.objects.filter(frame__in=some).delete()
        frames = EasFrame.objects.filter(pk__in=some)
        removed += frames._raw_delete(frames.db)
    return removed


# --- watch ------------------------------------------------------------------------------------------------------------


def consumer_join(*, watch: Watch) -> Seat:
    """Take the seat of this (group, uid); an older connection of it loses it, and its frames will be sent again."""
    connection = uuid.uuid4()
    with transaction.atomic():
        queue = queue_locked(watch.queue_id)
        earlier = EasConsumer.objects.filter(queue=queue, group=watch.group, uid=watch.uid).first()
        # Who comes back goes on where it began, or it would miss what came in between.
        from_now_on = earlier.start_index if earlier else queue.last_index + 1
        start = from_now_on if watch.index == NEWEST else watch.index
        values = {
            "connection": connection,
            "window": watch.window,
            "auto_commit": watch.auto_commit,
            "index_only": watch.index_only,
            "start_index": start,
            "tags": dict(watch.tags),
            "seen_at": Now(),
            "left_at": None,
        }
        consumer, _ = EasConsumer.objects.update_or_create(
            queue=queue, group=watch.group, uid=watch.uid, defaults=values
        )
    announce(watch.queue_id)
    return Seat(consumer.pk, connection, watch, start)


def consumer_seen(*, seat: Seat) -> bool:
    """Say that the consumer is there; False when a newer connection has its seat."""
    mine = EasConsumer.objects.filter(pk=seat.consumer_id, connection=seat.connection)
    return bool(mine.update(seen_at=Now(), left_at=None))


def consumer_leave(*, seat: Seat) -> None:
    """The connection ended. After the grace its frames go to others of the group."""
    mine = EasConsumer.objects.filter(pk=seat.consumer_id, connection=seat.connection)
    mine.update(left_at=Now())


def consumers_forget() -> None:
    """Remove those who left long ago; what was with them waits for others of their group."""
    gone = EasConsumer.objects.filter(seen_at__lt=now_plus(-FORGOTTEN_SECONDS))
    for pk, queue_id in gone.values_list("pk", "queue_id"):
        with transaction.atomic():
            queue_locked(queue_id)
            EasConsumer.objects.filter(pk=pk, seen_at__lt=now_plus(-FORGOTTEN_SECONDS)).delete()


def is_present(prefix: str = "") -> Q:
    """Of a consumer: it is there, or in its grace."""
    left, seen = f"{prefix}left_at", f"{prefix}seen_at"
    return Q(**{f"{left}__isnull": True, f"{seen}__gt": now_plus(-SILENT_SECONDS)}) | Q(
        **{f"{left}__gt": now_plus(-GRACE_SECONDS)}
    )


def frames_take(*, seat: Seat) -> list[Frame] | None:
    """What is to be sent to the consumer now, in the order of sending; noted as sent, or committed with ``auto_commit``.

    None when its window is full, so that nothing was looked for.

    Raises:
        SeatTaken: A newer connection has the seat.
    """
    watch = seat.watch
    with transaction.atomic():
        queue = queue_locked(watch.queue_id)
        if not EasConsumer.objects.filter(pk=seat.consumer_id, connection=seat.connection).exists():
            raise SeatTaken
        room = _room(seat)
        if room <= 0:
            return None
        rows = _sent_again(seat, room)
        rows += _new_frames(seat, room - len(rows))
        if not rows:
            return []
        last = max(row.index for row in rows)
        EasConsumer.objects.filter(pk=seat.consumer_id).update(last_index=last, seen_at=Now())
        if watch.auto_commit:
            _commit(queue, watch.group, [row.pk for row in rows])
    return [as_frame(row, index_only=watch.index_only) for row in rows]


def _room(seat: Seat) -> int:
    if seat.watch.auto_commit:
        return 1  # committed when it is sent: what is not on its way yet must not be lost with the connection
    held = EasDelivery.objects.filter(consumer_id=seat.consumer_id, connection=seat.connection, committed=False)
    return seat.watch.window - held.count()


def _sent_again(seat: Seat, most: int) -> list[EasFrame]:
    """What an earlier connection of the consumer was sent, what was handed back, and what consumers that are gone had."""
    watch = seat.watch
    held = EasDelivery.objects.filter(group=watch.group, committed=False, frame__queue_id=watch.queue_id)
    if not held.exclude(connection=seat.connection).exists():
        return []  # nearly always; what follows takes the database, and Django, much longer
    own = Q(consumer_id=seat.consumer_id) & ~Q(connection=seat.connection)
    free = Q(consumer=None) | ~Q(consumer=seat.consumer_id) & ~is_present("consumer__")
    open_ones = held.filter(own | free, frame__index__gte=seat.start_index)
    frames = matching(EasFrame.objects.filter(pk__in=open_ones.values("frame")), watch.tags)
    rows = _fitting(frames.order_by("index"), most)
    again = EasDelivery.objects.filter(frame__in=[row.pk for row in rows], group=watch.group)
    again.update(consumer=seat.consumer_id, connection=seat.connection, sent=F("sent") + 1)
    return rows


def _new_frames(seat: Seat, most: int) -> list[EasFrame]:
    watch = seat.watch
    if most <= 0:
        return []
    known = EasDelivery.objects.filter(frame=OuterRef("pk"), group=watch.group)
    frames = EasFrame.objects.filter(queue_id=watch.queue_id, index__gte=seat.start_index).exclude(Exists(known))
    rows = _fitting(matching(frames, watch.tags).order_by("-priority", "index"), most)
    EasDelivery.objects.bulk_create(
        EasDelivery(frame=row, group=watch.group, consumer_id=seat.consumer_id, connection=seat.connection, sent=1)
        for row in rows
    )
    return rows


# --- commit, negative, delete -----------------------------------------------------------------------------------------


def frames_commit(*, queue: EasQueue, group: str, indexes: Sequence[int]) -> None:
    """The frames are done for the group; they leave the queue when no group that is present still wants them."""
    with transaction.atomic():
        _commit(queue_locked(queue.pk), group, _frame_ids(queue, indexes))
    announce(queue.pk)


def _commit(queue: EasQueue, group: str, frame_ids: Sequence[int]) -> None:
    others = _groups_present(queue) - {group}
    if not others:
        remove(frame_ids)
        return
    for some in batched(frame_ids, ROWS_PER_STATEMENT):
        EasDelivery.objects.bulk_create(
            [EasDelivery(frame_id=pk, group=group, committed=True) for pk in some],
            update_conflicts=True,
            unique_fields=["frame", "group"],
            update_fields=["committed", "consumer", "connection"],
        )
        done = EasDelivery.objects.filter(frame__in=some, group__in=others, committed=True).order_by()
        counted = done.values("frame").annotate(n=Count("pk")).filter(n=len(others))
        remove([row["frame"] for row in counted])


def committed_remove() -> None:
    """Take away what was kept for a group that has left since."""
    kept = EasDelivery.objects.filter(committed=True).order_by().values_list("frame__queue", flat=True)
    for queue_id in list(kept.distinct()):
        with transaction.atomic():
            queue = queue_locked(queue_id)
            here = EasDelivery.objects.filter(frame__queue=queue_id)
            wanted = EasFrame.objects.filter(queue=queue_id, handed_out__committed=True)
            for group in _groups_present(queue):
                done = here.filter(frame=OuterRef("pk"), group=group, committed=True)
                wanted = wanted.filter(Exists(done))
            remove(list(wanted.order_by("index").values_list("pk", flat=True).distinct()))


def _groups_present(queue: EasQueue) -> set[str]:
    """Groups that left long ago do not count, or their frames would never leave."""
    present = EasConsumer.objects.filter(is_present(), queue=queue).order_by().values_list("group", flat=True)
    groups = set(present.distinct())
    if queue.kind == QueueKind.INPUT and queue.service.enabled and queue.service.is_asynchronous:
        groups.add(worker_group(queue.service))
    return groups


def worker_group(service: EasService) -> str:
    """The group in which the service's own workers read the input queue."""
    return service.name


def frames_give_back(*, queue: EasQueue, group: str, indexes: Sequence[int]) -> None:
    """The frames wait for any member of the group again."""
    with transaction.atomic():
        queue_locked(queue.pk)
        for some in batched(_frame_ids(queue, indexes), ROWS_PER_STATEMENT):
            held = EasDelivery.objects.filter(frame__in=some, group=group, committed=False)
            held.update(consumer=None, connection=None)
    announce(queue.pk)


def frames_delete(*, queue: EasQueue, indexes: Sequence[int]) -> list[Removed]:
    """At once and for all groups, whoever has them."""
    with transaction.atomic():
        queue_locked(queue.pk)
        removed = _removed(queue, _frame_ids(queue, indexes))
    announce(queue.pk)
    return removed


def queue_truncate(*, queue: EasQueue, index: int) -> list[Removed]:
    """Delete every frame below ``index``; the frame of that index stays."""
    with transaction.atomic():
        queue_locked(queue.pk)
        removed = _removed(queue, EasFrame.objects.filter(queue=queue, index__lt=index).values_list("pk", flat=True))
    announce(queue.pk)
    return removed


def _removed(queue: EasQueue, frame_ids: Iterable[int]) -> list[Removed]:
    """Requests only: nothing is done for a result."""
    ids, found = list(frame_ids), []
    for some in batched(ids, ROWS_PER_STATEMENT) if queue.kind == QueueKind.INPUT else ():
        rows = EasFrame.objects.filter(pk__in=some).order_by("pk")
        found += [Removed(*row) for row in rows.values_list("pk", "token_id", "deliveries")]
    remove(ids)
    return found


def _frame_ids(queue: EasQueue, indexes: Iterable[int]) -> list[int]:
    wanted = sorted(set(indexes))
    found: list[int] = []
    for some in batched(wanted, ROWS_PER_STATEMENT):
        found += EasFrame.objects.filter(queue=queue, index__in=some).order_by("index").values_list("pk", flat=True)
    return found


# --- what one can ask -------------------------------------------------------------------------------------------------


def frame_search(*, queue: EasQueue, index: int) -> dict[str, object]:
    """Raises: EasError: There is no such frame (404)."""
    row = EasFrame.objects.filter(queue=queue, index=index).defer("data").first()
    if row is None:
        raise EasError(404, "no data in stream")
    if row.taken_until is not None:
        name = worker_group(queue.service)
        return {"ConsumerId": f"{name}.worker", "IsPending": True, "WaitCount": 0}
    held = EasDelivery.objects.filter(frame=row, committed=False, consumer__isnull=False)
    if delivery := held.select_related("consumer").first():
        return {"ConsumerId": str(delivery.consumer), "IsPending": True, "WaitCount": 0}
    ahead = Q(priority__gt=row.priority) | Q(priority=row.priority, index__lt=row.index)
    waiting = EasFrame.objects.filter(ahead, queue=queue, taken_until=None)
    return {"ConsumerId": "", "IsPending": False, "WaitCount": waiting.count()}


def frames_count(*, queue: EasQueue, tags: Mapping[str, str], priority: int | None) -> int:
    rows = matching(EasFrame.objects.filter(queue=queue), tags)
    return (rows if priority is None else rows.filter(priority=priority)).count()


def attributes_of(queue: EasQueue, *, now: datetime) -> dict[str, str]:
    """Names and texts as the SDKs know them; Go's fails without ``meta.header.user``."""
    queue.refresh_from_db(fields=["last_index"])
    service = queue.service
    frames = EasFrame.objects.filter(queue=queue).aggregate(length=Count("pk"), first=Min("index"))
    attributes = {
        "meta.name": service.name if queue.kind == QueueKind.INPUT else f"{service.name}/sink",
        "meta.state": "Normal",
        "meta.backend": "database",
        "meta.maxPayloadBytes": str(service.max_payload_bytes),
        "meta.header.user": UID_HEADER,
        "meta.header.group": GROUP_HEADER,
        "meta.header.priority": PRIORITY_HEADER,
        "stream.length": str(frames["length"]),
        "stream.firstEntry": str(frames["first"] or 0),
        "stream.lastEntry": str(queue.last_index),
        "stream.approxMaxLength": str(service.max_frames),
    }
    consumers = list(_consumers_shown(queue))
    attributes["consumers.stats.total"] = str(len(consumers))
    for number, consumer in enumerate(consumers):
        attributes[f"consumers.list.[{number}]"] = _described(consumer, now)
    groups: dict[str, int] = {}
    for consumer in consumers:
        groups[consumer.group] = groups.get(consumer.group, 0) + consumer.pending
    for number, (group, pending) in enumerate(sorted(groups.items())):
        attributes[f"groups.list.[{number}]"] = f"Id: {group}, Pending: {pending}"
    return attributes


def _consumers_shown(queue: EasQueue) -> QuerySet[EasConsumer]:
    pending = Count("handed_out", filter=Q(handed_out__committed=False))
    newest = Max("handed_out__frame__index")
    return EasConsumer.objects.filter(queue=queue).annotate(pending=pending, newest=newest).order_by("pk")[:200]


def _described(consumer: EasConsumer, now: datetime) -> str:
    gone_seconds = (now - (consumer.left_at or consumer.seen_at)).total_seconds()
    if consumer.left_at is None and gone_seconds < SILENT_SECONDS:
        status = "Running"
    elif gone_seconds < GRACE_SECONDS:
        status = "Leaving"
    else:
        status = "Exit" if consumer.pending else "Complete"
    slots = consumer.window if consumer.auto_commit else max(0, consumer.window - consumer.pending)
    parts = {
        "Id": str(consumer),
        "Index": consumer.last_index,
        "Pending": consumer.pending,
        "Status": status,
        "Idle": f"{max(0.0, (now - consumer.seen_at).total_seconds()):.3f}s",
        "Window": consumer.window,
        "Slots": slots,
        "AutoCommit": str(consumer.auto_commit).lower(),
    }
    if consumer.tags:
        parts["Tags"] = "tags[" + " ".join(f"{key}={value}" for key, value in consumer.tags.items()) + "]"
    return ", ".join(f"{name}: {value}" for name, value in parts.items())
