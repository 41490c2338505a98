"""From GPU time to money. Pure arithmetic on ``Decimal``; no database."""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal

SIX_PLACES = Decimal("0.000001")


def amount_for(*, gpu_us: int, per_gpu_second: Decimal) -> Decimal:
    """The price of ``gpu_us`` microseconds, rounded half up to six places."""
    return (Decimal(gpu_us) * per_gpu_second / 1_000_000).quantize(SIX_PLACES, rounding=ROUND_HALF_UP)
