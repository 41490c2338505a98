"""Masks as pictures: how they are read, blurred, cut to a region, and what is put under them."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from gpuworker.contract import Inpaint, InputPicture, SoftInpainting
from gpuworker.engine.images.masks import Region, doubled, filled, holed, latent_mask, mask_from, masked_region
from gpuworker.engine.images.soft_inpainting import weighted_window

SHARP = {"mask": InputPicture(sha256="0", width=1, height=1), "blur_x": 0, "blur_y": 0}


def grey(rows):
    return Image.fromarray(np.array(rows, dtype=np.uint8))


def box(width, height, region):
    mask = Image.new("L", (width, height))
    mask.paste(255, tuple(region))
    return mask


def test_alpha_is_the_mask_and_cut_at_its_half():
    picture = Image.new("RGBA", (3, 1))
    picture.putalpha(grey([[128, 129, 255]]))
    assert list(mask_from(picture, Inpaint(**SHARP)).tobytes()) == [0, 255, 255]


@pytest.mark.parametrize(
    "changes", [{"round": False}, {"soft": SoftInpainting()}], ids=["not rounded", "soft inpainting"]
)
def test_alpha_keeps_its_values_where_masks_are_soft(changes):
    picture = Image.new("RGBA", (3, 1))
    picture.putalpha(grey([[128, 129, 255]]))
    assert list(mask_from(picture, Inpaint(**SHARP, **changes)).tobytes()) == [128, 129, 255]


def test_opaque_picture_is_read_as_grey_and_keeps_its_greys():
    picture = Image.new("RGBA", (2, 1), (90, 90, 90, 255))
    assert list(mask_from(picture, Inpaint(**SHARP)).tobytes()) == [90, 90]


def test_inverted_mask_is_white_where_it_was_black():
    assert list(mask_from(grey([[0, 255, 100]]), Inpaint(**SHARP, invert=True)).tobytes()) == [255, 0, 155]


def test_blur_acts_along_its_own_axis_only():
    mask = box(9, 9, (4, 4, 5, 5))
    across = np.asarray(mask_from(mask, Inpaint(**{**SHARP, "blur_x": 1})))
    assert across[4].tolist() == across[4][::-1].tolist() and across[4, 3] > 0
    assert across[3].max() == 0
    assert (np.asarray(mask_from(mask, Inpaint(**{**SHARP, "blur_y": 1}))) == across.T).all()


def test_blur_of_a_single_pixel_does_not_fail():
    assert mask_from(Image.new("L", (1, 1), 255), Inpaint(**{**SHARP, "blur_x": 64, "blur_y": 64})).size == (1, 1)


# --- regions ---------------------------------------------------------------------------------------------------------


def test_black_mask_has_no_region():
    assert masked_region(Image.new("L", (64, 64)), 32, 64, 64) is None


@pytest.mark.parametrize(
    ("region", "padding", "size", "expected"),
    [
        ((40, 40, 60, 60), 0, (64, 64), (40, 40, 60, 60)),
        ((40, 40, 60, 60), 8, (64, 64), (32, 32, 68, 68)),
        ((0, 40, 20, 60), 8, (64, 64), (0, 32, 36, 68)),
        ((40, 40, 60, 60), 0, (128, 64), (30, 40, 70, 60)),
        ((40, 40, 60, 60), 0, (64, 128), (40, 30, 60, 70)),
        ((0, 40, 20, 60), 0, (128, 64), (0, 40, 40, 60)),
        ((80, 40, 100, 60), 0, (128, 64), (60, 40, 100, 60)),
        ((0, 0, 100, 10), 0, (64, 64), (0, 0, 100, 80)),
        ((40, 40, 60, 60), -12, (64, 64), (40, 40, 60, 60)),
    ],
    ids=["fits", "padding", "clipped", "wide", "tall", "at the left", "at the right", "too wide", "nothing left"],
)
def test_region_is_padded_and_brought_into_proportion(region, padding, size, expected):
    assert masked_region(box(100, 80, region), padding, *size) == Region(*expected)


# --- what is done with one -------------------------------------------------------------------------------------------


def test_overlay_mask_is_twice_as_white():
    assert list(doubled(grey([[0, 60, 127, 128, 255]])).tobytes()) == [0, 120, 254, 255, 255]


def test_latent_mask_is_rounded_unless_it_is_soft():
    mask = Image.new("L", (32, 16), 127)
    assert latent_mask(mask, 4, 2, rounds=True).tolist() == [[0.0] * 4] * 2
    assert latent_mask(mask, 4, 2, rounds=False) == pytest.approx(127 / 255)


def test_fill_takes_colours_from_around_and_leaves_the_rest():
    picture = Image.new("RGB", (32, 32), (200, 40, 90))
    picture.paste((0, 0, 0), (8, 8, 24, 24))
    mask = box(32, 32, (8, 8, 24, 24))
    made = np.asarray(filled(picture, mask)).astype(int)
    assert np.abs(made - (200, 40, 90)).max() <= 8
    assert (made[np.asarray(mask) == 0] == (200, 40, 90)).all()


def test_hole_is_transparent_where_the_mask_is_white():
    made = holed(Image.new("RGB", (3, 1), (255, 255, 255)), grey([[0, 128, 255]]))
    assert made.getchannel("a").tobytes() == bytes([255, 127, 0])


def test_window_between_percentiles_is_a_median_or_a_maximum():
    picture = np.zeros((9, 9), dtype=np.float32)
    picture[4, 4] = 1.0
    assert weighted_window(picture, 0.25, 0.75).max() == 0.0
    largest = weighted_window(picture, 0.9, 1.0)
    assert largest[4, 4] == pytest.approx(1.0) and largest[4, 5] > 0.5 and largest[0, 0] == 0.0
