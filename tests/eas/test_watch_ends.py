"""A watch ends with what it stands on: its token, its service, a client that is heard of."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from renderjobs.compat.eas.queues import SILENT_SECONDS
from renderjobs.compat.eas.watching import HEARTBEAT_SECONDS
from tests.eas.conftest import EasServer
from tests.eas.test_client import put
from tests.eas.test_http_watch import watching
from tests.services import PATIENCE_SECONDS

pytestmark = pytest.mark.embedded
REVOKE = """
from accounts.authentication import caller_of
from accounts.services import token_revoke
token_revoke(token=caller_of({token!r}).token)
"""
SWITCH = """
from renderjobs.compat.eas.services import service_start, service_stop
from renderjobs.models import EasService
service_{what}(service=EasService.objects.get(name={service!r}))
"""


def shell(server: EasServer, program: str, **values: str) -> None:
    server.platform.manage("shell", "-v", "0", "-c", program.format(service=server.service, **values))


@contextmanager
def socket_of(
    server: EasServer, token: str, uid: str, *, ping_interval: float | None = 2
) -> Iterator[ClientConnection]:
    """A watcher in a group of its own."""
    address = f"{server.watched}?_watch_=true&_index_=0&_window_=5"
    headers = {"Authorization": token, "X-EAS-QueueService-Redis-Uid": uid, "X-EAS-QueueService-Redis-Gid": uid}
    patience = {"open_timeout": PATIENCE_SECONDS, "ping_interval": ping_interval, "ping_timeout": None}
    with connect(address, additional_headers=headers, **patience) as socket:
        yield socket


def revoked(server: EasServer, token: str) -> None:
    shell(server, REVOKE, token=token)


def stopped(server: EasServer, token: str) -> None:
    shell(server, SWITCH, what="stop")


@pytest.mark.parametrize(("end", "status"), [(revoked, 401), (stopped, 404)], ids=["a token", "a service"])
def test_nobody_watches_on_after_the_end_of(server: EasServer, end: Callable[[EasServer, str], None], status: int):
    put(server, 1)
    token = server.platform.token(user=f"watcher-{status}")
    with socket_of(server, token, "socket") as socket, watching(server, uid="http", token=token) as watcher:
        assert socket.recv(timeout=PATIENCE_SECONDS) and watcher.frame()
        end(server, token)
        try:
            with pytest.raises(ConnectionClosed):
                socket.recv(timeout=PATIENCE_SECONDS)
            with pytest.raises(EOFError):
                watcher.frame()
            with pytest.raises(InvalidStatus, match=str(status)), socket_of(server, token, "again"):
                pass
        finally:
            shell(server, SWITCH, what="start")


def test_who_pings_may_be_busy_for_long_and_who_is_silent_is_gone(server: EasServer):
    """The vendor's client answers pings only while it waits for a frame, and sends its own from a thread all the time."""
    put(server, 2)
    busy = server.start("watches", count=2, window=1, pause=SILENT_SECONDS + HEARTBEAT_SECONDS + 3)
    assert busy.said()[1] == "0"
    began = time.monotonic()
    with socket_of(server, server.token, "silent", ping_interval=None) as silent:
        with pytest.raises(ConnectionClosed):
            while True:
                silent.recv(timeout=PATIENCE_SECONDS)
        assert time.monotonic() - began > SILENT_SECONDS - 1
    assert [text for _, text, _ in busy.all_said()] == ["1"], "nothing came twice: it never lost its seat"
