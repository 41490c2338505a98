"""The one task: there is work. The broker's message only wakes; what to render stands in the database."""

from __future__ import annotations

from celery import shared_task

from renderjobs.dispatch import RENDER_TASK


@shared_task(name=RENDER_TASK, acks_late=True)
def render_next() -> None:
    """Claim micro-batches, render and deliver them until nothing waits.

    Safe to run twice: an image is charged once. A failed image is an outcome, so its neighbours still arrive.
    """
    from gpuworker.lifecycle import work_loop  # the process's loop exists only after the child has started

    work_loop().wake()
