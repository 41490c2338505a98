"""What follows from measured passes (H5), and the rows they are kept in."""

from __future__ import annotations

import pytest
from django.db import IntegrityError, transaction

from common.database import now_plus
from fleet.models import PassProfile
from fleet.profiles import (
    TOO_LARGE_DAYS,
    Measured,
    best_size,
    largest_fitting,
    next_size,
    pass_measured,
    pass_too_large,
    profile_read,
    sizes_up_to,
)

KEY = {"device": "NVIDIA H200", "build": "float16", "shape": "sd1 below 10 GB 512x512"}


def known(passes: int = 1, **times: int) -> dict[int, Measured]:
    """``_4=100``: a pass of four took 100 ns for each image and call."""
    return {int(images[1:]): Measured(time_ns, 10 * int(images[1:]), passes) for images, time_ns in times.items()}


FULL_AT_4 = {4: Measured(too_large=True)}


@pytest.mark.parametrize(
    ("profile", "most", "expected"),
    [
        ({}, 16, 1),
        (known(_1=100), 16, 2),
        (known(_1=100, _2=60), 16, 4),
        (known(_1=100, _2=60, _4=40), 6, 6),
        (known(_1=100, _2=60, _4=40), 4, 4),
        (known(_1=100, _2=60, _4=59), 16, 4),
        (known(_1=100, _2=60, _4=59, passes=2), 16, 2),
        (known(_1=100, _2=98, passes=2), 16, 1),
        (known(_1=100, _2=60, _4=40, _8=39, _16=39, passes=2), 16, 4),
        (known(_1=100, _2=60, _4=40, _8=41, passes=2), 16, 4),
        (known(_1=100, _2=60) | FULL_AT_4, 16, 2),
        (FULL_AT_4, 16, 1),
        ({1: Measured(too_large=True)}, 16, 1),
    ],
    ids=[
        "an unknown shape starts at one", "twice as many", "while it pays", "up to the limit", "not beyond it",
        "one pass without gain is repeated", "two end the growth", "nothing is gained by company",
        "the smallest within 5 % of the best", "larger ones that are slower", "what did not fit is not tried",
        "it alone is known", "one image alone is always tried",
    ],
)  # fmt: skip
def test_h5_the_next_pass_has_as_many_images_as_follows_from_what_was_measured(profile, most, expected):
    assert next_size(profile, most) == expected


@pytest.mark.parametrize(
    ("profile", "underway", "expected"),
    [({}, 1, 2), (known(_1=100), 2, 4), (known(_1=100, _2=60, _4=40), 8, 8), (known(_1=100, _2=99), 2, 1)],
    ids=["grows", "grows on", "keeps what is being measured at the limit", "is repeated once"],
)
def test_h5_a_pass_that_runs_is_not_waited_for(profile, underway, expected):
    """The next one is claimed before this one has ended; it must not repeat its size only because nothing is known yet."""
    assert next_size(profile, 8, underway=underway) == expected


def test_h5_no_pass_is_tried_that_would_not_fit_by_what_smaller_ones_took():
    profile = known(_1=100, _2=60)  # a pass of 2 took 20 bytes
    assert [next_size(profile, 16, room_bytes=room) for room in (39, 40, None)] == [2, 4, 4]


def test_h5_the_best_is_the_smallest_within_five_percent():
    assert [best_size(known(_1=105, _2=100), most) for most in (2, 1)] == [1, 1]
    assert best_size(known(_1=106, _2=100), 2) == 2 and best_size({}, 2) is None


def test_i11_half_of_what_did_not_fit_is_the_most_that_is_tried():
    assert largest_fitting(known(_1=5, _8=5) | {6: Measured(too_large=True)}, 8) == 3
    assert sizes_up_to(6) == [1, 2, 4, 6]


@pytest.mark.django_db
def test_h5_the_least_time_and_the_most_memory_are_kept_of_all_workers():
    for time_ns, peak in ((120, 5), (100, 7), (110, 6)):
        pass_measured(**KEY, images=4, image_call_ns=time_ns, peak_bytes=peak)
    assert profile_read(**KEY) == {4: Measured(100, 7, 3)}
    assert profile_read(**{**KEY, "device": "another"}) == profile_read(**{**KEY, "build": "bfloat16"}) == {}


@pytest.mark.django_db
def test_i11_what_did_not_fit_is_remembered_for_some_days_and_forgotten_when_it_fits():
    pass_too_large(**KEY, images=8)
    pass_too_large(**KEY, images=8)
    assert profile_read(**KEY) == {8: Measured(too_large=True)}
    PassProfile.objects.update(too_large_at=now_plus(-TOO_LARGE_DAYS * 86_400 - 1))
    assert profile_read(**KEY) == {}
    pass_too_large(**KEY, images=8)
    pass_measured(**KEY, images=8, image_call_ns=100, peak_bytes=0)
    assert profile_read(**KEY) == {8: Measured(100, 0, 1)}


@pytest.mark.django_db
def test_h5_a_time_without_a_pass_is_refused_by_the_database():
    pass_measured(**KEY, images=1, image_call_ns=100, peak_bytes=0)
    with pytest.raises(IntegrityError), transaction.atomic():
        PassProfile.objects.update(passes=0)
