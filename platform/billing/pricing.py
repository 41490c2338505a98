"""From work to money. Pure arithmetic on ``Decimal``; no database."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal

SIX_PLACES = Decimal("0.000001")
PIXEL_STEPS_PER_UNIT = 1_000_000
"""A megapixel-step is one denoiser step over a million pixels of the picture."""
MICROSECONDS_PER_HOUR = 3_600_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """One line of a published rate card."""

    price_id: int
    rate_card_id: int
    rate_card_name: str
    currency: str
    per_gpu_second: Decimal
    per_megapixel_step: Decimal | None = None
    per_instance_hour: Decimal | None = None
    placement: str = "pool"

    def of_image(self, *, gpu_us: int, pixel_steps: int) -> Decimal:
        """What a delivered image costs before its job's hold limits it."""
        if self.per_megapixel_step is None:
            return self.of_time(gpu_us)
        return rounded(Decimal(pixel_steps) * self.per_megapixel_step / PIXEL_STEPS_PER_UNIT)

    def of_time(self, gpu_us: int) -> Decimal:
        return amount_for(gpu_us=gpu_us, per_gpu_second=self.per_gpu_second)

    def of_instances(self, instance_us: int) -> Decimal:
        """Of deployed instances times time, microseconds; zero where they have no price."""
        return rounded(Decimal(instance_us) * (self.per_instance_hour or 0) / MICROSECONDS_PER_HOUR)


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What was agreed when a job was accepted: its price, and the most that one of its images may cost."""

    price: Price
    pixel_steps: int
    """Of one image."""
    most_per_image: Decimal | None = None
    """None for a job without a hold."""
    shows_cost: bool = True
    """Whether its files say what they cost."""
    deployed: bool = False
    """Whether the bill of its service's instances pays for its images."""

    def charge(self, gpu_us: int) -> tuple[Decimal, Decimal]:
        """What the team pays for a delivered image, and what is beyond the hold and nobody's bill (S24)."""
        if self.deployed:
            return Decimal(0), Decimal(0)
        cost = self.price.of_image(gpu_us=gpu_us, pixel_steps=self.pixel_steps)
        paid = cost if self.most_per_image is None else min(cost, self.most_per_image)
        return paid, cost - paid

    def covered(self, gpu_us: int) -> Decimal:
        """What a delivered image would have cost, had instances not been deployed for it."""
        return self.price.of_image(gpu_us=gpu_us, pixel_steps=self.pixel_steps) if self.deployed else Decimal(0)


def amount_for(*, gpu_us: int, per_gpu_second: Decimal) -> Decimal:
    """The price of ``gpu_us`` microseconds, rounded half up to six places."""
    return rounded(Decimal(gpu_us) * per_gpu_second / 1_000_000)


def rounded(amount: Decimal) -> Decimal:
    return amount.quantize(SIX_PLACES, rounding=ROUND_HALF_UP)
