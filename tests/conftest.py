"""Wiring only: services on loopback, the append-only triggers around a flush. Rows come from ``factories``."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.conf import settings
from django.db import connection
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

from tests.prepared import migrated_database
from tests.services import RedisServer, redis_server

# The same examples each time, however long the machine takes over one: a run tells what a change did, not what luck brought.
hypothesis_settings.register_profile(
    "tests", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
hypothesis_settings.load_profile("tests")


def pytest_xdist_auto_num_workers() -> int:
    """Two more than there are cores: many tests wait for processes that they started."""
    return min(8, (os.cpu_count() or 1) + 2)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first, or one core would work it off at the end while the others have nothing left to do."""
    items.sort(key=lambda item: "test_the_tests_of_rows_and_money_pass_on_postgresql" not in item.nodeid)


@pytest.fixture(scope="session")
def django_db_keepdb() -> bool:
    """On SQLite Django finds a database in which nothing is left to migrate."""
    if connection.vendor != "sqlite":
        return False
    shutil.copy(migrated_database(), settings.DATABASES["default"]["TEST"]["NAME"])
    return True


@pytest.fixture(scope="session", autouse=True)
def flush_may_empty_the_ledger() -> Iterator[None]:
    """After a transactional test Django empties every table; SQLite's DELETE would meet the triggers.

    PostgreSQL flushes with TRUNCATE, which row triggers do not see.
    """
    if connection.vendor != "sqlite":
        yield
        return
    operations = type(connection.ops)
    flush = operations.sql_flush

    def sql_flush(self: object, *args: object, **kwargs: object) -> list[str]:
        statements = flush(self, *args, **kwargs)
        with connection.cursor() as cursor:
            cursor.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'")
            triggers = cursor.fetchall()
        removal = [f"DROP TRIGGER {name}" for name, _ in triggers]
        return [*removal, *statements, *(sql for _, sql in triggers)] if statements else statements

    operations.sql_flush = sql_flush
    yield
    operations.sql_flush = flush


@pytest.fixture(scope="session")
def redis_process() -> Iterator[RedisServer]:
    """A real Redis where the settings expect it: on the unix socket in DATA_DIR."""
    with redis_server(Path(settings.DATA_DIR) / "redis.sock") as server:
        yield server


@pytest.fixture
def broker(redis_process: RedisServer) -> RedisServer:
    """The real broker, empty."""
    redis_process.client.flushall()
    return redis_process


@pytest.fixture(autouse=True)
def storage_of_its_own(tmp_path: Path, settings: object) -> None:
    """Pictures and assets of a test lie in its own folder, so that 'nothing is left behind' can be checked."""
    settings.STORAGES = {  # type: ignore[attr-defined]
        **settings.STORAGES,  # type: ignore[attr-defined]
        **{
            alias: {
                "BACKEND": "django.core.files.storage.FileSystemStorage",
                "OPTIONS": {"location": str(tmp_path / folder)},
            }
            for alias, folder in (("default", "pictures"), ("assets", "assets"))
        },
    }
