"""What workers are at, for their pages. Whoever knows of jobs and models (``renderjobs``) registers it, for this app must not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.db.models import QuerySet

from fleet.models import Worker

Annotated = Callable[[QuerySet[Worker]], QuerySet[Any]]
"""Workers → the same with ``checkpoint_name`` of what is loaded and ``images``, the number of those it holds."""
Details = Callable[[Worker], dict[str, Any]]
"""A worker → ``current`` (what it renders), ``errors`` (what failed of late) and ``weights`` (what it keeps loaded)."""
_registered: list[tuple[Annotated, Details]] = []


def work_register(annotated: Annotated, details: Details) -> None:
    _registered.append((annotated, details))


def with_work(workers: QuerySet[Worker]) -> QuerySet[Any]:
    for annotated, _ in _registered:
        workers = annotated(workers)
    return workers


def work_of(worker: Worker) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for _, details in _registered:
        found |= details(worker)
    return found
