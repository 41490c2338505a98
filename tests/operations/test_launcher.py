"""The embedded platform as a person starts it: one line when ready, children that come back, nothing left behind."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.prepared import migrated_database
from tests.services import PATIENCE_SECONDS, reserved_port, wait_until

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.embedded


def serve(data_dir: Path, **environment: str) -> subprocess.Popen[str]:
    inherited = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
    settings = {"DATA_DIR": str(data_dir), "PORT": str(reserved_port()), "OMP_NUM_THREADS": "1", **environment}
    settings["DJANGO_SETTINGS_MODULE"] = "config.settings"
    command = [sys.executable, "manage.py", "serve"]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env={**inherited, **settings}, **streams)


@pytest.fixture
def server(tmp_path) -> Iterator[subprocess.Popen[str]]:
    shutil.copy(migrated_database(), tmp_path)
    server = serve(tmp_path)
    yield server
    server.kill()
    server.wait()


def processes_of(data_dir: Path) -> dict[int, str]:
    """Running processes that name this data directory, in their environment or, as Redis does, their title: pid → title."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            title = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            if (
                f"DATA_DIR={data_dir}".encode() in (path / "environ").read_bytes().split(b"\0")
                or f"{data_dir}/" in title
            ):
                found[int(path.name)] = title
        except (OSError, ValueError):
            continue
    return found


def pid_of(data_dir: Path, part: str, *, other_than: int = 0) -> int | None:
    return next((pid for pid, title in processes_of(data_dir).items() if part in title and pid != other_than), None)


def test_serve_says_ready_restarts_a_dead_child_and_leaves_nothing_behind(server, tmp_path):
    assert server.stdout.readline().startswith("ready http://127.0.0.1:")
    beat = pid_of(tmp_path, " beat ")
    assert beat and pid_of(tmp_path, "redis-server")
    os.kill(beat, signal.SIGKILL)
    wait_until(lambda: pid_of(tmp_path, " beat ", other_than=beat), what="Beat coming back")
    second = serve(tmp_path)
    _, errors = second.communicate(timeout=PATIENCE_SECONDS)
    assert second.returncode == 1 and "Another platform runs in DATA_DIR" in errors
    server.send_signal(signal.SIGTERM)
    assert server.wait(PATIENCE_SECONDS) == 0
    wait_until(lambda: not processes_of(tmp_path), what="Every process being gone")


def test_nothing_outlives_a_launcher_that_is_killed(server, tmp_path):
    wait_until(lambda: pid_of(tmp_path, "uvicorn"), what="Starting")
    server.kill()
    wait_until(lambda: not processes_of(tmp_path), what="Every process being gone")


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"PORT": "eighty"}, "PORT is 'eighty'; a whole number is accepted."),
        ({"DATABASE_URL": "oracle://x"}, "DATABASE_URL begins with 'oracle'"),
        ({"STORAGE_URL": "ftp://x"}, "STORAGE_URL begins with 'ftp'"),
        ({"STORAGE_URL": "s3://"}, "STORAGE_URL names no bucket"),
        ({"REDIS_URL": "redis://host:port"}, "REDIS_URL is malformed"),
        ({"DATABASE_URL": "sqlite:////nowhere/rows"}, "The database (DATABASE_URL) cannot be used"),
        ({"DATA_DIR": "/dev/null"}, "DATA_DIR is '/dev/null'; a folder that can be written is accepted."),
        ({"PRODUCTION": "1"}, "SECRET_KEY is required in production"),
    ],
)
def test_a_wrong_variable_stops_the_start_with_a_sentence_that_names_it(tmp_path, environment, sentence):
    server = serve(tmp_path, **environment)
    _, errors = server.communicate(timeout=PATIENCE_SECONDS)
    assert server.returncode == 1 and sentence in errors.splitlines()[-1]


def test_a_port_in_use_is_one_clear_sentence(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        server = serve(tmp_path, PORT=str(port))
        _, errors = server.communicate(timeout=PATIENCE_SECONDS)
    assert server.returncode == 1 and f"Port {port} on 127.0.0.1 cannot be used" in errors.splitlines()[-1]
