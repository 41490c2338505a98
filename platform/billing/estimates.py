"""How much a job will probably cost: from what images of its kind took before, and the price in force.

Learned from the newest delivered images of the same pool and checkpoint. Of the same size and steps they tell the time of an
image directly; of others they tell the time of a megapixel-step, which is taken twice because a pass has parts that do not
grow with it. Where nothing was measured, a long time is assumed: money that is held and not used comes back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from django.conf import settings

from billing.models import UsageRecord
from billing.pricing import PIXEL_STEPS_PER_UNIT, Price

SAMPLES, FEWEST_SAMPLES = 200, 10
UNSEEN_SHAPE_FACTOR = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Of one job. Half of its images take ``p50_us`` or less, nine of ten ``p90_us`` or less."""

    price: Price
    images: int
    pixel_steps: int
    p50_us: int
    p90_us: int
    measured: bool
    """False where nothing was measured and the times are assumed."""
    deployed: bool = False
    """True where the bill of deployed instances pays for the images."""

    @property
    def likely(self) -> Decimal:
        if self.deployed:
            return Decimal(0)
        return self.images * self.price.of_image(gpu_us=self.p50_us, pixel_steps=self.pixel_steps)

    @property
    def per_image(self) -> Decimal:
        """The most that one image will be charged with."""
        if self.deployed:
            return Decimal(0)
        return self.price.of_image(gpu_us=self.p90_us, pixel_steps=self.pixel_steps)

    @property
    def most(self) -> Decimal:
        """What is held."""
        return self.images * self.per_image


def estimate(
    *, price: Price, pool_id: int, checkpoint_sha256: str, images: int, pixel_steps: int, deployed: bool = False
) -> Estimate:
    """One query; none where the price does not depend on time."""
    times: tuple[int, int] | None = None
    if price.per_megapixel_step is None:
        rows = UsageRecord.objects.filter(pool_id=pool_id, checkpoint_sha256=checkpoint_sha256, charged=True)
        newest = rows.order_by("-pk").values_list("pixel_steps", "gpu_us")[:SAMPLES]
        times = learned(list(newest), pixel_steps)
    p50_us, p90_us = times or assumed(pixel_steps)
    return Estimate(
        price=price,
        images=images,
        pixel_steps=pixel_steps,
        p50_us=p50_us,
        p90_us=p90_us,
        measured=times is not None,
        deployed=deployed,
    )


def learned(samples: Sequence[tuple[int, int]], pixel_steps: int) -> tuple[int, int] | None:
    """(p50, p90) in microseconds from (pixel-steps, microseconds) of images; None when there are too few."""
    same = [gpu_us for size, gpu_us in samples if size == pixel_steps]
    if len(same) >= FEWEST_SAMPLES:
        return percentile(same, 50), percentile(same, 90)
    if len(samples) < FEWEST_SAMPLES:
        return None
    # A small picture has parts that cost as much as those of a large one, so never less than what was seen.
    scaled = [math.ceil(max(gpu_us, gpu_us * pixel_steps / size)) for size, gpu_us in samples if size]
    return (percentile(scaled, 50), UNSEEN_SHAPE_FACTOR * percentile(scaled, 90)) if scaled else None


def assumed(pixel_steps: int) -> tuple[int, int]:
    """Long enough for any picture on any card that was ever measured."""
    seconds = max(
        settings.ASSUMED_SECONDS_PER_IMAGE,
        pixel_steps / PIXEL_STEPS_PER_UNIT * settings.ASSUMED_SECONDS_PER_MEGAPIXEL_STEP,
    )
    return int(seconds * 1e6) // 2, int(seconds * 1e6)


def percentile(values: Sequence[int], percent: int) -> int:
    """The smallest value that ``percent`` of them do not exceed."""
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]
