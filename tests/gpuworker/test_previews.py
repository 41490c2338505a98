"""Previews: made while somebody looks and not otherwise; whatever becomes of them, the picture is delivered."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from fleet.models import Worker
from gpuworker.contract import Picture
from gpuworker.heartbeat import Lease
from gpuworker.runner import Runner
from renderjobs.previews import preview_ask, preview_put, previews_asked
from tests.fakes import PatternRenderer
from tests.services import wait_until

PICTURE = Picture(2, 1, bytes([255, 0, 0, 0, 0, 255]))


@pytest.fixture
def runner(broker) -> Runner:
    worker = Worker(name="w1", device="pattern")
    return Runner(worker=worker, renderer=PatternRenderer(), heartbeat=None, draining=None)  # type: ignore[arg-type]


def never() -> list[Picture]:
    raise AssertionError("Nobody looks, so no preview is to be made.")


def kept(image_id: int) -> bytes:
    wait_until(lambda: preview_ask(image_id), what="The preview being put there")
    return preview_ask(image_id) or b""


def test_looking_asks_for_a_preview(broker):
    assert preview_ask(7) is None and previews_asked([7, 8]) == {7} and previews_asked([]) == set()


def test_a_preview_that_was_made_is_seen(broker):
    preview_put(7, b"png")
    assert preview_ask(7) == b"png"


def test_nothing_is_made_while_nobody_looks(runner):
    runner._preview([7, 8], Lease(1, [7, 8]), never)


def test_only_the_image_that_is_looked_at_is_put_there(runner):
    lease = Lease(1, [7, 8])
    lease.looked_at = frozenset({8})
    runner._preview([7, 8], lease, lambda: [PICTURE, PICTURE])
    assert Image.open(io.BytesIO(kept(8))).getpixel((0, 0)) == (255, 0, 0)
    assert preview_ask(7) is None


def test_a_broker_that_does_not_answer_costs_the_preview_and_nothing_else(settings, tmp_path):
    settings.REDIS_URL = f"unix://{tmp_path}/nobody.sock"
    preview_put(7, b"png")
    assert preview_ask(7) is None and previews_asked([7]) == set()
