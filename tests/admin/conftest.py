"""The calendar of these tests: no day or month ends in the middle of one."""

from __future__ import annotations

import pytest

from tests.common.clocks import clock_moved, quiet_moment


@pytest.fixture(autouse=True)
def quiet_calendar(monkeypatch: pytest.MonkeyPatch) -> None:
    clock_moved(monkeypatch, quiet_moment())
