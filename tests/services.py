"""Real servers for tests, started on loopback or a unix socket and stopped again. A missing program is said plainly."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket as sockets
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis
from filelock import FileLock

from tests.prepared import ROOT


def missing(program: str) -> None:
    """Skip, or fail where CI demands that nothing is skipped for a missing service."""
    message = f"{program} is not installed"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


PATIENCE_SECONDS = 300
"""For what takes a moment on a machine that is free: one that is busy, or stands still for a while, is no reason to fail."""


def wait_until(condition: Callable[[], object], *, what: str, seconds: float = PATIENCE_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        # The last look comes after the deadline: this process itself may have stood still until then.
        if time.monotonic() > deadline and not condition():
            raise AssertionError(f"{what} did not happen within {seconds} s.")
        time.sleep(0.05)


_reserved: list[sockets.socket] = []


def reserved_port() -> int:
    """A port on loopback that is given to nobody else while the tests run. A server may listen there, as often as it is started.

    Bound and never listening: the system passes over it when somebody asks for any port, and lets in who names it.
    """
    holder = sockets.socket()
    holder.setsockopt(sockets.SOL_SOCKET, sockets.SO_REUSEADDR, 1)
    holder.bind(("127.0.0.1", 0))
    _reserved.append(holder)
    return holder.getsockname()[1]


def npm_packages(folder: Path) -> Path:
    """Those that the folder's lock file names, installed there once."""
    npm = shutil.which("npm") or missing("npm")
    installed = folder / "node_modules"
    digest = hashlib.sha256((folder / "package-lock.json").read_bytes()).hexdigest()
    (ROOT / "var").mkdir(exist_ok=True)
    with FileLock(ROOT / "var" / f"npm-{digest}.lock"):
        made = installed / digest
        if not made.exists():
            command = [str(npm), "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            made.touch()
    return installed


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
        wait_until(answers, what="Redis answering")
        yield RedisServer(socket, client)
    finally:
        client.close()
        process.terminate()
        process.wait(PATIENCE_SECONDS)


@dataclass(frozen=True)
class PostgresServer:
    url: str


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """A private PostgreSQL on a unix socket. As root it runs under the account ``postgres``, as it must.

    Not in a folder of pytest's, which closes its own to other accounts whenever another process of it begins.
    """
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    if not programs:
        missing("PostgreSQL")
    with tempfile.TemporaryDirectory(prefix="postgres-") as folder:
        yield from _postgres(programs[0], Path(folder))


def _postgres(programs: Path, folder: Path) -> Iterator[PostgresServer]:
    data, sockets = folder / "data", folder / "socket"
    sockets.mkdir()
    prefix: list[str] = []
    if os.geteuid() == 0:
        prefix = ["runuser", "-u", "postgres", "--"]
        for path in (folder, sockets):
            shutil.chown(path, "postgres")
            path.chmod(0o755)
    initdb, postgres = str(programs / "initdb"), str(programs / "postgres")
    subprocess.run(
        [*prefix, initdb, "-D", str(data), "-U", "renderkiln", "-A", "trust", "--no-sync", "-E", "UTF8"],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    options = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "max_connections": "60"}
    process = subprocess.Popen(
        [*prefix, postgres, "-D", str(data), "-k", str(sockets), "-h", "", *(f"--{k}={v}" for k, v in options.items())],
        stdout=subprocess.DEVNULL,
        stderr=(folder / "log").open("wb"),
    )
    ready = [str(programs / "pg_isready"), "-q", "-h", str(sockets)]
    try:
        wait_until(lambda: subprocess.run(ready).returncode == 0, what="PostgreSQL answering")
        yield PostgresServer(f"postgres://renderkiln@{str(sockets).replace('/', '%2F')}/postgres")
    finally:
        # By its own command: a signal would wait for connections that are still open, and ``runuser`` would not wait at all.
        stop = [str(programs / "pg_ctl"), "stop", "-D", str(data), "-m", "immediate", "-s"]
        subprocess.run([*prefix, *stop], check=True, stdout=subprocess.DEVNULL)
        process.wait(PATIENCE_SECONDS)
