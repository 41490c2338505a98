"""Which price is in force."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from django.db import models, transaction
from django.db.models.functions import Now

from billing.models import RateCard, RatePrice
from common.errors import UnavailableError
from fleet.models import Pool


@dataclass(frozen=True, slots=True)
class Price:
    """What one GPU-second costs in one pool at one moment."""

    rate_card_id: int
    rate_card_name: str
    currency: str
    per_gpu_second: Decimal


def price_in_force(*, pool_id: int) -> Price:
    """The pool's price on the newest card that is valid by the database's clock.

    Raises:
        UnavailableError: No card is in force or it has no price for the pool.
    """
    row = (
        RatePrice.objects.filter(models.Q(pool_id=pool_id) | models.Q(pool=None), card__valid_from__lte=Now())
        .select_related("card")
        .order_by("-card__valid_from", models.F("pool_id").asc(nulls_last=True))
        .first()
    )
    if row is None:
        raise UnavailableError("No rate card with a price for this pool is in force.")
    return Price(row.card_id, row.card.name, row.card.currency, row.per_gpu_second)


@transaction.atomic
def rate_card_publish(
    *, name: str, currency: str, valid_from: datetime, per_gpu_second: Decimal, pool: Pool | None = None
) -> RateCard:
    card = RateCard.objects.create(name=name, currency=currency, valid_from=valid_from)
    RatePrice.objects.create(card=card, pool=pool, per_gpu_second=per_gpu_second)
    return card
