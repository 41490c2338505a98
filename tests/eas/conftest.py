"""The vendor's client in an environment of its own, and a server it can speak to."""

from __future__ import annotations

import fcntl
import hashlib
import json
import queue
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests

from renderjobs.compat.eas import synchronous
from tests.flows.conftest import ROOT, RunningPlatform
from tests.services import PATIENCE_SECONDS, missing, redis_server

HERE = Path(__file__).parent
REQUIREMENTS = HERE / "client-requirements.txt"


@pytest.fixture(autouse=True)
def no_calls_of_other_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are counted by the service's number, which each test's first one has."""
    monkeypatch.setattr(synchronous, "_running", {})
    monkeypatch.setattr(synchronous, "_began", {})


@pytest.fixture(scope="session")
def client_python() -> Path:
    """The interpreter of an environment with ``eas_prediction``; made once per machine, as its pinned list says."""
    digest = hashlib.sha256(REQUIREMENTS.read_bytes() + sys.version.encode()).hexdigest()[:12]
    folder = ROOT / "var" / f"eas-client-{digest}"
    python, made = folder / "bin" / "python", folder / "made"
    folder.parent.mkdir(exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the suite may run in several processes
        if not made.exists():
            shutil.rmtree(folder, ignore_errors=True)
            for command in (
                [sys.executable, "-m", "venv", str(folder)],
                [
                    str(python),
                    "-m",
                    "pip",
                    "install",
                    "--quiet",
                    "--disable-pip-version-check",
                    "-r",
                    str(REQUIREMENTS),
                ],
            ):
                done = subprocess.run(command, capture_output=True, text=True, timeout=600)
                if done.returncode:
                    missing(f"eas_prediction (no registry answers: {done.stderr.strip()[-300:]})")
            made.touch()
    return python


@dataclass
class Program:
    """A running client; ``said`` waits for the next value it prints."""

    process: subprocess.Popen[str]
    lines: queue.Queue[str | None] = field(default_factory=queue.Queue)

    def __post_init__(self) -> None:
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put(None)

    def said(self, seconds: float = PATIENCE_SECONDS) -> Any:
        line = self.lines.get(timeout=seconds)
        if line is None:
            raise EOFError(f"The program ended with {self.process.wait(PATIENCE_SECONDS)}.")
        return json.loads(line)

    def all_said(self, seconds: float = PATIENCE_SECONDS) -> list[Any]:
        found = []
        while (line := self.lines.get(timeout=seconds)) is not None:
            found.append(json.loads(line))
        assert self.process.wait(PATIENCE_SECONDS) == 0
        return found


SERVICES = 50
"""More than tests use in one process."""
MAKE_SERVICES = f"""
from accounts.models import Team
from renderjobs.compat.eas.services import service_create
team = Team.objects.get_or_create(name="studio")[0]
for number in range({SERVICES}):
    print(f"sd_{{number}}", service_create(name=f"sd_{{number}}", team=team)[1])
"""


class EasServer:
    """Web process, broker and database of a platform with services; the process of queued requests only on demand.

    Each test has a service of its own: consumers of an earlier one, who count for a while after they left, are none of its.
    """

    def __init__(self, platform: RunningPlatform, python: Path):
        self.platform, self.python = platform, python
        lines = platform.manage("shell", "-v", "0", "-c", MAKE_SERVICES).splitlines()
        self.unused = [line.split() for line in lines if line.startswith("sd_")]
        self.service = self.token = ""
        self.programs: list[subprocess.Popen[str]] = []

    @property
    def queue(self) -> str:
        """The address of the service's input."""
        return f"{self.platform.address}/api/predict/{self.service}"

    @property
    def sink(self) -> str:
        return f"{self.queue}/sink"

    @property
    def watched(self) -> str:
        """The sink's address for a WebSocket."""
        return self.sink.replace("http:", "ws:")

    def start(self, name: str, *, user: dict[str, str] | None = None, **options: Any) -> Program:
        """Run a function of the client's program."""
        address = f"127.0.0.1:{self.platform.port}"
        options["user"] = {"service": self.service, **(user or {})}
        arguments = [address, self.token, name, json.dumps(options)]
        process = subprocess.Popen(
            [str(self.python), str(HERE / "client_program.py"), *arguments], stdout=subprocess.PIPE, text=True
        )
        self.programs.append(process)
        return Program(process)

    def run(self, name: str, **options: Any) -> list[Any]:
        return self.start(name, **options).all_said()

    def start_requests(self) -> None:
        self.platform.start("requests", [sys.executable, str(ROOT / "manage.py"), "run_eas_requests"])

    def end_programs(self) -> None:
        for process in self.programs:
            process.kill()
            process.wait(PATIENCE_SECONDS)
        self.programs.clear()


@pytest.fixture(scope="session")
def running_server(client_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EasServer]:
    data_dir = tmp_path_factory.mktemp("eas")
    platform = RunningPlatform(data_dir, TEST_RENDERER="tests.fakes.PatternRenderer", PATTERN_STEP_SECONDS="0.5")
    with ExitStack() as stack:
        stack.enter_context(redis_server(data_dir / "redis.sock"))
        stack.callback(platform.stop_all)
        platform.set_up()
        server = EasServer(platform, client_python)
        platform.start_web()
        yield server


@pytest.fixture
def server(running_server: EasServer) -> Iterator[EasServer]:
    running_server.service, running_server.token = running_server.unused.pop()
    yield running_server
    running_server.end_programs()
    for address in (running_server.queue, running_server.sink):  # a later test's workers find nothing of this one
        query, header = {"_trunc_": "true", "_index_": 10**12}, {"Authorization": running_server.token}
        requests.delete(address, params=query, headers=header, timeout=PATIENCE_SECONDS)
