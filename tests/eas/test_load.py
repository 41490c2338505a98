"""Many clients at once, large frames, and a web process that is killed while they are at it."""

from __future__ import annotations

import asyncio
import base64
import http.client
import threading
import time
from collections import Counter
from urllib.parse import urlencode

import pytest
import requests
from websockets.asyncio.client import ClientConnection, connect

from renderjobs.compat.eas.frames import Frame
from tests.eas.conftest import EasServer
from tests.eas.test_client import length, put, wait_for_consumers
from tests.services import PATIENCE_SECONDS, wait_until

pytestmark = pytest.mark.embedded
LIMIT = "from renderjobs.models import EasService; EasService.objects.filter(name={service!r}).update(max_payload_bytes={most})"


def sink(server: EasServer, **query: object) -> requests.Response:
    return requests.get(server.sink, params=query, headers={"Authorization": server.token}, timeout=PATIENCE_SECONDS)


def watching(server: EasServer, uid: str, **query: object) -> connect:
    """A consumer who says every two seconds that it is there, and never gives up."""
    headers = {"Authorization": server.token, "X-EAS-QueueService-Redis-Uid": uid}
    address = f"{server.watched}?{urlencode({'_watch_': 'true', '_index_': 0, **query})}"
    patience = {"open_timeout": PATIENCE_SECONDS, "ping_interval": 2, "ping_timeout": None, "max_size": None}
    return connect(address, additional_headers=headers, **patience)


def test_thirty_consumers_of_one_group_get_each_frame_once_while_it_is_put(server: EasServer):
    consumers, frames = 30, 150
    got: Counter[int] = Counter()
    shares: Counter[int] = Counter()
    committed: list[int] = []

    async def watch(number: int, all_have_some: asyncio.Event) -> None:
        async with watching(server, f"c{number}", _window_=2) as socket:
            async for message in socket:
                index = index_of(bytes(message))
                got[index] += 1
                shares[number] += 1
                if len(shares) == consumers:
                    all_have_some.set()
                await all_have_some.wait()  # none is committed before
                await asyncio.to_thread(commit, server, index)
                committed.append(index)

    async def scenario() -> None:
        all_have_some = asyncio.Event()
        watchers = [asyncio.create_task(watch(number, all_have_some)) for number in range(consumers)]
        await asyncio.to_thread(wait_for_consumers, server, consumers)
        await asyncio.to_thread(put, server, frames)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while len(committed) < frames and time.monotonic() < deadline:
            await asyncio.sleep(0.1)
        for watcher in watchers:
            watcher.cancel()
        await asyncio.gather(*watchers, return_exceptions=True)

    asyncio.run(scenario())
    assert len(got) == frames and set(got.values()) == {1} and length(server) == "0"
    assert len(shares) == consumers, "they share"


def index_of(message: bytes) -> int:
    """Of a frame's protobuf: the varint behind its first byte."""
    value = 0
    for position, byte in enumerate(message[1:]):
        value |= (byte & 0x7F) << 7 * position
        if byte < 0x80:
            return value
    raise AssertionError(message)


def commit(server: EasServer, *indexes: int) -> None:
    query = {"_indexes_": ",".join(map(str, indexes))}
    answer = requests.put(server.sink, params=query, headers={"Authorization": server.token}, timeout=PATIENCE_SECONDS)
    assert answer.text == "OK"


def test_who_comes_back_with_a_smaller_window_gets_all_it_had_beside_others_who_look_in_vain(server: EasServer):
    indexes = put(server, 4)

    async def received(socket: ClientConnection) -> int:
        return index_of(bytes(await asyncio.wait_for(socket.recv(), PATIENCE_SECONDS)))

    async def scenario() -> tuple[list[int], list[int]]:
        again = []
        # The newer connection comes before the older one has ended: no grace passes on the way.
        async with watching(server, "back", _window_=4) as before:
            had = [await received(before) for _ in indexes]
            async with watching(server, "idle", _window_=9) as idle, watching(server, "back", _window_=1) as back:
                for _ in indexes:
                    again.append(await received(back))
                    await asyncio.to_thread(commit, server, again[-1])
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(idle.recv(), 0.5)
        return had, again

    assert asyncio.run(scenario()) == (indexes, indexes) and length(server) == "0"


@pytest.mark.parametrize("mebibytes", [1, 32])
def test_a_frame_of_the_most_bytes_arrives_whole_by_every_way(server: EasServer, mebibytes: int):
    size = mebibytes * 2**20
    server.platform.manage("shell", "-v", "0", "-c", LIMIT.format(service=server.service, most=size))
    data = bytes(range(256)) * (size // 256)
    headers = {"Authorization": server.token}
    for sent, status in ((data, 200), (data + b"x", 413)):
        assert requests.post(server.sink, sent, headers=headers, timeout=PATIENCE_SECONDS).status_code == status
    assert base64.b64decode(sink(server, _raw_="false", _auto_delete_="false").json()[0]["data"]) == data
    assert sink(server, _auto_delete_="false").content == data

    async def watched() -> bytes:
        async with watching(server, "one", _auto_commit_="true") as socket:
            return bytes(await asyncio.wait_for(socket.recv(), PATIENCE_SECONDS))

    assert asyncio.run(watched()).endswith(Frame(0, data=data).to_protobuf()) and length(server) == "0"


def test_a_web_process_killed_while_many_put_keeps_what_it_answered_and_repeats_no_index(server: EasServer):
    answered: dict[int, str] = {}
    sent: set[str] = set()
    stop = threading.Event()

    def put_on(client: int) -> None:
        """As a client that never gives up: after an error it goes on with the next."""
        number = 0
        while not stop.is_set():
            text = f"{client}-{number}"
            number += 1
            connection = http.client.HTTPConnection("127.0.0.1", server.platform.port, timeout=5)
            try:
                sent.add(text)
                connection.request("POST", f"/api/predict/{server.service}/sink", text, {"Authorization": server.token})
                answer = connection.getresponse()
                if answer.status == 200:
                    answered[int(answer.read())] = text
            except (OSError, http.client.HTTPException):
                time.sleep(0.05)
            finally:
                connection.close()

    def twenty_more() -> None:
        enough = len(answered) + 20
        wait_until(lambda: len(answered) >= enough, what="Twenty answers")

    clients = [threading.Thread(target=put_on, args=(client,)) for client in range(8)]
    for client in clients:
        client.start()
    try:
        for _ in range(2):
            twenty_more()
            server.platform.kill("web")
            server.platform.start_web()
        twenty_more()
    finally:
        stop.set()
        for client in clients:
            client.join()
    stored: dict[int, str] = {}
    while (answer := sink(server, _length_=1000, _raw_="false")).status_code == 200:
        for frame in answer.json():
            stored[frame["index"]] = base64.b64decode(frame["data"]).decode()
    assert answered.items() <= stored.items()
    assert len(set(stored.values())) == len(stored) and set(stored.values()) <= sent
