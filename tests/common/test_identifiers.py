"""Identifiers sort as they were made, whatever the clock does."""

from __future__ import annotations

import time

import pytest

from common import identifiers
from common.identifiers import uuid7


def test_an_identifier_is_a_uuid_of_version_7_with_the_time_in_front():
    before = time.time_ns() // 1_000_000
    made = uuid7()
    assert made.version == 7 and made.variant == "specified in RFC 4122" and made.int >> 80 >= before


@pytest.mark.parametrize("step_ms", [0, -1, -3600_000], ids=["within a millisecond", "a clock put back", "by an hour"])
def test_those_of_one_process_are_in_the_order_they_were_made_in(monkeypatch, step_ms):
    moments = (1_800_000_000_000 + step_ms * number for number in range(10_000))
    monkeypatch.setattr(identifiers, "_last", 0)
    monkeypatch.setattr(identifiers.time, "time_ns", lambda: next(moments) * 1_000_000)
    made = [uuid7() for _ in range(1000)]
    monkeypatch.undo()
    assert made == sorted(set(made))
