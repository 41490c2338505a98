"""Infotexts letter by letter. The expected lines were written by A1111 1.10.1."""

from __future__ import annotations

import pytest

from gpuworker.contract import EmbeddingUse, Hires, Recipe, Refiner, Settings, Weights
from renderjobs.compat.sdapi.infotext import extra_parameters_of, infotext_of

HEAD = "a cat\nSteps: 12, Sampler: {}, Schedule type: {}, CFG scale: 7.0, Seed: 7, Size: 128x128, "
MODEL = "Model hash: 4c5b88dd8e, Model: tiny-sd15, "


def a_recipe(**changes: object) -> Recipe:
    values = {"prompt": "a cat", "negative_prompt": "", "seed": 7, "subseed": 42, "sampler": "Euler a", "steps": 12}
    size = {"width": 128, "height": 128, "cfg_scale": 7.0}
    checkpoint = {"checkpoint": Weights(name="tiny-sd15", sha256="4c5b88dd8e" + "0" * 54)}
    return Recipe(**{**values, **size, **checkpoint, **changes})


LINES = {
    "plain": ({}, "Euler a", "Automatic", ""),
    "own schedule": ({"sampler": "DPM++ 2M"}, "DPM++ 2M", "Karras", ""),
    "schedule asked for": ({"sampler": "Euler", "schedule": "SGM Uniform"}, "Euler", "SGM Uniform", ""),
    "beta": (
        {"sampler": "Euler", "schedule": "Beta"}, "Euler", "Beta", "Beta schedule alpha: 0.6, Beta schedule beta: 0.6, ",
    ),
    "a schedule without effect": ({"sampler": "DDIM", "schedule": "Karras"}, "DDIM", "Karras", ""),
    "variation": ({"subseed_strength": 0.3}, "Euler a", "Automatic", "Variation seed: 42, Variation seed strength: 0.3, "),
    "seed resize": (
        {"seed_resize_from_w": 64, "seed_resize_from_h": 96}, "Euler a", "Automatic", "Seed resize from: 64x96, ",
    ),
    "one side of seed resize": ({"seed_resize_from_w": 64}, "Euler a", "Automatic", ""),
    "clip skip": ({"clip_skip": 2}, "Euler a", "Automatic", "Clip skip: 2, "),
    "tiling": ({"tiling": True}, "Euler a", "Automatic", "Tiling: True, "),
    "ensd": ({"ensd": 31337}, "Euler a", "Automatic", "ENSD: 31337, "),
    "ensd without noise": ({"ensd": 31337, "eta": 0.0}, "Euler a", "Automatic", "Eta: 0.0, "),
    "ensd of another sampler": ({"ensd": 31337, "sampler": "Heun"}, "Heun", "Automatic", ""),
    "eta": ({"eta": 0.5}, "Euler a", "Automatic", "Eta: 0.5, "),
    "eta of a sampler without one": ({"eta": 0.5, "sampler": "Euler"}, "Euler", "Automatic", ""),
    "eta ddim": ({"eta": 0.8, "sampler": "DDIM"}, "DDIM", "Automatic", "Eta DDIM: 0.8, "),
    "neutral eta ddim": ({"eta": 0.0, "sampler": "DDIM"}, "DDIM", "Automatic", ""),
    "emphasis without brackets": ({"emphasis": "None"}, "Euler a", "Automatic", ""),
}  # fmt: skip


@pytest.mark.parametrize("name", LINES)
def test_the_line_is_a1111s(name):
    changes, sampler, schedule, rest = LINES[name]
    assert infotext_of(a_recipe(**changes)) == HEAD.format(sampler, schedule) + MODEL + rest + "Version: v1.10.1"


def test_prompts_stand_on_lines_of_their_own_and_an_empty_one_leaves_none():
    assert infotext_of(a_recipe(negative_prompt="bad\nugly")).startswith(
        "a cat\nNegative prompt: bad\nugly\nSteps: 12, "
    )
    assert infotext_of(a_recipe(prompt="")).startswith("Steps: 12, ")


@pytest.mark.parametrize("prompts", [{"prompt": "a (cat)"}, {"negative_prompt": "[bad]"}])
def test_emphasis_is_named_when_either_prompt_has_brackets(prompts):
    assert ", Emphasis: No norm, Version" in infotext_of(a_recipe(emphasis="No norm", **prompts))
    assert "Emphasis" not in infotext_of(a_recipe(emphasis="Original", **prompts))


def test_a_value_with_a_separator_is_quoted():
    assert 'Model: "a, b: ü", Version' in infotext_of(a_recipe(checkpoint=Weights(name="a, b: ü", sha256="0" * 64)))
    assert 'Model: a "b", Version' in infotext_of(a_recipe(checkpoint=Weights(name='a "b"', sha256="0" * 64)))


