"""Real servers for tests, started on loopback or a unix socket and stopped again. A missing program is said plainly."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis


def missing(program: str) -> None:
    """Skip, or fail where CI demands that nothing is skipped for a missing service."""
    message = f"{program} is not installed"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


def wait_until(condition: Callable[[], object], *, seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not happen within {seconds} s.")
        time.sleep(0.05)


@dataclass(frozen=True)
class RedisServer:
    socket: Path
    client: redis.Redis


@contextmanager
def redis_server(socket: Path) -> Iterator[RedisServer]:
    program = shutil.which("redis-server")
    if program is None:
        missing("redis-server")
    process = subprocess.Popen(
        [str(program), "--port", "0", "--unixsocket", str(socket), "--save", "", "--appendonly", "no"],
        stdout=subprocess.DEVNULL,
        cwd=socket.parent,
    )
    client = redis.Redis(unix_socket_path=str(socket))

    def answers() -> bool:
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False

    try:
        wait_until(answers, seconds=10, what="Redis answering")
        yield RedisServer(socket, client)
    finally:
        client.close()
        process.terminate()
        process.wait(10)
