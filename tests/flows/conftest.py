"""A running platform of separate processes, as in production: web, worker, Redis. Tests talk to it as clients do."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
from playwright.sync_api import Browser, BrowserContext, expect, sync_playwright

from operations.launcher import WEBSOCKETS
from tests.prepared import ROOT, SET_UP, platform_copy
from tests.services import PATIENCE_SECONDS, missing, redis_server, reserved_port, wait_until

PATIENCE_MS = PATIENCE_SECONDS * 1000
expect.set_options(timeout=PATIENCE_MS)
WORKER = [sys.executable, "-m", "celery", "-A", "gpuworker", "worker", "--loglevel", "INFO"]


class RunningPlatform:
    """``worker`` names the renderer the workers use: the product's, or the pattern renderer where time is dictated."""

    def __init__(self, data_dir: Path, **environment: str):
        self.data_dir = data_dir
        self.port = reserved_port()
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        self.environment = {
            **inherited,
            "DATA_DIR": str(data_dir),
            "PORT": str(self.port),
            "DJANGO_SETTINGS_MODULE": "tests.settings",
            "OMP_NUM_THREADS": "1",
            **environment,
        }
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def manage(self, *arguments: str, check: bool = True) -> str:
        command = [sys.executable, str(ROOT / "manage.py"), *arguments]
        done = subprocess.run(command, env=self.environment, cwd=ROOT, capture_output=True, text=True)
        if check and done.returncode:
            raise AssertionError(f"{arguments} failed:\n{done.stdout}\n{done.stderr}")
        return done.stdout

    def set_up(self) -> None:
        """A pool, a rate card, the miniature."""
        if self.environment.keys() & {"DATABASE_URL", "STORAGE_URL"}:
            for command in SET_UP:
                self.manage(*command)
        else:
            platform_copy(self.data_dir)

    def start(self, name: str, command: list[str], **environment: str) -> subprocess.Popen[bytes]:
        paths = {"PYTHONPATH": f"{ROOT / 'platform'}{os.pathsep}{ROOT}"}
        with (self.data_dir / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                command,
                env={**self.environment, **paths, **environment},
                cwd=ROOT,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return self.processes[name]

    def start_web(self) -> None:
        arguments = ["config.asgi:application", "--port", str(self.port), "--log-level", "warning", *WEBSOCKETS]
        # Or it closes a connection at rest in the moment in which a test's client, which was held up, asks on it again.
        arguments += ["--timeout-keep-alive", "3600"]
        self.start("web", [sys.executable, "-m", "uvicorn", *arguments])
        wait_until(self.web_answers, what="The web process answering")

    def web_answers(self) -> bool:
        try:
            return requests.get(f"{self.address}/healthz", timeout=2).ok
        except requests.RequestException:
            return False

    def start_worker(self, name: str = "worker", **environment: str) -> None:
        self.start(name, WORKER, **environment)

    def await_worker(self) -> None:
        """Until one has reported itself, for who cannot wait as long as one takes to start."""
        wait_until(lambda: requests.get(f"{self.address}/readyz", timeout=60).ok, what="A worker that can claim")

    def kill(self, name: str) -> None:
        """SIGKILL to the process and its children at once: what a lost machine looks like."""
        process = self.processes.pop(name)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(PATIENCE_SECONDS)

    def freeze(self, name: str) -> None:
        """Outside a transaction of its own: SQLite has one writer, and nobody writes while it is frozen."""
        group, database = self.processes[name].pid, self.data_dir / "db.sqlite3"
        while True:
            os.killpg(group, signal.SIGSTOP)
            connection = sqlite3.connect(database, timeout=0.5, isolation_level=None)
            try:
                connection.execute("BEGIN IMMEDIATE")
                connection.execute("ROLLBACK")
                return
            except sqlite3.OperationalError:
                os.killpg(group, signal.SIGCONT)
                time.sleep(0.05)
            finally:
                connection.close()

    def thaw(self, name: str) -> None:
        os.killpg(self.processes[name].pid, signal.SIGCONT)

    def stop_all(self) -> None:
        for name in list(self.processes):
            self.kill(name)

    def token(self, team: str = "studio", user: str = "ada") -> str:
        return self.manage("issue_token", "--team", team, "--user", user).strip()

    def log(self, name: str) -> str:
        return (self.data_dir / f"{name}.log").read_text(errors="replace")

    def assert_invariants(self) -> None:
        assert self.manage("check_invariants", check=False) == ""


class Client:
    """The job API as a script would use it."""

    def __init__(self, platform: RunningPlatform, team: str = "studio", user: str = "ada"):
        self.base = f"{platform.address}/api/v1"
        self.token = platform.token(team, user)
        self.session = requests.Session()
        self.session.headers["Authorization"] = f"Bearer {self.token}"

    def submit(self, headers: dict[str, str] | None = None, **request: Any) -> dict[str, Any]:
        body = {"kind": "txt2img", "request": {"width": 64, "height": 64, "steps": 4, "seed": 1, **request}}
        answer = self.session.post(f"{self.base}/jobs", json=body, headers=headers or {}, timeout=60)
        assert answer.status_code == 201, answer.text
        return answer.json()

    def job(self, job_id: str) -> dict[str, Any]:
        return self.session.get(f"{self.base}/jobs/{job_id}", timeout=60).json()

    def images(self, job_id: str) -> list[dict[str, Any]]:
        return self.session.get(f"{self.base}/jobs/{job_id}/images", params={"limit": 1000}, timeout=60).json()[
            "results"
        ]

    def wait(self, job_id: str, seconds: float = PATIENCE_SECONDS) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        while (job := self.job(job_id))["state"] in ("queued", "running"):
            assert time.monotonic() < deadline, f"The job did not end within {seconds} s: {job}"
            time.sleep(0.1)
        return job


@contextmanager
def chromium_browser() -> Iterator[Browser]:
    program = shutil.which("chromium") or missing("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"], timeout=PATIENCE_MS)
        yield browser
        browser.close()


def patient_context(browser: Browser, platform: RunningPlatform, **options: Any) -> BrowserContext:
    context = browser.new_context(base_url=platform.address, **options)
    context.set_default_timeout(PATIENCE_MS)
    return context


@contextmanager
def running_platform(data_dir: Path, **environment: str) -> Iterator[RunningPlatform]:
    with ExitStack() as stack:
        platform = RunningPlatform(data_dir, **environment)
        stack.enter_context(redis_server(data_dir / "redis.sock"))
        stack.callback(platform.stop_all)
        platform.set_up()
        platform.start_web()
        yield platform


@pytest.fixture(scope="module")
def pattern_platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningPlatform]:
    """Workers render patterns with a dictated time per step, and leases are short."""
    environment = {"TEST_RENDERER": "tests.fakes.PatternRenderer", "LEASE_SECONDS": "3"}
    with running_platform(tmp_path_factory.mktemp("pattern"), **environment) as platform:
        yield platform


@pytest.fixture(scope="module")
def real_platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningPlatform]:
    """The product's own engine with the shipped miniature checkpoint."""
    with running_platform(tmp_path_factory.mktemp("real")) as platform:
        platform.start_worker()
        yield platform
