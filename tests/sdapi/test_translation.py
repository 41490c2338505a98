"""Fields and options of the sdapi door as they become the canonical request."""

from __future__ import annotations

from typing import Any

import pytest

from assets.models import PromptStyle
from renderjobs.compat.sdapi.profile import default_options
from renderjobs.compat.sdapi.styling import styles_apply
from renderjobs.compat.sdapi.translate import to_request
from renderjobs.compat.sdapi.wire import OURS, TXT2IMG, parsed
from tests.factories import a_caller, a_platform

HIRES = {"prompt": "cat", "enable_hr": True, "hr_upscaler": "Latent", "denoising_strength": 0.6}


def canonical(**body: Any) -> dict[str, Any]:
    made = to_request(parsed(body, {**TXT2IMG, **OURS}), options=default_options())
    made.build()
    return made.canonical


@pytest.mark.parametrize("option", ["enable_batch_seeds", "upcast_attn", "lora_functional"])
def test_options_that_leave_the_picture_as_it_is_are_taken(option):
    given = not default_options()[option]
    assert canonical(prompt="cat", override_settings={option: given}) == canonical(prompt="cat")


def test_a_network_of_an_option_stands_behind_the_hires_prompt_too():
    option = {"sd_hypernetwork": "anime"}
    assert canonical(**HIRES, override_settings=option)["hires"]["prompt"] == ""
    made = canonical(**HIRES, hr_prompt="dog", override_settings=option)
    assert (made["prompt"], made["hires"]["prompt"]) == ("cat<hypernet:anime:1.0>", "dog<hypernet:anime:1.0>")
    named = canonical(**HIRES, hr_prompt="dog <hypernet:anime:0.3>", override_settings=option)
    assert named["hires"]["prompt"] == "dog <hypernet:anime:0.3>"


def test_the_multiplier_of_networks_that_options_add_is_an_option():
    option = {"sd_lora": "ink", "extra_networks_default_multiplier": 0.5}
    assert canonical(prompt="cat", override_settings=option)["prompt"] == "cat<lora:ink:0.5>"


@pytest.mark.parametrize(
    ("asked", "first"), [((72, 96), (448, 640)), ((1024, 1024), (512, 512)), ((1920, 1080), (704, 384))]
)
def test_the_old_hires_fix_takes_width_and_height_for_the_finished_pictures(asked, first):
    option = {"use_old_hires_fix_width_height": True}
    size = {"width": asked[0], "height": asked[1]}
    made = canonical(**HIRES, **size, hr_scale=1.75, override_settings=option)
    assert (made["width"], made["height"]) == first
    assert (made["hires"]["resize_x"], made["hires"]["resize_y"]) == asked
    assert canonical(prompt="cat", **size, override_settings=option)["width"] == asked[0]


@pytest.mark.django_db
def test_styles_are_put_into_hires_prompts_of_their_own():
    a_platform()
    PromptStyle.objects.create(name="dusk", prompt="{prompt} at dusk", negative_prompt="dark, worst")
    made = canonical(**HIRES, hr_negative_prompt="tree")
    styles_apply(a_caller(), ["dusk"], made)
    assert (made["prompt"], made["negative_prompt"]) == ("cat at dusk", "dark, worst")
    assert (made["hires"]["prompt"], made["hires"]["negative_prompt"]) == ("", "tree, dark, worst")
