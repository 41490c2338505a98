"""What workers have learned of how many images go into one pass (H5): the rows, and what follows from them.

Which pictures are of one shape, and when a pass is measured, is the worker's business (``gpuworker.microbatches``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from django.db import transaction
from django.db.models import BigIntegerField, Case, F, Q, QuerySet, Value, When
from django.db.models.functions import Greatest, Now

from common.database import now_plus
from fleet.models import PassProfile, Worker

WORTH = 0.05
"""A larger pass has to save this share of an image's time, for it takes longer to stop."""
PASSES_TO_DOUBT = 2
"""The first pass of a size may have paid for more than itself, so that one alone does not speak against it."""
TOO_LARGE_DAYS = 7
"""So long is remembered what did not fit: something else may have been in the memory, too."""
SHAPES_SHOWN = 40


@dataclass(frozen=True, slots=True)
class Measured:
    """Of one shape at one number of images."""

    image_call_ns: int | None = None
    """The least time of one image at one call of the denoiser; None where no pass was measured."""
    peak_bytes: int = 0
    """What a pass took beside the weights."""
    passes: int = 0
    too_large: bool = False

    def with_pass(self, image_call_ns: int, peak_bytes: int) -> Measured:
        least = image_call_ns if self.image_call_ns is None else min(image_call_ns, self.image_call_ns)
        return Measured(least, max(peak_bytes, self.peak_bytes), self.passes + 1)


Profile = Mapping[int, Measured]
"""Number of images → what is known of such a pass."""


def sizes_up_to(most: int) -> list[int]:
    """What is tried and chosen from: 1, 2, 4 … and the most."""
    return sorted({most, *(2**power for power in range(most.bit_length()) if 2**power <= most)})


def largest_fitting(profile: Profile, most: int) -> int:
    """After a pass did not fit, at most half of it is tried."""
    return min([most, *(max(1, images // 2) for images, found in profile.items() if found.too_large)])


def best_size(profile: Profile, most: int) -> int | None:
    """The smallest within 5 % of the best time per image; None where nothing is known."""
    times = {
        size: found.image_call_ns for size, found in profile.items() if size <= most and found.image_call_ns is not None
    }
    if not times:
        return None
    return min(size for size, time_ns in times.items() if time_ns <= min(times.values()) * (1 + WORTH))


def next_size(profile: Profile, most: int, *, underway: int = 0, room_bytes: int | None = None) -> int:
    """How many images the next pass may have: twice as many while that pays and fits, else as many as are best.

    Args:
        most: Upper bound.
        underway: Images of a pass of this shape that runs now; what it will show is taken to be good.
        room_bytes: What a pass may take; None where that cannot be told.
    """
    most = largest_fitting(profile, most)
    tried, least_ns = 0, None
    for size in sizes_up_to(most):
        found = profile.get(size, Measured())
        time_ns, passes = found.image_call_ns, found.passes + (size == underway)
        if time_ns is None:
            if size > underway:
                return size if tried == 0 or _fits(profile, size, room_bytes) else tried
        elif least_ns is None or time_ns < least_ns * (1 - WORTH):
            least_ns = time_ns
        else:
            if passes < PASSES_TO_DOUBT:
                return size
            break
        tried = size
    else:
        if profile.get(tried, Measured()).image_call_ns is None:
            return tried
    return best_size(profile, most) or tried


def _fits(profile: Profile, size: int, room_bytes: int | None) -> bool:
    """A pass takes at most in proportion to its images what the largest known one took."""
    known = max((images for images, found in profile.items() if found.peak_bytes and images < size), default=0)
    if room_bytes is None or not known:
        return True
    return profile[known].peak_bytes * size / known <= room_bytes


# --- rows ------------------------------------------------------------------------------------------------------------


def profile_read(*, device: str, build: str, shape: str) -> dict[int, Measured]:
    """What all workers of this device and build have learned of a shape."""
    recent = Q(too_large_at__gt=now_plus(-TOO_LARGE_DAYS * 86_400))
    rows = PassProfile.objects.filter(device=device, build=build, shape=shape).annotate(recent=_flag(recent))
    return {
        row.images: Measured(row.image_call_ns, row.peak_bytes, row.passes, bool(row.recent))
        for row in rows
        if row.recent or row.image_call_ns is not None
    }


@transaction.atomic
def pass_measured(*, device: str, build: str, shape: str, images: int, image_call_ns: int, peak_bytes: int) -> None:
    """A pass of this size was measured. Told twice it counts as two passes, which changes nothing but when it is doubted."""
    row = _row(device, build, shape, images)
    slower = When(image_call_ns__lt=image_call_ns, then=F("image_call_ns"))
    row.update(
        image_call_ns=Case(slower, default=Value(image_call_ns), output_field=BigIntegerField()),
        peak_bytes=Greatest(F("peak_bytes"), Value(peak_bytes)),
        passes=F("passes") + 1,
        too_large_at=None,
        seen_at=Now(),
    )


@transaction.atomic
def pass_too_large(*, device: str, build: str, shape: str, images: int) -> None:
    """A pass of this size did not fit into the memory (I11)."""
    _row(device, build, shape, images).update(too_large_at=Now(), seen_at=Now())


def _row(device: str, build: str, shape: str, images: int) -> QuerySet[PassProfile]:
    key = {"device": device, "build": build, "shape": shape, "images": images}
    PassProfile.objects.get_or_create(**key, defaults={"seen_at": Now()})
    return PassProfile.objects.filter(**key)


def _flag(condition: Q) -> Case:
    return Case(When(condition, then=Value(1)), default=Value(0))


def learned_by(worker: Worker, most: int) -> list[dict[str, Any]]:
    """For the worker's page: each shape with its sizes, the newest first, and the size that is used of late."""
    rows = PassProfile.objects.filter(device=worker.device).order_by("-seen_at")[: SHAPES_SHOWN * 8]
    shapes: dict[tuple[str, str], dict[int, PassProfile]] = {}
    for row in rows:
        shapes.setdefault((row.shape, row.build), {})[row.images] = row
    return [
        {
            "shape": shape,
            "build": build,
            "sizes": [sizes[images] for images in sorted(sizes)],
            "best": best_size({images: Measured(row.image_call_ns) for images, row in sizes.items()}, most),
        }
        for (shape, build), sizes in list(shapes.items())[:SHAPES_SHOWN]
    ]
