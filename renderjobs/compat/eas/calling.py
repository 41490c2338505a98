"""How a service is called: its addresses and programs that work when they are pasted, the token being in TOKEN. Pure."""

from __future__ import annotations

from dataclasses import dataclass

BODY = '{"prompt": "a red ring", "steps": 20}'
SYNCHRONOUS_CURL = """curl -H "Authorization: $TOKEN" "{address}/sdapi/v1/txt2img" -d '{body}'
"""
SYNCHRONOUS_PYTHON = """import base64
import os

import requests

answer = requests.post(
    "{address}/sdapi/v1/txt2img",
    headers={{"Authorization": os.environ["TOKEN"]}},
    json={body},
    timeout=600,
)
answer.raise_for_status()
for number, picture in enumerate(answer.json()["images"]):
    with open(f"picture-{{number}}.png", "wb") as file:
        file.write(base64.b64decode(picture))
"""
ASYNCHRONOUS_CURL = """curl -H "Authorization: $TOKEN" "{address}/sdapi/v1/txt2img?task_id=job_001" -d '{body}'
curl -H "Authorization: $TOKEN" "{address}/sink?task_id=job_001&_timeout_=30s&_raw_=false"
"""
ASYNCHRONOUS_PYTHON = """import os

from eas_prediction import QueueClient  # pip install eas_prediction

requests = QueueClient("{host}", "{name}/sdapi/v1/txt2img")
requests.set_token(os.environ["TOKEN"])
requests.init({requests})
index, request_id = requests.put('{body}', {{"task_id": "job_001"}})

results = QueueClient("{host}", "{name}/sink")
results.set_token(os.environ["TOKEN"])
results.init({results})
watcher = results.watch(0, 5, auto_commit=False)
for frame in watcher.run():
    print(frame.tags["task_id"], len(frame.data), "bytes")
    results.commit(frame.index)
    if frame.tags["requestId"] == request_id:
        break
watcher.close()
"""


@dataclass(frozen=True, slots=True)
class Way:
    """One of the ways to call a service."""

    name: str
    title: str
    address: str
    answers: str
    """Where the pictures come."""
    curl: str
    python: str


def ways_of(name: str, *, is_asynchronous: bool, host: str, scheme: str) -> list[Way]:
    """A service with queues is called at two addresses, another one at its own.

    Args:
        host: As the caller's browser knows it, with its port.
    """
    base, queue = f"{scheme}://{host}", f"{scheme}://{host}/api/predict/{name}"
    at = base if is_asynchronous else queue
    synchronous = Way(
        "synchronous",
        "Synchronous",
        at,
        "The call waits for its pictures.",
        SYNCHRONOUS_CURL.format(address=at, body=BODY),
        SYNCHRONOUS_PYTHON.format(address=at, body=BODY),
    )
    asynchronous = Way(
        "asynchronous",
        "Asynchronous",
        queue,
        f"The answer is the request's index; the result comes to {queue}/sink.",
        ASYNCHRONOUS_CURL.format(address=queue, body=BODY),
        ASYNCHRONOUS_PYTHON.format(
            host=host,
            name=name,
            body=BODY,
            requests=_custom(f"{queue}/sdapi/v1/txt2img"),
            results=_custom(f"{queue}/sink"),
        ),
    )
    return [synchronous, asynchronous] if is_asynchronous else [synchronous]


def _custom(address: str) -> str:
    """The client takes every endpoint for one of plain HTTP; only a whole address may be of another scheme."""
    return f'custom_url="{address}"' if address.startswith("https:") else ""
