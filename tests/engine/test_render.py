"""The renderer as its callers see it: specs in, outcomes out."""

from __future__ import annotations

import time
from itertools import pairwise

import numpy as np
import pytest
import torch

from gpuworker.contract import Failed, Hires, Refiner, Rendered, RenderSpec, Stopped, Weights, WeightsFile
from gpuworker.contract.samplers import SAMPLERS, SCHEDULES
from gpuworker.engine import DiffusersRenderer, InvalidSpecError, OutOfMemoryError
from gpuworker.engine import drawing as drawing_module
from gpuworker.engine.images.vae import decode
from gpuworker.engine.models.loader import load_checkpoint
from tests.engine.conftest import OTHER, RANDOM
from tests.engine.ldm import write_checkpoint


def pixels(outcome):
    assert isinstance(outcome, Rendered), outcome
    picture = outcome.picture
    return np.frombuffer(picture.pixels, np.uint8).reshape(picture.height, picture.width, 3).astype(int)


def distance(one, other):
    return np.abs(pixels(one) - pixels(other)).max()


def test_every_recipe_gets_one_outcome_in_its_order(render, recipe_of):
    outcomes = render(recipe_of(seed=1), recipe_of(seed=2), recipe_of(seed=3))
    assert [outcome.position for outcome in outcomes] == [0, 1, 2]
    assert distance(outcomes[0], outcomes[1]) > 2


def test_same_recipe_gives_same_bytes(render, recipe_of):
    assert render(recipe_of())[0].picture == render(recipe_of())[0].picture


def test_picture_is_as_large_as_asked_rounded_down_to_eight(render, recipe_of):
    outcome = render(recipe_of(width=79, height=65))[0]
    picture = outcome.picture
    assert (picture.width, picture.height, len(picture.pixels)) == (72, 64, 72 * 64 * 3)


@pytest.mark.parametrize("sampler", ["Euler a", "DPM++ SDE", "DDIM"])
def test_x1_image_in_a_batch_is_the_image_alone(render, recipe_of, sampler):
    mixed = [
        recipe_of(sampler=sampler, seed=3, prompt="a blue house", cfg_scale=4.0),
        recipe_of(sampler=sampler, seed=4, prompt="a [cat:dog:0.5] AND snow:0.5", cfg_scale=1.0),
        recipe_of(sampler=sampler, seed=5, prompt="a, " * 60, negative_prompt="", subseed=9, subseed_strength=0.4),
    ]
    together = render(*mixed)
    assert max(distance(outcome, render(recipe)[0]) for outcome, recipe in zip(together, mixed, strict=True)) <= 2


def test_sampler_that_chooses_its_steps_by_error_runs_images_apart(render, recipe_of):
    recipes = [recipe_of(sampler="DPM adaptive", seed=seed, cfg_scale=1.0) for seed in (3, 4)]
    together = render(*recipes)
    assert [outcome.picture for outcome in together] == [render(recipe)[0].picture for recipe in recipes]


@pytest.mark.parametrize("sampler", [info.name for info in SAMPLERS])
def test_sampler_renders(render, recipe_of, sampler):
    assert isinstance(render(recipe_of(sampler=sampler, steps=3))[0], Rendered)


@pytest.mark.parametrize("schedule", [info.label for info in SCHEDULES])
def test_schedule_renders(render, recipe_of, schedule):
    assert isinstance(render(recipe_of(sampler="DPM++ 2M", schedule=schedule))[0], Rendered)


def test_cfg_scale_one_needs_no_negative_prompt(render, recipe_of):
    plain, other = (render(recipe_of(cfg_scale=1.0, negative_prompt=text))[0] for text in ("", "something else"))
    assert plain.picture == other.picture


def test_steps_are_reported_once_each(render, recipe_of):
    reports: list[tuple[int, int]] = []
    render(recipe_of(sampler="Heun", steps=3), on_step=lambda done, total: reports.append((done, total)))
    assert reports == [(1, 3), (2, 3), (3, 3)]


def test_stop_flag_ends_the_pass_within_a_step(render, recipe_of):
    reports: list[int] = []
    outcomes = render(
        recipe_of(steps=9),
        recipe_of(steps=9, seed=8),
        on_step=lambda done, total: reports.append(done),
        should_stop=lambda: len(reports) == 2,
    )
    assert reports == [1, 2]
    assert all(isinstance(outcome, Stopped) and outcome.gpu_us > 0 for outcome in outcomes)


def test_stop_flag_spares_the_images_not_yet_decoded(renderer, checkpoint, recipe_of):
    outcomes = []
    spec = RenderSpec((recipe_of(), recipe_of(seed=8)), checkpoint)
    for outcome in renderer.render(spec, on_step=lambda *_: None, should_stop=lambda: len(outcomes) == 1):
        outcomes.append(outcome)
    assert [type(outcome) for outcome in outcomes] == [Rendered, Stopped]


def test_time_shares_sum_to_the_pass(render, recipe_of):
    """They are no less than from the first step to the last, and no more than the whole call."""
    at: list[int] = [time.perf_counter_ns()]
    recipes = [recipe_of(seed=seed, steps=4) for seed in range(3)]
    outcomes = render(*recipes, on_step=lambda *_: at.append(time.perf_counter_ns()))
    begun, first, *_, last, ended = [*at, time.perf_counter_ns()]
    assert (last - first) / 1000 - len(outcomes) < sum(outcome.gpu_us for outcome in outcomes) <= (ended - begun) / 1000


@pytest.mark.parametrize(
    ("field", "value"),
    [("sampler", "bogus"), ("steps", 0), ("width", 7), ("clip_skip", 9), ("emphasis", "Loud")],
)
def test_impossible_spec_is_refused_with_its_field(render, recipe_of, field, value):
    with pytest.raises(InvalidSpecError) as refusal:
        render(recipe_of(**{field: value}))
    assert (refusal.value.field, refusal.value.value, refusal.value.retryable) == (field, value, False)


