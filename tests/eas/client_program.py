"""What a user of ``eas_prediction`` writes, as a program: it runs in the client's own environment and imports nothing of ours.

``python client_program.py ADDRESS TOKEN NAME [JSON]`` runs the function NAME and prints one JSON value per line.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from typing import Any

from eas_prediction import PredictClient, PredictException, QueueClient, StringRequest  # type: ignore[import-not-found]


class User:
    """Both queues of one service."""

    def __init__(self, address: str, token: str, *, service: str, **member: str):
        self.address, self.token, self.service, self.member = address, token, service, member
        self.requests = self.client(service)
        self.results = self.client(f"{service}/sink")

    def client(self, name: str, *, timeout_ms: int = 60_000, **member: str) -> Any:
        """It repeats a put that is not answered in time, so it has more time than by itself."""
        client = QueueClient(self.address, name)
        client.set_token(self.token)
        client.set_timeout(timeout_ms)
        client.init(**{**self.member, **member})
        client.set_logger(None)
        return client

    def empty(self) -> None:
        for queue in (self.requests, self.results):
            queue.truncate(int(queue.attributes()["stream.lastEntry"]) + 1)


def say(value: object) -> None:
    print(json.dumps(value), flush=True)


def seen(frames: Any) -> list[list[Any]]:
    return [[frame.index, frame.data.decode(), dict(frame.tags)] for frame in frames]


def puts_gets_and_searches(user: User) -> None:
    user.empty()
    first, request_id = user.results.put("one", {"task_id": "t 1/ä"})
    second, _ = user.results.put(b"two", {"_priority_": 1})
    say({"indexes": [int(first), int(second)], "request_id": request_id})
    say({"length": user.results.attributes()["stream.length"], "found": user.results.search(first)})
    say(seen(user.results.get(request_id=request_id, auto_delete=False)))
    say(seen(user.results.get(tags={"task_id": "t 1/ä"}, auto_delete=False)))
    say(seen(user.results.get(length=2)))
    say({"left": user.results.attributes()["stream.length"], "found": user.results.search(first)})
    began = time.monotonic()
    nothing = seen(user.results.get(timeout="1s"))
    say({"nothing": nothing, "seconds": time.monotonic() - began})


def gets_while_somebody_puts(user: User) -> None:
    """The default timeout is the socket's own: a late answer would be asked for again, and lost.

    The one who puts may be held up until nobody waits any more; what was put then is there for who asks again.
    """
    user.empty()
    results = user.client(f"{user.service}/sink", timeout_ms=5000)
    began = time.monotonic()
    threading.Timer(1.0, user.client(f"{user.service}/sink").put, args=("late",)).start()
    while not (frames := seen(results.get())):
        pass
    say({"frames": frames, "seconds": time.monotonic() - began})


def truncates_and_deletes(user: User) -> None:
    user.empty()
    indexes = [int(user.results.put(str(number))[0]) for number in range(5)]
    user.results.truncate(indexes[2])
    user.results.delete(indexes[3])
    user.results.delete([indexes[4], 10**6])
    say({"left": [index - indexes[0] for index, _, _ in seen(user.results.get(length=9, timeout="0s"))]})


def is_refused(user: User) -> None:
    for service, token in (("sd_async", "wrong"), ("nobody", user.token)):
        client = QueueClient(user.address, service)
        client.set_token(token)
        client.init()
        client.set_logger(None)
        try:
            client.put("x")
        except PredictException as error:
            say([error.code, str(error.message)])


def predicts_with_a_signature(user: User) -> None:
    """``PredictClient`` posts a request and signs it; the answer is the index."""
    user.empty()
    client = PredictClient(user.address, f"{user.service}/sdapi/v1/txt2img")
    client.set_token(user.token)
    client.init()
    response = client.predict(StringRequest(b'{"prompt": "x"}'))
    say({"index": int(response.response_data), "length": user.requests.attributes()["stream.length"]})


def watches(user: User, *, count: int, window: int = 5, auto_commit: bool = False, cut_after: int = 0,
            commit: bool = True, pause: float = 0.0, **watch: Any) -> None:  # fmt: skip
    """Says each frame; with ``cut_after`` the connection is lost once, behind the library's back."""
    watcher = user.results.watch(0, window, auto_commit=auto_commit, **watch)
    for number, frame in enumerate(watcher.run(), start=1):
        say([frame.index, frame.data.decode(), dict(frame.tags)])
        if commit and not auto_commit:
            commit_surely(user.results, frame.index)
        if number == cut_after:
            user.results.watch_sock.shutdown()
        if number == count:
            break
        time.sleep(pause)
    watcher.close()


def commit_surely(queue: Any, index: int) -> None:
    """The client gives up while the server is away."""
    while True:
        try:
            return queue.commit(index)
        except PredictException:
            time.sleep(0.5)


def main(address: str, token: str, name: str, options: str = "{}") -> None:
    given = json.loads(options)
    user = User(address, token, **given.pop("user", {}))
    globals()[name](user, **given)


if __name__ == "__main__":
    main(*sys.argv[1:])
