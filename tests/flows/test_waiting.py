"""A waiting synchronous call costs the web process a socket and nothing else."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from pathlib import Path

import requests

from tests.flows.conftest import Client, RunningPlatform
from tests.services import wait_until

CALLS = 200


def test_200_waiting_calls_hold_no_thread_and_no_connection_and_polls_are_answered(pattern_platform: RunningPlatform):
    client = Client(pattern_platform, team="waiters", user="many")
    threads_before = threads_of(pattern_platform)

    async def scenario() -> list[bytes]:
        calls = [asyncio.create_task(txt2img(pattern_platform.port, client.token, seed)) for seed in range(CALLS)]
        await asyncio.to_thread(wait_until, lambda: waiting_jobs(client) == CALLS, what="200 jobs")
        # The last of them was stored a moment before its thread let go of it.
        await asyncio.to_thread(
            wait_until, lambda: threads_of(pattern_platform) < threads_before + 40, what="Threads being given back"
        )
        await asyncio.to_thread(
            wait_until, lambda: database_files_of(pattern_platform) < 40, what="Connections being given back"
        )
        progress = await asyncio.to_thread(
            requests.get,
            f"{pattern_platform.address}/sdapi/v1/progress",
            headers={"Authorization": client.token},
            timeout=60,
        )
        assert progress.ok and progress.json()["state"]["job_count"] == 1
        pattern_platform.start_worker()
        return await asyncio.gather(*calls)

    answers = asyncio.run(scenario())
    pattern_platform.kill("worker")
    seeds = [json.loads(json.loads(answer)["info"])["seed"] for answer in answers]
    assert seeds == list(range(CALLS))


async def txt2img(port: int, token: str, seed: int) -> bytes:
    """One call over a plain socket, so that 200 of them cost the test no threads either."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = json.dumps({"steps": 1, "width": 64, "height": 64, "seed": seed}).encode()
    head = (
        f"POST /sdapi/v1/txt2img HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {token}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    writer.write(head.encode() + body)
    answer = await reader.read()
    writer.close()
    status, _, rest = answer.partition(b"\r\n")
    assert b" 200 " in status, answer[:500]
    return rest.partition(b"\r\n\r\n")[2]


def waiting_jobs(client: Client) -> int:
    jobs = client.session.get(f"{client.base}/jobs", params={"state": "queued", "limit": 1000}, timeout=60).json()
    return len(jobs["results"])


def threads_of(platform: RunningPlatform) -> int:
    return len(list(Path(f"/proc/{platform.processes['web'].pid}/task").iterdir()))


def database_files_of(platform: RunningPlatform) -> int:
    """Open SQLite connections of the web process, counted by its file descriptors of the database file."""
    found = 0
    for link in Path(f"/proc/{platform.processes['web'].pid}/fd").iterdir():
        with suppress(OSError):  # closed since it was listed
            found += "db.sqlite3" in str(link.readlink())
    return found