@pytest.mark.parametrize("broken", [float("nan"), 0.0], ids=["not a number", "one colour"])
def test_i12_picture_that_is_none_fails_with_its_reason(tmp_path, recipe_of, broken):
    renderer = DiffusersRenderer()
    recipe = recipe_of()
    files = {recipe.checkpoint.sha256: WeightsFile(write_checkpoint(tmp_path / "weights.safetensors"))}
    spec = RenderSpec((recipe,), files)
    checkpoint = renderer.shelf.checkpoint(spec, recipe.checkpoint).checkpoint
    checkpoint.vae.decoder.conv_out.weight.fill_(broken)
    (outcome,) = renderer.render(spec, on_step=lambda *_: None, should_stop=lambda: False)
    assert isinstance(outcome, Failed)
    assert (outcome.code, outcome.retryable) == ("flat_picture", False)


def test_i12_decoder_that_overflows_in_half_precision_is_tried_in_full(checkpoint):
    file = checkpoint[RANDOM.sha256]
    loaded = load_checkpoint(file.path, device=torch.device("cpu"), dtype=torch.float16)
    loaded.vae.decoder.conv_in.weight.mul_(30000)
    latents = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(1)) * 10
    with torch.inference_mode():
        picture = decode(loaded.vae, latents, latent_scale=0.18215)
    assert (tuple(picture.shape), loaded.vae.dtype) == ((64, 64, 3), torch.float16)


def test_full_memory_is_reported_before_anything_is_yielded(renderer, checkpoint, recipe_of, monkeypatch):
    def exhausted(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(drawing_module, "denoise", exhausted)
    spec = RenderSpec((recipe_of(), recipe_of(seed=8)), checkpoint)
    with pytest.raises(OutOfMemoryError) as refusal:
        next(renderer.render(spec, on_step=lambda *_: None, should_stop=lambda: False))
    assert refusal.value.retryable
    assert refusal.value.__context__ is None, "the frames that hold the tensors must be gone"


def test_tiled_picture_meets_itself_and_leaves_no_trace(render, recipe_of):
    before = render(recipe_of())[0].picture
    tiled = render(recipe_of(tiling=True))[0].picture
    assert tiled != before
    assert render(recipe_of())[0].picture == before


def test_checkpoints_go_when_their_bytes_no_longer_fit(tmp_path, recipe_of):
    all_weights = [Weights(name=digit, sha256=digit * 64) for digit in "12"]
    paths = [write_checkpoint(tmp_path / f"{name}.safetensors", seed=int(name)) for name in "12"]
    files = {weights.sha256: WeightsFile(path) for weights, path in zip(all_weights, paths, strict=True)}
    renderer = DiffusersRenderer(max_host_bytes=paths[0].stat().st_size * 3 // 2)
    for weights in all_weights:
        spec = RenderSpec((recipe_of(checkpoint=weights, steps=1),), files)
        list(renderer.render(spec, on_step=lambda *_: None, should_stop=lambda: False))
    assert [renderer.shelf.holds(spec, weights) for weights in all_weights] == [False, True]


def test_x1_image_in_exact_mode_has_the_same_bytes_alone_and_in_any_company(render, recipe_of):
    mixed = [
        recipe_of(exact=True, seed=3, prompt="a blue house", cfg_scale=4.0),
        recipe_of(exact=True, seed=4, prompt="a [cat:dog:0.5] AND snow:0.5"),
        recipe_of(exact=True, seed=5, prompt="a, " * 60, negative_prompt=""),
        recipe_of(exact=True, seed=6),
    ]
    together = {outcome.position: outcome.picture for outcome in render(*mixed)}
    turned = {3 - outcome.position: outcome.picture for outcome in render(*reversed(mixed))}
    alone = {index: render(recipe)[0].picture for index, recipe in enumerate(mixed)}
    assert together == turned == alone


def test_previews_come_while_the_pass_runs(renderer, checkpoint, recipe_of):
    previews = []
    spec = RenderSpec((recipe_of(steps=20), recipe_of(steps=20, seed=8)), checkpoint)
    list(
        renderer.render(
            spec, on_step=lambda *_: None, should_stop=lambda: False, on_preview=lambda make: previews.append(make())
        )
    )
    assert [[(picture.width, picture.height) for picture in shown] for shown in previews] == [[(64, 64)] * 2] * 2


def test_hires_pass_enlarges_latents_or_pictures(render, recipe_of):
    for upscaler in ("Latent (nearest)", "Lanczos"):
        recipe = recipe_of(hires=Hires(scale=1.5, upscaler=upscaler, steps=3), denoising_strength=0.5)
        picture = render(recipe)[0].picture
        assert (picture.width, picture.height) == (96, 96)


def test_hires_pass_to_a_size_of_other_shape_is_cropped(render, recipe_of):
    recipe = recipe_of(hires=Hires(resize_x=96, resize_y=64), denoising_strength=0.5)
    picture = render(recipe)[0].picture
    assert (picture.width, picture.height) == (96, 64)


def test_refiner_takes_over_where_it_is_told_to(render, recipe_of):
    plain, late, early, at_once = (
        render(recipe_of(steps=6, refiner=refiner))[0]
        for refiner in (None, *(Refiner(checkpoint=OTHER, switch_at=at) for at in (0.7, 0.2, None)))
    )
    assert min(distance(one, other) for one, other in pairwise((plain, late, early, at_once))) > 2
    assert distance(at_once, render(recipe_of(steps=6, checkpoint=OTHER))[0]) == 0