def test_extra_parameters_are_numbers_and_leave_out_the_automatic_schedule():
    assert extra_parameters_of(a_recipe()) == {}
    recipe = a_recipe(sampler="DPM++ 2S a", eta=0.3, emphasis="Ignore", prompt="(x)")
    assert extra_parameters_of(recipe) == {"Emphasis": "Ignore", "Schedule type": "Karras", "Eta": 0.3}


EMBEDDINGS = tuple(
    EmbeddingUse(weights=Weights(name=name, sha256="0" * 64), listed_hash=listed)
    for name, listed in (("zzemb", "d60ac6382afc"), ("zzneg", "28636680995d"))
)


@pytest.mark.parametrize(
    ("prompt", "negative_prompt", "expected"),
    [
        ("zzemb", "zzneg", "zzemb: d60ac6382afc, zzneg: 28636680995d"),
        ("zzneg, zzemb", "", "zzneg: 28636680995d, zzemb: d60ac6382afc"),
        ("zzneg AND a tree :1.2", "zzemb zzneg", "zzneg: 28636680995d, zzemb: d60ac6382afc, zzneg: 28636680995d"),
        ("(zzemb:1.3), [a|b]", "zzemb, [zzemb:cat:.5]", "zzemb: d60ac6382afc, zzemb: d60ac6382afc"),
        ("zzemb AND zzneg :0.5", "", "zzneg: 28636680995d, zzemb: d60ac6382afc"),
        ("a tree AND zzemb :0.5 AND zzemb", "", "zzemb: d60ac6382afc"),
    ],
)
def test_embeddings_are_listed_for_each_text_that_is_encoded(prompt, negative_prompt, expected):
    recipe = a_recipe(prompt=prompt, negative_prompt=negative_prompt, embeddings=EMBEDDINGS)
    assert extra_parameters_of(recipe)["TI hashes"] == expected


def test_text_encoders_list_their_embeddings_one_after_the_other():
    both = tuple(EmbeddingUse(weights=use.weights, listed_hash=use.listed_hash, encoders=2) for use in EMBEDDINGS)
    recipe = a_recipe(prompt="zzemb zzneg", embeddings=both)
    assert extra_parameters_of(recipe)["TI hashes"] == (
        "zzemb: d60ac6382afc, zzneg: 28636680995d, zzemb: d60ac6382afc, zzneg: 28636680995d"
    )


def test_embeddings_of_the_hires_prompts_alone_come_too_late_to_be_listed():
    hires = Hires(scale=2.0, upscaler="Latent", prompt="zzemb")
    assert "TI hashes" not in extra_parameters_of(a_recipe(hires=hires, embeddings=EMBEDDINGS))


SECOND_PASSES = {
    "a schedule's numbers and extra noise": (
        {"eta": 0.5}, {"schedule": "Karras"}, {"img2img_extra_noise": 0.1, "rho": 5.0, "sigma_min": 0.1},
        "Eta: 0.5, Schedule min sigma: 0.1, Schedule rho: 5, Extra noise: 0.1",
    ),
    "a sampler's eta": (
        {"sampler": "Euler", "eta": 0.5}, {"sampler": "Euler a"}, {"s_churn": 5.0}, "Sigma churn: 5, Eta: 0.5",
    ),
    "another eta": ({"eta": 0.5}, {"sampler": "DDIM"}, {}, "Eta: 0.5, Eta DDIM: 0.5"),
    "churn": ({"sampler": "DPM++ 2M"}, {"sampler": "Euler"}, {"s_churn": 5.0}, "Hires upscaler: Latent, Sigma churn: 5"),
}  # fmt: skip


@pytest.mark.parametrize("name", SECOND_PASSES)
def test_the_second_pass_reports_after_the_first_one(name):
    changes, own, settings, end = SECOND_PASSES[name]
    hires = Hires(scale=1.5, upscaler="Latent", **own)
    text = infotext_of(a_recipe(hires=hires, settings=Settings(**settings), **changes))
    assert text.endswith(f"{end}, Version: v1.10.1")


@pytest.mark.parametrize(
    ("steps", "switch_at", "named"), [(4, 0.75, True), (4, 0.8, False), (9, 1.0, False), (1, 0.5, False)]
)
def test_a_refiner_is_named_where_it_takes_over(steps, switch_at, named):
    refiner = Refiner(checkpoint=Weights(name="fine", sha256="1" * 64), switch_at=switch_at)
    found = extra_parameters_of(a_recipe(refiner=refiner, steps=steps))
    assert ("Refiner" in found, "Refiner switch at" in found) == (named, named)
    hires = Hires(scale=1.5, upscaler="Latent", steps=20)
    assert ("Refiner" in extra_parameters_of(a_recipe(refiner=refiner, steps=steps, hires=hires))) == (switch_at < 1)


def test_beta_of_the_hires_pass_names_its_two_numbers():
    hires = Hires(scale=1.75, upscaler="Latent", schedule="Beta")
    assert "Beta schedule alpha: 0.6, Beta schedule beta: 0.6, Version" in infotext_of(a_recipe(hires=hires))
