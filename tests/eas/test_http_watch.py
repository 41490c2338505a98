"""Watching without a WebSocket: a running server, and a client that reads one long answer of plain HTTP."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
import requests
from urllib3.exceptions import ReadTimeoutError

from renderjobs.compat.eas.frames import Frame
from renderjobs.compat.eas.queues import GRACE_SECONDS
from tests.eas.conftest import EasServer
from tests.eas.test_client import attributes, length, put
from tests.services import PATIENCE_SECONDS, wait_until

HEADERS = {"Accept": "application/vnd.google.protobuf"}


class Watcher:
    """What the vendor's Go client does when its WebSocket is switched off."""

    def __init__(self, answer: requests.Response):
        self.answer = answer

    def frame(self) -> bytes:
        """The next frame; the end of the answer is an EOFError."""
        size = int.from_bytes(self._read(4), "big")
        return self._read(size)

    def has_nothing(self, seconds: float = 1) -> bool:
        """Nor anything later."""
        self.answer.raw.connection.sock.settimeout(seconds)
        try:
            self.frame()
        except (TimeoutError, ReadTimeoutError):
            return True
        return False

    def _read(self, size: int) -> bytes:
        found = b""
        while len(found) < size:
            part = self.answer.raw.read(size - len(found))
            if not part:
                raise EOFError
            found += part
        return found


@contextmanager
def watching(server: EasServer, *, uid: str = "", token: str = "", **query: object) -> Iterator[Watcher]:
    headers = {**HEADERS, "Authorization": token or server.token}
    if uid:
        headers["X-EAS-QueueService-Redis-Uid"] = uid
    asked = {"_watch_": "true", "_index_": 0, "_window_": 5, "_index_only_": "false", "_auto_commit_": "false", **query}
    with requests.get(server.sink, params=asked, headers=headers, stream=True, timeout=PATIENCE_SECONDS) as answer:
        assert answer.status_code == 200 and answer.headers["Transfer-Encoding"] == "chunked"
        yield Watcher(answer)


def commit(server: EasServer, *indexes: int) -> None:
    address = f"{server.sink}?_indexes_={','.join(map(str, indexes))}"
    assert requests.put(address, headers={"Authorization": server.token}, timeout=60).text == "OK"


def has(frame: bytes, index: int, data: bytes) -> bool:
    """Whether the protobuf is that frame's; its request id, between the two, is the server's."""
    return frame.startswith(Frame(index).to_protobuf()) and ends_with(frame, data)


def ends_with(frame: bytes, data: bytes) -> bool:
    """Whether the protobuf's last field is that data; the bytes alone could also be the end of a request id."""
    return frame.endswith(Frame(0, data=data).to_protobuf())


def test_frames_come_length_first_those_that_wait_and_those_that_come_later(server):
    first = put(server, 2)
    with watching(server) as watcher:
        assert [has(watcher.frame(), index, b"%d" % number) for number, index in enumerate(first)] == [True, True]
        (later,) = put(server, 1, start=7)
        assert has(watcher.frame(), later, b"7")
    assert length(server) == "3"


def test_the_window_holds_frames_back_until_one_is_committed(server):
    first, second = put(server, 2)
    with ExitStack() as stack:
        holder = stack.enter_context(watching(server, _window_=1))
        assert has(holder.frame(), first, b"0") and holder.has_nothing()
        with watching(server, _window_=1, uid="other") as watcher:
            assert has(watcher.frame(), second, b"1")
            stack.close()
            commit(server, second)
            assert has(watcher.frame(), first, b"0"), "after the grace of the one who left"
            commit(server, first)
    assert length(server) == "0"


def test_the_same_consumer_takes_over_and_the_older_answer_ends(server):
    (index,) = put(server, 1)
    with watching(server, uid="me") as older:
        assert has(older.frame(), index, b"0")
        with watching(server, uid="me") as newer:
            assert has(newer.frame(), index, b"0"), "what it had not committed comes again"
            with pytest.raises(EOFError):
                older.frame()
            commit(server, index)
    assert length(server) == "0"


def test_a_client_that_leaves_is_gone_at_once_and_others_get_its_frames_after_the_grace(server):
    (index,) = put(server, 1)
    with watching(server, uid="leaves") as watcher:
        watcher.frame()
        leaving = time.monotonic()
    # Nobody says of one who left without a word that it left: as long as its server keeps it, it runs.
    wait_until(lambda: "Status: Running" not in described(server, "leaves"), what="Leaving")
    with watching(server, uid="stays") as watcher:
        assert has(watcher.frame(), index, b"0")
    assert time.monotonic() - leaving > GRACE_SECONDS - 0.1


def described(server: EasServer, uid: str) -> str:
    return next(value for value in attributes(server).values() if value.startswith(f"Id: eas.{uid},"))


def test_automatic_commits_tags_and_indexes_alone_are_as_over_a_websocket(server):
    indexes = put(server, 3)
    with watching(server, _auto_commit_="true", _index_only_="true") as watcher:
        frames = [watcher.frame() for _ in indexes]
    for number, (frame, index) in enumerate(zip(frames, indexes, strict=True)):
        assert frame.startswith(Frame(index).to_protobuf()) and not ends_with(frame, b"%d" % number)
    assert length(server) == "0"


def test_a_wrong_token_is_refused(server):
    address = f"{server.sink}?_watch_=true"
    assert requests.get(address, headers={"Authorization": "wrong"}, timeout=60).status_code == 401
