"""The door's own handler: bodies that are too large, readers that hang up."""

from __future__ import annotations

import asyncio
import socket
import time
from typing import Any

import pytest

from renderjobs.compat.eas.asgi import BareHandler
from tests.eas.conftest import EasServer
from tests.eas.test_client import length, put

SCOPE = {
    "type": "http",
    "method": "POST",
    "path": "/api/predict/sd",
    "query_string": b"",
    "headers": [],
    "root_path": "",
}
MEGABYTE = 2**20


def test_s8_a_body_without_end_is_refused_when_it_is_too_large_and_read_no_further(settings):
    settings.DATA_UPLOAD_MAX_MEMORY_SIZE = 4 * MEGABYTE
    read, sent = [], []

    async def receive() -> dict[str, Any]:
        read.append(MEGABYTE)
        return {"type": "http.request", "body": bytes(MEGABYTE), "more_body": True}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(BareHandler()(SCOPE, receive, send))
    assert len(read) == 5 and sent[0]["status"] == 413 and sent[1]["body"] == b"The request body is too large."


@pytest.mark.embedded
def test_a_reader_that_hangs_up_while_it_waits_takes_no_frame_along(server: EasServer):
    path, head = f"/api/predict/{server.service}/sink", f"Host: 127.0.0.1\r\nAuthorization: {server.token}\r\n"
    with socket.create_connection(("127.0.0.1", server.platform.port)) as connection:
        connection.sendall(f"GET {path}?_timeout_=20s HTTP/1.1\r\n{head}\r\n".encode())
        time.sleep(0.5)
        assert length(server) == "0"
    assert length(server) == "0"  # answered behind the end of the connection, which the server has met by then
    put(server, 1)
    time.sleep(1)
    assert length(server) == "1"
