"""What pictures and jobs say they cost once charges of theirs were taken back. Registered with ``billing``, which knows neither."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from decimal import Decimal

from django.db.models import F

from billing.corrections import Costs, costs_register
from renderjobs.models import RenderImage, RenderJob
from renderjobs.transitions import jobs_locked

IMAGES_PER_STATEMENT = 500


def costs_lower(images: Mapping[int, Decimal], jobs: Mapping[uuid.UUID, Decimal]) -> None:
    """A charge is taken back whole, so the picture costs nothing then. The caller has the jobs locked."""
    keys = list(images)
    for start in range(0, len(keys), IMAGES_PER_STATEMENT):
        RenderImage.objects.filter(pk__in=keys[start : start + IMAGES_PER_STATEMENT]).update(cost_amount=0)
    for job_id, amount in jobs.items():
        RenderJob.objects.filter(pk=job_id).update(cost_amount=F("cost_amount") - amount)


def register() -> None:
    costs_register(Costs(lock=jobs_locked, lower=costs_lower))
