"""`manage.py bootstrap`: what every installation needs before its first job: a pool and a rate card. Safe to repeat."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from django.core.management.base import BaseCommand
from django.db import transaction

from billing.models import RateCard
from billing.ratecards import rate_card_publish
from fleet.models import Pool

FIRST_CARD = {
    "name": "v1",
    "currency": "USD",
    "valid_from": datetime(2020, 1, 1, tzinfo=UTC),
    "per_gpu_second": Decimal("0.001"),
}


class Command(BaseCommand):
    help = __doc__

    @transaction.atomic
    def handle(self, *args: Any, **options: Any) -> None:
        if not Pool.objects.exists():
            Pool.objects.create(name="default")
        if not RateCard.objects.exists():
            rate_card_publish(**FIRST_CARD)  # type: ignore[arg-type]
