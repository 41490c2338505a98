"""Dated price lists. A card is in force from ``valid_from`` until the next one's; a new card never changes old charges."""

from __future__ import annotations

from django.db import models

from fleet.models import Pool


class RateCard(models.Model):
    name = models.CharField(max_length=64, unique=True)
    currency = models.CharField(max_length=3, default="USD")
    valid_from = models.DateTimeField(unique=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-valid_from"]

    def __str__(self) -> str:
        return self.name


class RatePrice(models.Model):
    """One pool's price on one card. The row without a pool is the card's price for every other pool."""

    card = models.ForeignKey(RateCard, on_delete=models.CASCADE, related_name="prices")
    pool = models.ForeignKey(Pool, null=True, blank=True, on_delete=models.PROTECT, related_name="+")
    per_gpu_second = models.DecimalField(max_digits=18, decimal_places=6)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["card", "pool"], name="one_price_per_card_and_pool"),
            models.UniqueConstraint(fields=["card"], condition=models.Q(pool=None), name="one_price_for_other_pools"),
        ]

    def __str__(self) -> str:
        return f"{self.per_gpu_second} {self.card.currency}/s on {self.pool or 'any pool'}"
