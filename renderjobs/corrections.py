"""What pictures and jobs say they cost once charges of theirs were taken back. Registered with ``billing``, which knows neither."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from decimal import Decimal

from billing.corrections import Costs, costs_register
from renderjobs.models import RenderImage, RenderJob
from renderjobs.transitions import ROWS_PER_STATEMENT, batched, jobs_locked


def costs_lower(images: Sequence[int], amounts: Mapping[uuid.UUID, Decimal]) -> None:
    """A charge is taken back whole, so the picture costs nothing then. The caller has the jobs locked."""
    for some in batched(images, ROWS_PER_STATEMENT):
        RenderImage.objects.filter(pk__in=some).update(cost_amount=0)
    jobs = list(RenderJob.objects.filter(pk__in=amounts).only("cost_amount"))
    for job in jobs:
        job.cost_amount -= amounts[job.pk]
    RenderJob.objects.bulk_update(jobs, ["cost_amount"])


def register() -> None:
    costs_register(Costs(lock=jobs_locked, lower=costs_lower))
