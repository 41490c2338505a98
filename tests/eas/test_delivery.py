"""Who gets which frame, when, and again: windows, groups, commits, seats that change hands."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest

from common.database import now_plus
from renderjobs.compat.eas import queues
from renderjobs.compat.eas.queues import NewFrame, SeatTaken, Watch, frames_take
from renderjobs.models import EasConsumer, EasDelivery, EasFrame, EasQueue
from tests.eas.calls import Calls
from tests.factories import an_eas_service

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def times_no_test_takes(monkeypatch) -> None:
    monkeypatch.setattr(queues, "GRACE_SECONDS", 3600)
    monkeypatch.setattr(queues, "SILENT_SECONDS", 3600)


@pytest.fixture
def sink() -> EasQueue:
    return queues.queue_of(an_eas_service(), "sink")


def put(sink: EasQueue, *frames: NewFrame, count: int = 0) -> None:
    queues.frames_put(queue=sink, frames=[*frames, *(NewFrame(data=b"x") for _ in range(count))])


def join(sink: EasQueue, uid: str = "one", group: str = "eas", **watch: object) -> queues.Seat:
    asked = Watch(queue_id=sink.pk, group=group, uid=uid, window=5)
    return queues.consumer_join(watch=replace(asked, **watch))


def taken(seat: queues.Seat) -> list[int]:
    return [frame.index for frame in frames_take(seat=seat) or ()]


def commit(sink: EasQueue, *indexes: int, group: str = "eas") -> None:
    queues.frames_commit(queue=sink, group=group, indexes=indexes)


def left(sink: EasQueue) -> list[int]:
    return list(EasFrame.objects.filter(queue=sink).order_by("index").values_list("index", flat=True))


def gone(seat: queues.Seat) -> None:
    """For longer than its grace."""
    queues.consumer_leave(seat=seat)
    EasConsumer.objects.filter(pk=seat.consumer_id).update(left_at=now_plus(-queues.GRACE_SECONDS - 1))


def test_each_commit_frees_one_slot_of_the_window(sink):
    put(sink, count=4)
    seat = join(sink, window=2)
    assert taken(seat) == [1, 2] and taken(seat) == []
    commit(sink, 2)
    assert taken(seat) == [3]
    commit(sink, 1, 3)
    assert taken(seat) == [4] and left(sink) == [4]


def test_an_automatic_commit_is_of_the_frame_that_is_sent_and_of_no_other(sink):
    """A connection or a server that ends then loses none of those behind it. The window does not count."""
    put(sink, count=3)
    seat = join(sink, window=1, auto_commit=True)
    assert [(taken(seat), left(sink)) for _ in range(4)] == [([1], [2, 3]), ([2], [3]), ([3], []), ([], [])]


def test_frames_that_are_large_are_read_few_at_a_time(sink, monkeypatch):
    monkeypatch.setattr(queues, "BYTES_AT_ONCE", 100)
    put(sink, *(NewFrame(data=bytes(size)) for size in (60, 40, 1, 500, 1)))
    get = partial(queues.frames_get, queue=sink, index=0, length=9, tags={})
    assert [frame.index for frame in get(auto_delete=False)] == [1, 2]
    seat = join(sink, window=9)
    assert [taken(seat) for _ in range(4)] == [[1, 2], [3], [4], [5]]
    again = join(sink, window=9)
    assert [taken(again) for _ in range(4)] == [[1, 2], [3], [4], [5]]
    assert [[frame.index for frame in get(auto_delete=True)] for _ in range(4)] == [[1, 2], [3], [4], [5]]


def test_priority_goes_first_then_the_index(sink):
    put(sink, NewFrame(data=b"a"), NewFrame(data=b"b", priority=1), NewFrame(data=b"c", priority=1))
    assert taken(join(sink)) == [2, 3, 1]


def test_a_watch_begins_where_it_is_asked_to(sink):
    put(sink, count=3)
    assert taken(join(sink, index=2)) == [2, 3]


def test_minus_one_means_what_comes_from_now_on_also_after_a_reconnect(sink):
    put(sink, count=2)
    assert taken(join(sink, index=-1)) == []
    put(sink, count=1)  # while the connection is away
    assert taken(join(sink, index=-1)) == [3]


def test_only_frames_with_all_the_tags_come(sink):
    put(sink, NewFrame(b"a", {"k": "1"}), NewFrame(b"b", {"k": "1", "l": "2"}), NewFrame(b"c", {"l": "2"}))
    assert taken(join(sink, tags={"k": "1", "l": "2"})) == [2]


def test_index_only_leaves_the_data_out(sink):
    put(sink, NewFrame(b"large", {"k": "1"}))
    (frame,) = frames_take(seat=join(sink, index_only=True)) or ()
    assert (frame.data, frame.tags["k"]) == (b"", "1")


def test_the_same_consumer_takes_over_and_gets_again_what_it_had_not_committed(sink):
    put(sink, count=4)
    before = join(sink, window=3)
    assert taken(before) == [1, 2, 3]
    commit(sink, 2)
    after = join(sink, window=3)
    with pytest.raises(SeatTaken):
        frames_take(seat=before)
    assert not queues.consumer_seen(seat=before)
    assert taken(after) == [1, 3, 4]


def test_members_of_a_group_share_and_other_groups_get_everything(sink):
    put(sink, count=4)
    one, two, other = join(sink, "one", window=2), join(sink, "two", window=2), join(sink, "one", group="other")
    assert (taken(one), taken(two), taken(other)) == ([1, 2], [3, 4], [1, 2, 3, 4])
    commit(sink, 1, 2, 3, 4)
    assert left(sink) == [1, 2, 3, 4]
    commit(sink, 1, 2, 3, group="other")
    assert left(sink) == [4]


def test_frames_of_a_consumer_that_left_wait_for_its_grace(sink):
    put(sink, count=2)
    lost, next_one = join(sink, "lost"), join(sink, "next")
    assert taken(lost) == [1, 2]
    queues.consumer_leave(seat=lost)
    assert taken(next_one) == []
    gone(lost)
    assert taken(next_one) == [1, 2]


def test_a_consumer_whose_server_was_killed_counts_as_gone_when_it_is_silent(sink):
    put(sink, count=1)
    lost = join(sink, "lost")
    assert taken(lost) == [1]
    EasConsumer.objects.update(seen_at=now_plus(-queues.SILENT_SECONDS - 1))
    assert taken(join(sink, "next")) == [1]


def test_a_group_that_left_long_ago_keeps_no_frame(sink):
    put(sink, count=2)
    old = join(sink, group="old")
    gone(old)
    join(sink)
    commit(sink, 1)
    assert left(sink) == [2]


def test_what_was_kept_for_a_group_goes_when_the_group_has_left(sink):
    put(sink, count=2)
    other = join(sink, group="other")
    join(sink)
    commit(sink, 1)
    queues.committed_remove()
    assert left(sink) == [1, 2]
    gone(other)
    queues.committed_remove()
    assert left(sink) == [2]


def test_a_refused_frame_goes_to_any_member_of_the_group_at_once(sink):
    put(sink, count=3)
    one, two = join(sink, "one", window=2), join(sink, "two", window=3)
    assert taken(one) == [1, 2] and taken(two) == [3]
    headers = {"X-EAS-QueueService-Redis-Gid": "eas", "X-EAS-QueueService-Redis-Uid": "one"}
    sink.service.token.text = token_text(sink)
    answer = Calls.to(sink.service, "sink").call("PUT", {"_indexes_": "1,2", "_negative_": "true"}, **headers)
    assert answer.status_code == 200 and taken(two) == [1, 2]
    assert set(EasDelivery.objects.values_list("sent", flat=True)) == {1, 2}


def token_text(sink: EasQueue) -> str:
    from renderjobs.compat.eas.access import token_text

    return token_text(sink.service.token_nonce)


def test_a_commit_by_another_group_takes_nothing_from_this_one(sink):
    put(sink, count=1)
    seat = join(sink)
    commit(sink, 1, group="other")
    assert taken(seat) == [1]


def test_deleting_a_frame_in_flight_frees_its_slot(sink):
    put(sink, count=3)
    seat = join(sink, window=2)
    assert taken(seat) == [1, 2]
    queues.frames_delete(queue=sink, indexes=[1, 2])
    assert taken(seat) == [3]


def test_consumers_are_described_as_the_vendor_does(sink):
    put(sink, count=3)
    taken(join(sink, "u1", window=2, tags={}))
    sink.service.token.text = token_text(sink)
    found = Calls.to(sink.service, "sink").attributes()
    assert found["consumers.stats.total"] == "1"
    described = dict(part.split(": ", 1) for part in found["consumers.list.[0]"].split(", "))
    assert described | {"Idle": ""} == {
        "Id": "eas.u1", "Index": "2", "Pending": "2", "Status": "Running", "Idle": "",
        "Window": "2", "Slots": "0", "AutoCommit": "false",
    }  # fmt: skip
    assert found["groups.list.[0]"].startswith("Id: eas, ")


def test_consumers_that_left_long_ago_are_forgotten_and_their_frames_wait(sink):
    put(sink, count=1)
    assert taken(join(sink, "old")) == [1]
    EasConsumer.objects.update(seen_at=now_plus(-queues.FORGOTTEN_SECONDS - 1))
    queues.consumers_forget()
    assert not EasConsumer.objects.exists() and taken(join(sink, "new")) == [1]
