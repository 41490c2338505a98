"""Which price is in force, and how a card comes into force."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal

from django.db import models, transaction
from django.db.models.functions import Now

from billing.models import Placement, RateCard, RatePrice
from billing.models.money import MOST_PRICE, MOST_PRICE_OF_INSTANCES
from billing.pricing import Price
from common.errors import FieldError, InvalidRequestError, UnavailableError
from fleet.models import Pool

MOST_PRICES = {
    "per_gpu_second": MOST_PRICE,
    "per_megapixel_step": MOST_PRICE,
    "per_instance_hour": MOST_PRICE_OF_INSTANCES,
}


def price_in_force(*, pool_id: int, lane: int | None = None, at: datetime | None = None) -> Price:
    """The price for pool and lane on the newest published card that was valid ``at`` that moment; None is the database's now.

    Raises:
        UnavailableError: No card is in force or it has no price for the pool.
    """
    row = (
        RatePrice.objects.filter(
            models.Q(pool_id=pool_id) | models.Q(pool=None),
            models.Q(lane=lane) | models.Q(lane=None),
            card__valid_from__lte=at or Now(),
            card__published_at__isnull=False,
        )
        .select_related("card")
        .order_by(
            "-card__valid_from", models.F("pool_id").asc(nulls_last=True), models.F("lane").asc(nulls_last=True), "pk"
        )
        .first()
    )
    if row is None:
        raise UnavailableError("No rate card with a price for this pool is in force.")
    return price_of(row)


def price_of(row: RatePrice) -> Price:
    """``row`` comes with its card."""
    return Price(
        price_id=row.pk,
        rate_card_id=row.card_id,
        rate_card_name=row.card.name,
        currency=row.card.currency,
        per_gpu_second=row.per_gpu_second,
        per_megapixel_step=row.per_megapixel_step,
        per_instance_hour=row.per_instance_hour,
        placement=row.card.placement,
    )


class InstancePrices:
    """The prices of deployed instances on every card there was, in one statement."""

    def __init__(self) -> None:
        rows = RatePrice.objects.filter(lane=None, card__published_at__isnull=False).select_related("card")
        self._rows = list(rows.order_by("-card__valid_from", models.F("pool_id").asc(nulls_last=True), "pk"))

    def at(self, moment: datetime, pool_id: int | None) -> Price | None:
        """Of the card that ``price_in_force`` takes, the more exact price first; None where that card has none."""
        for row in self._rows:
            if row.card.valid_from <= moment and row.pool_id in (pool_id, None):
                return self.on_card(row.card_id, pool_id)
        return None

    def on_card(self, card_id: int, pool_id: int | None) -> Price | None:
        for row in self._rows:
            if row.card_id == card_id and row.pool_id in (pool_id, None) and row.per_instance_hour is not None:
                return price_of(row)
        return None

    def changes(self, start: datetime, end: datetime) -> set[datetime]:
        """The moments between both at which a card came into force."""
        return {row.card.valid_from for row in self._rows if start < row.card.valid_from < end}


def draft_publish(*, card: RateCard) -> None:
    """Bring a draft into force from its date on. Publishing twice changes nothing.

    Raises:
        InvalidRequestError: It has no price, or one beyond what amounts can be counted with.
    """
    if not card.prices.exists():
        raise InvalidRequestError([FieldError("prices", f"Rate card {card.name} has no price; one or more is needed.")])
    for price in card.prices.all():
        for name, most in MOST_PRICES.items():
            if (amount := getattr(price, name)) is not None and not 0 <= amount <= most:
                raise InvalidRequestError([FieldError(name, f"{name} is {amount:f}; accepted is 0 to {most:f}.")])
    RateCard.objects.filter(pk=card.pk, published_at=None).update(published_at=Now())
    card.refresh_from_db(fields=["published_at"])


@transaction.atomic
def rate_card_publish(
    *,
    name: str,
    currency: str,
    valid_from: datetime,
    per_gpu_second: Decimal,
    per_megapixel_step: Decimal | None = None,
    per_instance_hour: Decimal | None = None,
    pool: Pool | None = None,
    lane: int | None = None,
    placement: str = Placement.POOL,
) -> RateCard:
    """A published card with one price."""
    card = RateCard.objects.create(name=name, currency=currency, valid_from=valid_from, placement=placement)
    RatePrice.objects.create(
        card=card,
        pool=pool,
        lane=lane,
        per_gpu_second=per_gpu_second,
        per_megapixel_step=per_megapixel_step,
        per_instance_hour=per_instance_hour,
    )
    draft_publish(card=card)
    return card
