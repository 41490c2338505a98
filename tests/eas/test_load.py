"""Many clients at once, large frames, and a web process that is killed while they are at it."""

from __future__ import annotations

import asyncio
import base64
import http.client
import threading
import time
from collections import Counter

import pytest
import requests
from websockets.asyncio.client import connect

from renderjobs.compat.eas.frames import Frame
from tests.eas.conftest import EasServer
from tests.eas.test_client import clear, length, put, wait_for_consumers

pytestmark = [pytest.mark.embedded, pytest.mark.timeout(180)]
LIMIT = "from renderjobs.models import EasService; EasService.objects.update(max_payload_bytes={most})"


def sink(server: EasServer, **query: object) -> requests.Response:
    address = f"{server.platform.address}/api/predict/sd_async/sink"
    return requests.get(address, params=query, headers={"Authorization": server.token}, timeout=60)


def test_thirty_consumers_of_one_group_get_each_frame_once_while_it_is_put(server: EasServer):
    clear(server)
    wait_for_consumers(server, 0)
    consumers, frames = 30, 150
    got: Counter[int] = Counter()
    shares: Counter[int] = Counter()
    address = f"ws://127.0.0.1:{server.platform.port}/api/predict/sd_async/sink?_watch_=true&_index_=0&_window_=2"

    async def watch(number: int) -> None:
        headers = {"Authorization": server.token, "X-EAS-QueueService-Redis-Uid": f"c{number}"}
        async with connect(address, additional_headers=headers, ping_interval=2) as socket:
            async for message in socket:
                index = index_of(bytes(message))
                got[index] += 1
                shares[number] += 1
                await asyncio.to_thread(commit, server, index)

    async def scenario() -> None:
        watchers = [asyncio.create_task(watch(number)) for number in range(consumers)]
        await asyncio.to_thread(wait_for_consumers, server, consumers)
        await asyncio.to_thread(put, server, frames)
        deadline = time.monotonic() + 60
        while len(got) < frames and time.monotonic() < deadline:
            await asyncio.sleep(0.1)
        for watcher in watchers:
            watcher.cancel()
        await asyncio.gather(*watchers, return_exceptions=True)

    asyncio.run(scenario())
    assert len(got) == frames and set(got.values()) == {1} and length(server) == "0"
    assert len(shares) > consumers / 3 and max(shares.values()) < frames / 3, "they share"


def index_of(message: bytes) -> int:
    """Of a frame's protobuf: the varint behind its first byte."""
    value = 0
    for position, byte in enumerate(message[1:]):
        value |= (byte & 0x7F) << 7 * position
        if byte < 0x80:
            return value
    raise AssertionError(message)


def commit(server: EasServer, index: int) -> None:
    address = f"{server.platform.address}/api/predict/sd_async/sink?_indexes_={index}"
    assert requests.put(address, headers={"Authorization": server.token}, timeout=30).text == "OK"


def test_who_comes_back_with_a_smaller_window_gets_all_it_had_beside_others_who_look_in_vain(server: EasServer):
    clear(server)
    wait_for_consumers(server, 0)
    indexes = put(server, 4)
    address = f"ws://127.0.0.1:{server.platform.port}/api/predict/sd_async/sink?_watch_=true&_index_=0&_window_="

    def watching(uid: str, window: int) -> connect:
        headers = {"Authorization": server.token, "X-EAS-QueueService-Redis-Uid": uid}
        return connect(f"{address}{window}", additional_headers=headers, ping_interval=2)

    async def scenario() -> tuple[list[int], list[int]]:
        async with watching("back", 4) as before:
            had = [index_of(bytes(await asyncio.wait_for(before.recv(), 20))) for _ in indexes]
        again = []
        async with watching("idle", 9) as idle, watching("back", 1) as back:
            for _ in indexes:
                again.append(index_of(bytes(await asyncio.wait_for(back.recv(), 20))))
                await asyncio.to_thread(commit, server, again[-1])
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(idle.recv(), 0.5)
        return had, again

    assert asyncio.run(scenario()) == (indexes, indexes) and length(server) == "0"


@pytest.mark.parametrize("mebibytes", [1, 32])
def test_a_frame_of_the_most_bytes_arrives_whole_by_every_way(server: EasServer, mebibytes: int):
    clear(server)
    size = mebibytes * 2**20
    server.platform.manage("shell", "-v", "0", "-c", LIMIT.format(most=size))
    data = bytes(range(256)) * (size // 256)
    address = f"{server.platform.address}/api/predict/sd_async/sink"
    headers = {"Authorization": server.token}
    assert requests.post(address, data, headers=headers, timeout=60).status_code == 200
    assert requests.post(address, data + b"x", headers=headers, timeout=60).status_code == 413
    assert base64.b64decode(sink(server, _raw_="false", _auto_delete_="false").json()[0]["data"]) == data
    assert sink(server, _auto_delete_="false").content == data

    async def watched() -> bytes:
        watching = f"ws://127.0.0.1:{server.platform.port}/api/predict/sd_async/sink?_watch_=true&_auto_commit_=true"
        async with connect(watching, additional_headers=headers, max_size=None) as socket:
            return bytes(await asyncio.wait_for(socket.recv(), 60))

    assert asyncio.run(watched()).endswith(Frame(0, data=data).to_protobuf()) and length(server) == "0"
    server.platform.manage("shell", "-v", "0", "-c", LIMIT.format(most=2**20))


def test_a_web_process_killed_while_many_put_keeps_what_it_answered_and_repeats_no_index(server: EasServer):
    clear(server)
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
                connection.request("POST", "/api/predict/sd_async/sink", text, {"Authorization": server.token})
                answer = connection.getresponse()
                if answer.status == 200:
                    answered[int(answer.read())] = text
            except (OSError, http.client.HTTPException):
                time.sleep(0.05)
            finally:
                connection.close()

    clients = [threading.Thread(target=put_on, args=(client,)) for client in range(8)]
    for client in clients:
        client.start()
    for _ in range(2):
        time.sleep(1.5)
        server.platform.kill("web")
        server.platform.start_web()
    time.sleep(1)
    stop.set()
    for client in clients:
        client.join()
    stored: dict[int, str] = {}
    while (answer := sink(server, _length_=1000, _raw_="false")).status_code == 200:
        for frame in answer.json():
            stored[frame["index"]] = base64.b64decode(frame["data"]).decode()
    assert len(answered) > 20 and answered.items() <= stored.items()
    assert len(set(stored.values())) == len(stored) and set(stored.values()) <= sent
