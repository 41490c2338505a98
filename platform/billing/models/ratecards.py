"""Dated price lists. A card is in force from ``valid_from`` until the next one's; a new card never changes old charges.

A card without ``published_at`` is a draft. Once it is published, model and database refuse every change of it and of its prices.
"""

from __future__ import annotations

from typing import Any

from django.db import models

from common.errors import ConflictError
from fleet.lanes import Lane
from fleet.models import Pool


class Placement(models.TextChoices):
    """Where the report shows the cost of work that no team is charged for."""

    POOL = "pool"
    """The pool's overhead."""
    CAUSER = "causer"
    """Beside the team that caused it."""
    PROPORTIONAL = "proportional"
    """Spread over the teams by what they spent."""


class RateCard(models.Model):
    name = models.CharField(max_length=64, unique=True)
    currency = models.CharField(max_length=3, default="USD")
    valid_from = models.DateTimeField(unique=True)
    placement = models.CharField(
        max_length=16,
        choices=Placement,
        default=Placement.POOL,
        db_default=Placement.POOL,
        help_text="Where failed attempts, checkpoint loads and idle time are shown. They are never on a team's bill.",
    )
    published_at = models.DateTimeField(null=True, blank=True, editable=False, help_text="Empty for a draft.")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-valid_from"]

    def __str__(self) -> str:
        return self.name

    def save(self, *args: Any, **kwargs: Any) -> None:
        self._refuse_if_published()
        super().save(*args, **kwargs)

    def delete(self, *args: Any, **kwargs: Any) -> tuple[int, dict[str, int]]:
        self._refuse_if_published()
        return super().delete(*args, **kwargs)

    def _refuse_if_published(self) -> None:
        if self.pk and RateCard.objects.filter(pk=self.pk, published_at__isnull=False).exists():
            raise ConflictError(f"Rate card {self.name} is published; a card with a later date changes prices.")


class RatePrice(models.Model):
    """A price on one card. The row with pool and lane goes before the one with a pool, that before the one with a lane."""

    card = models.ForeignKey(RateCard, on_delete=models.CASCADE, related_name="prices")
    pool = models.ForeignKey(Pool, null=True, blank=True, on_delete=models.PROTECT, related_name="+")
    lane = models.SmallIntegerField(null=True, blank=True, choices=Lane)
    per_gpu_second = models.DecimalField(max_digits=18, decimal_places=6)
    per_megapixel_step = models.DecimalField(
        max_digits=18,
        decimal_places=6,
        null=True,
        blank=True,
        help_text="If it is given, images are charged by pixels and steps; what nobody is charged for, by the second.",
    )

    per_instance_hour = models.DecimalField(
        max_digits=18,
        decimal_places=6,
        null=True,
        blank=True,
        help_text="Of an instance that is deployed for an EAS service, whether it renders or not. Without it deployed "
        "instances are not billed, and their pictures are charged like all others.",
    )

    class Meta:
        ordering = ["card", "pk"]
        constraints = [
            models.UniqueConstraint(fields=["card", "pool", "lane"], name="one_price_per_pool_and_lane"),
            models.UniqueConstraint(fields=["card", "pool"], condition=models.Q(lane=None), name="one_price_per_pool"),
            models.UniqueConstraint(fields=["card", "lane"], condition=models.Q(pool=None), name="one_price_per_lane"),
            models.UniqueConstraint(
                fields=["card"], condition=models.Q(pool=None, lane=None), name="one_price_for_the_rest"
            ),
            models.CheckConstraint(condition=models.Q(per_gpu_second__gte=0), name="a_price_is_not_negative"),
            models.CheckConstraint(
                condition=models.Q(per_megapixel_step=None) | models.Q(per_megapixel_step__gte=0),
                name="a_step_price_is_not_negative",
            ),
            models.CheckConstraint(
                condition=models.Q(per_instance_hour=None) | models.Q(per_instance_hour__gte=0, lane=None),
                name="instances_have_no_lane",
                violation_error_message="The price of an instance is zero or more, and stands where no lane is named.",
            ),
        ]

    def __str__(self) -> str:
        where = f"{self.pool or 'any pool'}, {self.get_lane_display() if self.lane is not None else 'any lane'}"
        price = f"{self.per_gpu_second} {self.card.currency} per GPU-second"
        if self.per_megapixel_step is not None:
            price = f"{self.per_megapixel_step} {self.card.currency} per megapixel-step"
        if self.per_instance_hour is not None:
            price += f", {self.per_instance_hour} per instance and hour"
        return f"{price} in {where}"

    def save(self, *args: Any, **kwargs: Any) -> None:
        self.card._refuse_if_published()
        super().save(*args, **kwargs)

    def delete(self, *args: Any, **kwargs: Any) -> tuple[int, dict[str, int]]:
        self.card._refuse_if_published()
        return super().delete(*args, **kwargs)
