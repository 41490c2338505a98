"""A prompt whose worker is killed in the middle is written by the next one: separate processes, real broker, dictated time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.companions import a_text_generator
from tests.flows.conftest import Client, RunningPlatform, running_platform
from tests.services import wait_until


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[RunningPlatform]:
    environment = {"TEST_RENDERER": "tests.fakes.PatternRenderer", "LEASE_SECONDS": "3", "PROMPT_EXPANSION": "1"}
    data = tmp_path / "data"
    data.mkdir()
    with running_platform(data, **environment) as platform:
        platform.manage("import_asset", str(a_text_generator(tmp_path / "writer")), "--kind", "text_generator")
        yield platform


def test_a_killed_worker_loses_no_prompt(platform):
    client = Client(platform)

    def shown() -> dict:
        return client.session.get(address, timeout=60).json()

    platform.start_worker("slow", PATTERN_STEP_SECONDS="100")
    body = {"prompt": "a cat in a garden", "count": 2, "seed": 7}
    address = client.session.post(f"{client.base}/prompts/expand", json=body, timeout=60).json()["links"]["self"]
    wait_until(lambda: shown()["state"] == "writing", what="A worker taking the prompt")
    platform.kill("slow")
    platform.start_worker("next")
    wait_until(lambda: shown()["state"] == "written", what="The next worker writing the prompt")
    assert shown()["prompts"] == ["a cat in a garden, 7", "a cat in a garden, 8"]
    platform.assert_invariants()
