"""The calendar of these tests: no minute, day or month ends in the middle of one."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tests.common.clocks import clock_moved, clock_stopped, quiet_moment


@pytest.fixture(autouse=True)
def quiet_calendar(monkeypatch: pytest.MonkeyPatch) -> None:
    clock_moved(monkeypatch, quiet_moment())


@pytest.fixture
def stopped_clock(quiet_calendar: None, monkeypatch: pytest.MonkeyPatch) -> None:
    clock_stopped(monkeypatch, quiet_moment() + timedelta(seconds=20))
