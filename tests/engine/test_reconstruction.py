"""Noise found for a picture leads back to it; recorded pictures of A1111's alternative img2img test."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image

from gpuworker.contract import Img2Img, InputPicture, Recipe, Reconstruction, RenderSpec, Stopped
from gpuworker.engine.sampling.reconstruction import mixed, noise_behind
from gpuworker.engine.sampling.schedules import NoiseLevels
from tests.engine.recordings import array_of, case_of, distance, needs_recordings

CASES = ("img2img_alternative", "img2img_alternative_sigma_random")


def recorded(name: str) -> Any:
    """The recorded request as one recipe: what the script makes of its arguments."""
    case = case_of("scripts", name)
    (recipe,) = case.spec.recipes
    _, sampler, prompts, prompt, negative_prompt, steps_too, steps, strength, cfg, randomness, sigma = case.body[
        "script_args"
    ]
    assert isinstance(recipe, Recipe) and recipe.img2img
    reconstruction = Reconstruction(
        prompt=prompt,
        negative_prompt=negative_prompt,
        cfg_scale=cfg,
        steps=steps,
        randomness=randomness,
        sigma_adjustment=sigma,
    )
    changes: dict[str, Any] = {"sampler": "Euler"} if sampler else {}
    changes |= {"steps": steps} if steps_too else {}
    changes |= {"denoising_strength": 1.0} if strength else {}
    changed = replace(recipe, img2img=replace(recipe.img2img, reconstruction=reconstruction), **changes)
    return replace(case, spec=replace(case.spec, recipes=(changed,)))


@needs_recordings
@pytest.mark.parametrize("name", CASES)
def test_recorded_pictures_are_drawn_from_the_noise_that_leads_to_them(name, renderer):
    case = recorded(name)
    outcomes = list(renderer.render(case.spec, on_step=lambda *_: None, should_stop=lambda: False))
    assert distance(case, outcomes) <= 1, outcomes


@pytest.fixture
def spec(tmp_path, checkpoint, recipe_of) -> RenderSpec:
    """Two pictures, each to be found again."""
    reconstruction = asked(prompt="a car", steps=3, cfg_scale=2.0)
    recipes, inputs = [], {}
    for number, colour in enumerate(("red", "blue")):
        path = tmp_path / colour
        Image.new("RGB", (64, 64), colour).save(path, "PNG")
        picture = InputPicture(sha256=colour, width=64, height=64)
        inputs[colour] = path
        given = Img2Img(picture=picture, reconstruction=reconstruction)
        recipes.append(recipe_of(sampler="Euler", seed=number, denoising_strength=1.0, img2img=given))
    return RenderSpec(tuple(recipes), checkpoint, inputs)


def rendered(renderer, spec: RenderSpec, on_step: Any = lambda *_: None, should_stop: Any = lambda: False) -> list[Any]:
    return list(renderer.render(spec, on_step=on_step, should_stop=should_stop))


def test_pictures_of_one_pass_are_those_drawn_alone_and_progress_never_falls_back(renderer, spec):
    seen: list[tuple[int, int]] = []
    together = rendered(renderer, spec, on_step=lambda *step: seen.append(step))
    alone = [outcome for one in spec.recipes for outcome in rendered(renderer, replace(spec, recipes=(one,)))]
    for own, other in zip(together, alone, strict=True):
        assert abs(array_of(own.picture) - array_of(other.picture)).max() <= 1
    assert seen == [(done, 5) for done in (0, 1, 2, 4, 5)]


def test_the_search_for_noise_is_stopped_like_any_pass(renderer, spec):
    calls: list[int] = []
    outcomes = rendered(renderer, spec, on_step=lambda done, _: calls.append(done), should_stop=lambda: len(calls) > 1)
    assert all(isinstance(outcome, Stopped) for outcome in outcomes) and calls == [0, 1]


LEVELS = NoiseLevels(torch.linspace(0.9991, 0.0047, 1000))


def asked(**changes: Any) -> Reconstruction:
    return replace(Reconstruction(prompt="", negative_prompt="", cfg_scale=1.0, steps=200), **changes)


def of_a_bell(latents: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """What is expected of pictures whose values are distributed as noise is."""
    return latents / (1 + sigma**2)


def walked(picture: torch.Tensor, **changes: Any) -> torch.Tensor:
    found = noise_behind(picture, asked(**changes), LEVELS, of_a_bell, lambda done: True)
    assert found is not None
    return found


@pytest.mark.parametrize("sigma_adjustment", [False, True])
def test_steps_down_from_the_noise_end_at_the_picture(sigma_adjustment):
    picture = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    sigmas = LEVELS.automatic(200)
    latents = walked(picture, sigma_adjustment=sigma_adjustment) * sigmas[0]
    for sigma, following in zip(sigmas, sigmas[1:], strict=False):
        latents = latents + (latents - of_a_bell(latents, sigma)) / sigma * (following - sigma)
    assert torch.nn.functional.cosine_similarity(latents.flatten(), picture.flatten(), dim=0) > 0.999


def test_noise_of_each_picture_has_unit_variance_whatever_lies_beside_it():
    dark, bright = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3)).unbind()
    together = walked(torch.stack([dark, bright * 9]))
    assert together.std(dim=(1, 2, 3)).tolist() == pytest.approx([1, 1], abs=1e-5)
    assert torch.equal(together[:1], walked(dark[None]))


def test_the_walk_stops_before_the_step_that_is_refused():
    begun: list[int] = []

    def begin_step(done: int) -> bool:
        begun.append(done)
        return done < 3

    assert noise_behind(torch.ones(1, 4, 8, 8), asked(steps=9), LEVELS, of_a_bell, begin_step) is None
    assert begun == [0, 1, 2, 3]


def test_randomness_mixes_two_noises_to_one_of_unit_variance():
    found, random = torch.randn(2, 100_000, generator=torch.Generator().manual_seed(2)).unbind()
    assert torch.equal(mixed(found, random, 0.0), found) and torch.equal(mixed(found, random, 1.0), random)
    assert mixed(found, random, 0.3).std().item() == pytest.approx(1, abs=0.01)
