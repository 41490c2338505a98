"""Processes die, the broker forgets, and every image is still delivered once and charged once."""

from __future__ import annotations

import os
import signal
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
import redis

from tests.fakes import POISON_SEED
from tests.flows.conftest import Client, RunningPlatform
from tests.services import PATIENCE_SECONDS, wait_until


@pytest.fixture
def platform(pattern_platform: RunningPlatform):
    """No worker runs when a test begins; whatever it started is gone when it ends."""
    yield pattern_platform
    for name in [name for name in pattern_platform.processes if name != "web"]:
        pattern_platform.kill(name)


def assert_each_image_once(client: Client, job_id: str, count: int, *, member: str) -> None:
    job, images = client.job(job_id), client.images(job_id)
    assert job["state"] == "succeeded" and job["images_delivered"] == count
    assert [image["index"] for image in images] == list(range(count))
    asked = {"group_by": "member", "from": "2020-01-01"}
    usage = client.session.get(f"{client.base}/usage", params=asked, timeout=60).json()
    assert {row["member"]: row["images"] for row in usage["results"]}[member] == count


def test_f1_a_worker_killed_in_mid_batch_costs_no_image_and_no_second_charge(platform):
    client = Client(platform, user="killed")
    platform.start_worker(PATTERN_STEP_SECONDS="0.25")
    job = client.submit(n_iter=20, steps=4)
    wait_until(lambda: client.job(job["id"])["images_delivered"] >= 8, what="The first micro-batches")
    platform.kill("worker")
    platform.start_worker(PATTERN_STEP_SECONDS="0.01")
    client.wait(job["id"])
    assert_each_image_once(client, job["id"], 20, member="killed")
    platform.assert_invariants()


def test_f1_a_delivery_process_killed_in_mid_batch_costs_no_image_and_no_second_charge(platform):
    client = Client(platform, user="undelivered")
    platform.start_worker(PATTERN_STEP_SECONDS="0.1")
    job = client.submit(n_iter=24, steps=4)
    wait_until(lambda: client.job(job["id"])["images_delivered"] >= 1, what="The first delivery")
    os.kill(process_in_group(platform.processes["worker"].pid, "gpuworker.delivery_process"), signal.SIGKILL)
    assert client.wait(job["id"])["state"] == "succeeded"
    assert_each_image_once_of(client, job["id"], 24)
    wait_until(lambda: "delivered without it" in platform.log("worker"), what="The worker missing its delivery process")
    platform.assert_invariants()


def process_in_group(group: int, module: str) -> int:
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if (
                entry.name.isdigit()
                and module in (entry / "cmdline").read_text()
                and os.getpgid(int(entry.name)) == group
            ):
                return int(entry.name)
    raise AssertionError(f"{module} does not run.")


def test_f4_a_wiped_broker_loses_no_waiting_job(platform):
    client = Client(platform, user="wiped")
    jobs = [client.submit(n_iter=2, prompt=f"job {number}") for number in range(3)]
    redis.Redis(unix_socket_path=str(platform.data_dir / "redis.sock")).flushall()
    platform.start_worker()
    for job in jobs:
        assert client.wait(job["id"])["state"] == "succeeded"
    platform.assert_invariants()


def test_f2_a_frozen_worker_that_comes_back_cannot_deliver_again(platform):
    client = Client(platform, user="frozen")
    platform.start_worker("frozen", PATTERN_STEP_SECONDS="0.5")
    job = client.submit(n_iter=4, steps=6)
    wait_until(lambda: client.job(job["id"])["state"] == "running", what="The claim")
    platform.freeze("frozen")
    platform.start_worker("second")
    client.wait(job["id"])
    platform.thaw("frozen")
    later = client.submit(prompt="after the thaw")
    client.wait(later["id"])
    assert_each_image_once_of(client, job["id"], 4)
    platform.assert_invariants()


def assert_each_image_once_of(client: Client, job_id: str, count: int) -> None:
    images = client.images(job_id)
    assert [image["state"] for image in images] == ["delivered"] * count
    assert client.job(job_id)["images_delivered"] == count


def test_f13_a_poison_image_fails_alone_and_its_companions_finish(platform):
    client = Client(platform, user="poisoned")
    platform.start_worker()
    job = client.submit(n_iter=3, seed=POISON_SEED - 1)
    ended = client.wait(job["id"])
    assert (ended["state"], ended["images_delivered"], ended["images_failed"]) == ("partly_succeeded", 2, 1)
    assert ended["error"]["code"] == "poison"
    platform.assert_invariants()


def test_f11_sigterm_finishes_what_runs_and_claims_nothing_more(platform):
    client = Client(platform, user="terminated")
    lease = {"LEASE_SECONDS": "600"}  # none is lost here, however slow the machine is
    platform.start_worker(PATTERN_STEP_SECONDS="0.3", **lease)
    job = client.submit(n_iter=100, steps=4, width=128)
    wait_until(lambda: client.job(job["id"])["state"] == "running", what="The claim")
    platform.freeze("worker")
    states = Counter(image["state"] for image in client.images(job["id"]))
    begun = sum(states.values()) - states["waiting"]
    platform.processes["worker"].terminate()
    platform.thaw("worker")
    platform.processes.pop("worker").wait(PATIENCE_SECONDS)
    stopped = client.job(job["id"])
    assert states["delivered"] <= stopped["images_delivered"] <= begun < 100 and stopped["state"] == "running"
    platform.start_worker(**lease)
    assert client.wait(job["id"])["state"] == "succeeded"
    assert {image["attempts"] for image in client.images(job["id"])} == {1}
    platform.assert_invariants()
