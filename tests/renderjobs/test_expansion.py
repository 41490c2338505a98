"""One recipe per image: what images of a job share, and what each has of its own."""

from __future__ import annotations

import pytest

from gpuworker.contract import Img2Img, Inpaint, InputPicture
from renderjobs.expansion import recipe_of
from tests.factories import a_request
from tests.sdapi.test_infotext import a_recipe

PICTURE = InputPicture(sha256="0" * 64, width=64, height=64)


@pytest.mark.parametrize(
    ("changes", "index", "expected"),
    [
        ({}, 1, None),
        ({}, 2, 1000),
        ({}, 5, 1001),
        ({"subseed_strength": 0.5}, 5, 1005),
        ({"seeds": [7, 3, 9, 4, 5, 6]}, 4, 7),
    ],
)
def test_a_mask_is_filled_with_the_noise_of_the_first_pass(changes, index, expected):
    shared = a_recipe(img2img=Img2Img(picture=PICTURE, inpaint=Inpaint(mask=PICTURE, fill=2)))
    request = a_request(seed=1000, batch_size=2, n_iter=3, **changes)
    made = recipe_of(shared, request, index=index, seed=1000 + index, subseed=0)
    assert (made.fill_seed, made.seed) == (expected, 1000 + index)


def test_other_fills_need_no_seed_of_their_own():
    shared = a_recipe(img2img=Img2Img(picture=PICTURE, inpaint=Inpaint(mask=PICTURE, fill=3)))
    assert recipe_of(shared, a_request(n_iter=3), index=2, seed=1002, subseed=0).fill_seed is None
