"""A process beside the card's that encodes, stores and commits pictures, so that the rendering thread keeps the interpreter (H1).

In threads of the card's process the same work would stop it: Python gives its lock away at every operator that is launched, and has
to wait for it again. Nothing depends on this process: when it dies, the work is done in the caller's thread, and it starts again.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import count
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import TYPE_CHECKING

from django.conf import settings

if TYPE_CHECKING:
    from gpuworker.contract import Rendered
    from renderjobs.claims import ClaimedBatch, ClaimedImage

logger = logging.getLogger(__name__)
ROOT = Path(__file__).resolve().parents[1]
PAUSE_SECONDS = 30
"""Between two starts, so that one that cannot live does not eat the machine."""


class ProcessLost(Exception):
    """It is not there, or ended before it answered; what it was given may be done or not."""


class DeliveryProcess:
    """Its ``deliver`` stands in for ``delivering.picture_deliver``.

    Made before the card is opened, for a copy of this process starts it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._numbers = count()
        self._waiting: dict[int, Future[None]] = {}
        self._pipe: Connection | None = None
        self._ready = False
        """It has said so; until then the caller's thread is faster."""
        self._started_at = 0.0
        self.process: subprocess.Popen[bytes] | None = None
        self._start()

    def deliver(self, batch: ClaimedBatch, image: ClaimedImage, rendered: Rendered) -> None:
        """As ``picture_deliver``, which is called where the process is gone."""
        from gpuworker.delivering import picture_deliver

        try:
            answer = self._asked(type(batch)(batch.claim_id, (image,)), image, rendered)
            if wait([answer], settings.STALL_SECONDS).not_done and self.process:
                self.process.kill()  # hangs; whoever waits for it is told that it is lost
            answer.result()
        except ProcessLost:
            picture_deliver(batch, image, rendered)

    def _asked(self, *work: object) -> Future[None]:
        answer: Future[None] = Future()
        with self._lock:
            if self._pipe is None and time.monotonic() - self._started_at > PAUSE_SECONDS:
                self._start()
            if self._pipe is None or not self._ready:
                raise ProcessLost
            number = next(self._numbers)
            self._waiting[number] = answer
            try:
                self._pipe.send((number, *work))
            except OSError as error:
                del self._waiting[number]
                raise ProcessLost from error
        return answer

    def _start(self) -> None:
        self._started_at = time.monotonic()
        self._pipe, theirs = Pipe()
        command = [sys.executable, "-m", "gpuworker.delivery_process", str(theirs.fileno())]
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        self.process = subprocess.Popen(
            command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": paths}
        )
        theirs.close()
        threading.Thread(target=self._listen, args=(self._pipe,), name="delivered", daemon=True).start()

    def _listen(self, pipe: Connection) -> None:
        try:
            pipe.recv()
            self._ready = True
            while True:
                self._answer(*pipe.recv())
        except (EOFError, OSError):
            logger.error("The delivery process ended; pictures are delivered without it for %s s", PAUSE_SECONDS)
            with self._lock:
                self._pipe, self._ready = None, False
            for number in list(self._waiting):
                self._answer(number, ProcessLost())

    def _answer(self, number: int, error: Exception | None) -> None:
        answer = self._waiting.pop(number)
        if error is None:
            answer.set_result(None)
        else:
            answer.set_exception(error)


# --- the other side --------------------------------------------------------------------------------------------------


def main(pipe: Connection) -> None:
    """Deliver what comes until the other end is closed, which is also what the death of the card's process looks like."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(
            number, signal.SIG_IGN
        )  # a drain ends it by closing the pipe, when nothing is on its way any more
    from manage import prepare

    prepare()
    import django

    django.setup()
    from gpuworker.delivering import DELIVERY_THREADS, picture_deliver

    answering = threading.Lock()
    pipe.send("ready")

    def work(number: int, batch: ClaimedBatch, image: ClaimedImage, rendered: Rendered) -> None:
        error: Exception | None = None
        try:
            picture_deliver(batch, image, rendered)
        except Exception as raised:
            error = raised
        with answering:
            try:
                pipe.send((number, error))
            except OSError:  # nobody is there any more
                return
            except Exception:  # an error that cannot be sent
                pipe.send((number, RuntimeError(f"{type(error).__name__}: {error}")))

    with ThreadPoolExecutor(DELIVERY_THREADS, thread_name_prefix="deliver") as threads:
        while True:
            try:
                threads.submit(work, *pipe.recv())
            except (EOFError, OSError):
                break


if __name__ == "__main__":
    os.nice(5)  # the card's process goes first where both want one core
    main(Connection(int(sys.argv[1])))
