"""The few threads on which this door speaks to the database. Each keeps its connection: a call takes less time than opening one."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any

from asgiref.sync import sync_to_async
from django.db import connection, connections

THREADS = 8
kept: contextvars.ContextVar[bool] = contextvars.ContextVar("kept", default=False)
"""Whether the server that calls is ours to give threads to; under another one a request is served on its own."""


async def in_database(act: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Run a synchronous part on one of the threads. How many are there bounds how many calls are in the database at once."""
    if not kept.get():
        return await sync_to_async(act)(*args, **kwargs)
    return await asyncio.get_running_loop().run_in_executor(_threads(), partial(_run, act, *args, **kwargs))


@cache
def _threads() -> ThreadPoolExecutor:
    """SQLite has one writer at a time, and those who wait for it wait longer than a line of calls does."""
    return ThreadPoolExecutor(1 if connection.vendor == "sqlite" else THREADS, thread_name_prefix="eas")


def _run(act: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    try:
        return act(*args, **kwargs)
    finally:
        # PostgreSQL's go back to their pool, which others need too.
        if connection.vendor != "sqlite" or connection.in_atomic_block or connection.errors_occurred:
            connections.close_all()
