"""Clocks for tests of the calendar: Python's and the database's, moved together. What goes by ``time.time`` (signatures) stays."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from django.db.models.functions import Now
from django.utils import timezone

from common import database

MINUTE = timedelta(minutes=1)
QUIET = 10 * MINUTE


def quiet_moment() -> datetime:
    """The next one at which a minute begins, and that is ten minutes or more away from the ends of a day.

    It is never in the past, so that what the database writes by a column's own default is not in the future.
    """
    minute = timezone.now().astimezone(UTC).replace(second=0, microsecond=0) + MINUTE
    if (minute - QUIET).date() == (minute + QUIET).date():
        return minute
    return (minute + QUIET).replace(hour=0, minute=0) + QUIET


def clock_moved(patch: pytest.MonkeyPatch, moment: datetime) -> None:
    """Now it is ``moment``, and the clock goes on."""
    real = timezone.now
    seconds = (moment - real()).total_seconds()
    _clock_is(
        patch,
        lambda: real() + timedelta(seconds=seconds),
        sqlite=f"'now', '{seconds:+.3f} seconds'",
        postgresql=f"{{now}} + INTERVAL '{seconds:.3f} seconds'",
    )


def clock_stopped(patch: pytest.MonkeyPatch, moment: datetime) -> None:
    """It is ``moment`` until the test ends."""
    text = f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S}"
    _clock_is(patch, lambda: moment, sqlite=f"'{text}'", postgresql=f"TIMESTAMPTZ '{text}+00'")


def _clock_is(patch: pytest.MonkeyPatch, now: Callable[[], datetime], *, sqlite: str, postgresql: str) -> None:
    """``{now}`` stands for the database's own clock."""

    def as_sqlite(self: Now, compiler: object, connection: object, **context: object) -> object:
        template = f"STRFTIME('%%%%Y-%%%%m-%%%%d %%%%H:%%%%M:%%%%f', {sqlite})"
        return self.as_sql(compiler, connection, template=template, **context)

    def as_postgresql(self: Now, compiler: object, connection: object, **context: object) -> object:
        template = f"({postgresql.format(now='STATEMENT_TIMESTAMP()')})"
        return self.as_sql(compiler, connection, template=template, **context)

    patch.setattr(timezone, "now", now)
    patch.setattr(Now, "as_sqlite", as_sqlite)
    patch.setattr(Now, "as_postgresql", as_postgresql)
    patch.setitem(database._clock, "sqlite", f"SELECT strftime('%Y-%m-%dT%H:%M:%f+00:00', {sqlite})")
    patch.setitem(database._clock, "postgresql", f"SELECT {postgresql.format(now='CURRENT_TIMESTAMP')}")
