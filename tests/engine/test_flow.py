"""Stable Diffusion 3 and Flux: both layouts, the pictures of diffusers' own pipelines, and what is refused."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxImg2ImgPipeline, FluxTransformer2DModel, StableDiffusion3Img2ImgPipeline
from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers
from PIL import Image
from safetensors.torch import load_file, save_file

from gpuworker.contract import (
    ControlUnit,
    Failed,
    Hires,
    Img2Img,
    Inpaint,
    InputPicture,
    NetworkUse,
    Recipe,
    Refiner,
    Rendered,
    RenderSpec,
    Stopped,
    WeightsFile,
)
from gpuworker.contract.families import recognise
from gpuworker.contract.flow import FLOW_FAMILIES, refusals
from gpuworker.engine import DiffusersRenderer
from gpuworker.engine.errors import CheckpointError, InvalidSpecError
from gpuworker.engine.flow import FlowDrawing, FlowPrompts, reads_plainly
from gpuworker.engine.models.flow import flux_weights, load_flow
from gpuworker.engine.models.shelf import ModelShelf
from gpuworker.engine.sampling.denoise import Watch
from tests.engine.conftest import OTHER, RANDOM
from tests.engine.flow_models import (
    KINDS,
    family_of,
    flux_original,
    networks,
    pipeline,
    write_in_names_of_diffusers,
    write_original,
)

CPU: dict[str, Any] = {"device": torch.device("cpu"), "dtype": torch.float32}
PROMPTS = ("a red car in the rain", "an old lighthouse, oil on canvas")
SIZE = {"width": 64, "height": 48}
PICTURE = InputPicture(sha256="9" * 64, width=64, height=48)


@pytest.fixture(scope="module", params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def theirs(kind) -> Any:
    return pipeline(kind)


@pytest.fixture(scope="module")
def folder_file(kind, theirs, tmp_path_factory) -> Path:
    return write_in_names_of_diffusers(theirs, tmp_path_factory.mktemp("flow") / "folder.safetensors")


@pytest.fixture(scope="module")
def original_file(kind, theirs, tmp_path_factory) -> Path:
    return write_original(theirs, kind, tmp_path_factory.mktemp("flow") / "original.safetensors")


@pytest.fixture
def ask(recipe_of, kind):
    def build(**changes: Any) -> Recipe:
        negative = "blurry" if family_of(kind) == "sd3" else ""
        plain = {"prompt": PROMPTS[0], "negative_prompt": negative, "sampler": "Euler", "steps": 3, "cfg_scale": 4.0}
        return recipe_of(**{**plain, **SIZE, **changes})

    return build


def shapes_of(path: Path) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in load_file(path).items()}


def drawn(path: Path, *recipes: Recipe, renderer: DiffusersRenderer | None = None, **watch: Any) -> list[Any]:
    """Args: renderer: A new one where none is given: models are kept by a hash that all files here share."""
    spec = RenderSpec(recipes, {RANDOM.sha256: WeightsFile(path)}, {PICTURE.sha256: path.with_name("picture.png")})
    callbacks = {"on_step": lambda done, total: None, "should_stop": lambda: False, **watch}
    return list((renderer or DiffusersRenderer()).render(spec, **callbacks))


def pixels(outcome: Any) -> np.ndarray:
    assert isinstance(outcome, Rendered), outcome
    picture = outcome.picture
    return np.frombuffer(picture.pixels, np.uint8).reshape(picture.height, picture.width, 3).astype(int)


def difference(outcome: Any, expected: np.ndarray) -> int:
    """The largest, in levels of 255; theirs rounds, ours cuts off."""
    return int(np.abs(pixels(outcome) - (expected * 255).astype(int)).max())


# --- files -----------------------------------------------------------------------------------------------------------


def test_both_layouts_are_recognised(kind, folder_file, original_file):
    for path in (folder_file, original_file):
        found = recognise(shapes_of(path))
        assert (found.family, found.missing, found.input_channels) == (family_of(kind), (), 16)


def test_both_layouts_give_the_networks_that_were_saved(theirs, folder_file, original_file):
    for path in (folder_file, original_file):
        model = load_flow(path, **CPU)
        loaded = dict(
            zip(
                networks(theirs),
                (model.transformer, model.vae, *(part.network for part in (*model.clip, model.t5))),
                strict=True,
            )
        )
        for part, network in networks(theirs).items():
            state = loaded[part].state_dict()
            wanted = network.state_dict()
            assert state.keys() == wanted.keys(), part
            assert all(torch.equal(state[name], wanted[name]) for name in wanted), part


def test_flux_tensors_go_where_diffusers_puts_them():
    """In full width, which diffusers' converter takes for granted; one block of each kind."""
    with torch.device("meta"):
        network = FluxTransformer2DModel(num_layers=1, num_single_layers=1, guidance_embeds=True)
    numbers = enumerate(network.state_dict().items())
    tensors = flux_original({name: rows_numbered(tensor.shape, number) for number, (name, tensor) in numbers})
    theirs = convert_flux_transformer_checkpoint_to_diffusers(dict(tensors))
    ours = flux_weights(tensors)
    assert ours.keys() == theirs.keys() == network.state_dict().keys()
    assert all(
        torch.equal(ours[name].flatten(1)[:, :1], theirs[name].flatten(1)[:, :1])
        for name in ours
        if ours[name].dim() > 1
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in ours if ours[name].dim() == 1)


def rows_numbered(shape: torch.Size, number: int) -> torch.Tensor:
    rows = number + torch.arange(shape[0]) / 32768
    return rows.reshape(-1, *[1] * (len(shape) - 1)).expand(shape)


# --- pictures --------------------------------------------------------------------------------------------------------


def theirs_of(made: Any, recipes: list[Recipe], **changes: Any) -> np.ndarray:
    """What diffusers' own pipeline draws of the same recipes."""
    first = recipes[0]
    options: dict[str, Any] = {
        "prompt": [recipe.prompt for recipe in recipes],
        "num_inference_steps": first.steps,
        "guidance_scale": first.cfg_scale,
        "generator": [torch.Generator("cpu").manual_seed(recipe.seed) for recipe in recipes],
        "output_type": "np",
        "width": first.width,
        "height": first.height,
        **changes,
    }
    if hasattr(made, "text_encoder_3"):
        options["negative_prompt"] = [recipe.negative_prompt for recipe in recipes]
        options["max_sequence_length"] = 256
    elif not made.transformer.config.guidance_embeds:
        options["max_sequence_length"] = 256
    return made(**options).images


def latents_of(path: Path, family: str, *recipes: Recipe) -> torch.Tensor:
    spec = RenderSpec(recipes, {RANDOM.sha256: WeightsFile(path)})
    watch = Watch(on_step=lambda done, total: None, should_stop=lambda: False)
    drawing = FlowDrawing(spec, family, ModelShelf(**CPU, max_bytes=2**30), FlowPrompts(), watch)
    drawing.load()
    found = drawing.draw()
    assert found is not None
    return torch.stack([found[position].latents for position in range(len(recipes))])


def test_latents_are_those_of_their_pipeline(kind, theirs, folder_file, ask):
    recipes = [ask(prompt=prompt, seed=seed) for seed, prompt in enumerate((*PROMPTS, PROMPTS[0]))]
    expected = theirs_of(theirs, recipes, output_type="latent")
    if family_of(kind) == "flux":
        expected = theirs._unpack_latents(expected, SIZE["height"], SIZE["width"], 8)
    ours = latents_of(folder_file, family_of(kind), *recipes)
    assert torch.allclose(ours, expected, atol=2e-5)
    other = latents_of(folder_file, family_of(kind), *[replace(recipe, prompt="a tree") for recipe in recipes])
    assert (other - expected).abs().amax() > 1e-3


def test_both_layouts_give_the_same_pictures_as_their_pipeline(theirs, folder_file, original_file, ask):
    recipes = [ask(prompt=prompt, seed=seed) for seed, prompt in enumerate(PROMPTS)]
    expected = theirs_of(theirs, recipes)
    first, second = drawn(folder_file, *recipes), drawn(original_file, *recipes)
    assert [outcome.picture for outcome in first] == [outcome.picture for outcome in second]
    assert max(difference(outcome, picture) for outcome, picture in zip(first, expected, strict=True)) <= 1


def test_every_image_has_its_own_guidance(kind, theirs, folder_file, ask):
    recipes = [ask(cfg_scale=scale) for scale in (1.0, 3.0, 6.0)]
    outcomes = drawn(folder_file, *recipes)
    for recipe, outcome in zip(recipes, outcomes, strict=True):
        assert difference(outcome, theirs_of(theirs, [recipe])[0]) <= 1
    assert len({outcome.picture.pixels for outcome in outcomes}) == (1 if kind == "flux-fast" else 3)


def test_exact_pictures_are_the_same_in_any_company(folder_file, ask):
    renderer = DiffusersRenderer()
    recipes = [ask(exact=True, seed=seed) for seed in range(3)]
    together = [outcome.picture.pixels for outcome in drawn(folder_file, *recipes, renderer=renderer)]
    assert together == [drawn(folder_file, recipe, renderer=renderer)[0].picture.pixels for recipe in recipes]


@pytest.fixture
def picture(folder_file) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    made = Image.fromarray(values)
    made.save(folder_file.with_name("picture.png"))
    return made


class _Likeliest:
    """diffusers draws from the encoder's distribution; the engine takes its middle, as for every family."""

    def __init__(self, vae: Any) -> None:
        self.vae = vae

    def __enter__(self) -> None:
        encode = self.own = self.vae.encode

        def encoded(values: torch.Tensor) -> Any:
            found = encode(values)
            found.latent_dist.sample = lambda generator=None: found.latent_dist.mode()
            return found

        self.vae.encode = encoded

    def __exit__(self, *_: object) -> None:
        self.vae.encode = self.own


@pytest.mark.parametrize("strength", [0.4, 1.0])
def test_img2img_is_that_of_their_pipeline(kind, theirs, folder_file, ask, picture, strength):
    recipe = ask(img2img=Img2Img(picture=PICTURE), denoising_strength=strength, steps=5)
    made = (StableDiffusion3Img2ImgPipeline if family_of(kind) == "sd3" else FluxImg2ImgPipeline).from_pipe(theirs)
    made.set_progress_bar_config(disable=True)
    with _Likeliest(theirs.vae):
        expected = theirs_of(made, [recipe], image=picture, strength=strength)
    (outcome,) = drawn(folder_file, recipe)
    assert difference(outcome, expected[0]) <= 1


def test_variations_and_seed_resize_are_those_of_every_family(folder_file, ask):
    changes = [{}, {"subseed_strength": 0.5, "subseed": 3}, {"seed_resize_from_w": 32, "seed_resize_from_h": 32}]
    renderer = DiffusersRenderer()
    outcomes = [drawn(folder_file, ask(**change), renderer=renderer)[0] for change in changes]
    assert len({pixels(outcome).tobytes() for outcome in outcomes}) == 3


# --- what surrounds a render -----------------------------------------------------------------------------------------


def test_steps_are_counted_over_all_groups_of_a_pass(kind, folder_file, ask):
    seen: list[tuple[int, int]] = []
    drawn(folder_file, ask(cfg_scale=1.0), ask(cfg_scale=5.0), on_step=lambda done, total: seen.append((done, total)))
    total = 6 if family_of(kind) == "sd3" else 3
    assert seen == [(done, total) for done in range(1, total + 1)]


def test_stop_flag_is_honoured_within_one_step(folder_file, ask):
    seen: list[int] = []
    outcomes = drawn(
        folder_file,
        ask(steps=50),
        on_step=lambda done, total: seen.append(done),
        should_stop=lambda: len(seen) >= 2,
    )
    assert ([type(outcome) for outcome in outcomes], seen) == ([Stopped], [1, 2])


def test_previews_show_what_the_pictures_become(folder_file, ask):
    previews: list[Any] = []
    recipes = [ask(steps=10, seed=seed) for seed in range(2)]
    drawn(folder_file, *recipes, on_preview=lambda make: previews.append(make()))
    assert [[(picture.width, picture.height) for picture in made] for made in previews] == [[(64, 48)] * 2]


def test_input_that_is_no_picture_fails_alone(folder_file, ask, picture):
    broken = folder_file.with_name("broken.png")
    broken.write_bytes(b"no picture")
    other = InputPicture(sha256="8" * 64, width=64, height=48)
    recipes = tuple(ask(img2img=Img2Img(picture=one)) for one in (PICTURE, other))
    inputs = {PICTURE.sha256: folder_file.with_name("picture.png"), other.sha256: broken}
    spec = RenderSpec(recipes, {RANDOM.sha256: WeightsFile(folder_file)}, inputs)
    good, bad = DiffusersRenderer().render(spec, on_step=lambda done, total: None, should_stop=lambda: False)
    assert (type(good), type(bad)) == (Rendered, Failed)


@pytest.mark.parametrize(
    ("prompt", "plain"),
    [
        ("a red car, seen from above", True),
        ("", True),
        ("a (red:1.3) car", False),
        ("a car AND a dog", False),
        ("a BREAK b", False),
    ],
)
def test_only_what_the_grammar_of_prompts_would_change_is_warned_of(prompt, plain):
    assert reads_plainly(prompt) == plain


def test_what_has_no_effect_is_said(kind, folder_file, ask):
    (outcome,) = drawn(folder_file, ask(prompt="a (red:1.3) car"))
    assert outcome.warnings[0].startswith(
        f"{FLOW_FAMILIES[family_of(kind)]} reads brackets, AND and BREAK as they stand"
    )
    assert len(outcome.warnings) == (2 if kind == "flux-fast" else 1)


def test_end_of_a_long_prompt_is_said_to_have_no_effect(kind, folder_file, ask):
    most = 512 if kind == "flux" else 256
    fitting, long = (drawn(folder_file, ask(prompt="car " * words, steps=1))[0] for words in (most - 1, most))
    sentence = f"What follows the first {most} tokens of the prompt has no effect."
    assert (sentence in fitting.warnings, sentence in long.warnings) == (False, True)


# --- what is refused -------------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "networks": ({"networks": (NetworkUse(kind="lora", weights=OTHER),)}, "LoRA and hypernetworks are not available"),
    "control": ({"control": (ControlUnit(),)}, "ControlNet is not available"),
    "hires": ({"hires": Hires()}, "Hires fix is not available"),
    "refiner": ({"refiner": Refiner(checkpoint=OTHER)}, "A refiner is not available"),
    "vae": ({"vae": OTHER}, "A separate VAE is not available"),
    "clip_skip": ({"clip_skip": 2}, "CLIP skip is not available"),
    "tiling": ({"tiling": True}, "Tiling is not available"),
    "sampler": ({"sampler": "DPM++ 2M"}, "is sampled with Euler, not with 'DPM++ 2M'"),
    "schedule": ({"schedule": "Karras"}, "has a schedule of its own"),
    "width": ({"width": 72}, "width is 72; for "),
    "img2img.inpaint": (
        {"img2img": Img2Img(picture=PICTURE, inpaint=Inpaint(mask=PICTURE))},
        "Inpainting is not available",
    ),
    "img2img.resize_mode": ({"img2img": Img2Img(picture=PICTURE, resize_mode=3)}, "Latents are not resized"),
}


@pytest.mark.parametrize("field", REFUSED)
def test_what_the_family_cannot_do_is_refused_by_its_field(kind, folder_file, ask, field):
    changes, message = REFUSED[field]
    with pytest.raises(InvalidSpecError, match=re.escape(message)) as caught:
        drawn(folder_file, ask(**changes))
    assert caught.value.field == field
    assert [refusal.field for refusal in refusals(ask(**changes), family_of(kind))] == [field]


def test_only_flux_refuses_a_negative_prompt(kind, ask):
    found = [refusal.field for refusal in refusals(ask(negative_prompt="blurry"), family_of(kind))]
    assert found == (["negative_prompt"] if family_of(kind) == "flux" else [])


def test_picture_larger_than_the_places_of_the_checkpoint_is_refused(kind, folder_file, ask):
    if family_of(kind) == "flux":
        assert pixels(drawn(folder_file, ask(width=256, steps=1))[0]).shape == (48, 256, 3)
        return
    with pytest.raises(InvalidSpecError, match="width is 256; this checkpoint draws up to 128 pixels"):
        drawn(folder_file, ask(width=256))


def without(path: Path, target: Path, *prefixes: str, **more: torch.Tensor) -> Path:
    kept = {name: tensor for name, tensor in load_file(path).items() if not name.startswith(prefixes)}
    save_file(kept | more, target)
    return target


@pytest.mark.parametrize("layout", ["folder", "original"])
def test_file_without_text_encoders_is_refused_by_name(kind, folder_file, original_file, tmp_path, layout):
    whole, prefix = (folder_file, "text_encoder") if layout == "folder" else (original_file, "text_encoders.")
    path = without(whole, tmp_path / "bare.safetensors", prefix)
    second = "the second CLIP text encoder" if family_of(kind) == "sd3" else "the T5 text encoder"
    expected = f"CLIP text encoder (text_encoder.*), {second} (text_encoder_2.*)."
    assert expected in recognise(shapes_of(path)).reason
    with pytest.raises(CheckpointError, match="The checkpoint is incomplete. It looks like") as caught:
        load_flow(path, **CPU)
    assert caught.value.missing == ("text_encoder.", "text_encoder_2.")


def test_denoiser_alone_is_refused_by_what_it_lacks(kind, original_file, tmp_path):
    prefix = "model.diffusion_model."
    bare = {
        name.removeprefix(prefix): tensor
        for name, tensor in load_file(original_file).items()
        if name.startswith(prefix)
    }
    save_file(bare, tmp_path / "bare.safetensors")
    found = recognise(shapes_of(tmp_path / "bare.safetensors"))
    assert (found.family, found.missing) == (family_of(kind), ("vae.", "text_encoder.", "text_encoder_2."))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if family_of(kind) == "sd3"], indirect=True)
def test_stable_diffusion_3_draws_without_its_third_encoder(kind, theirs, original_file, ask, tmp_path):
    path = without(original_file, tmp_path / "small.safetensors", "text_encoders.t5xxl.")
    made = type(theirs)(**{**theirs.components, "text_encoder_3": None, "tokenizer_3": None})
    made.set_progress_bar_config(disable=True)
    assert difference(drawn(path, ask())[0], theirs_of(made, [ask()])[0]) <= 1


def test_quantised_denoiser_is_refused(original_file, tmp_path):
    scales = {"model.diffusion_model.scaled_fp8": torch.zeros(2)}
    path = without(original_file, tmp_path / "quantised.safetensors", **scales)
    with pytest.raises(CheckpointError, match="nothing is known of, scaled_fp8 for one"):
        load_flow(path, **CPU)


def test_half_precision_becomes_bfloat16(kind, folder_file, ask):
    (outcome,) = drawn(folder_file, ask(), renderer=DiffusersRenderer(dtype="float16"))
    assert load_flow(folder_file, device=CPU["device"], dtype=torch.float16).transformer.dtype == torch.bfloat16
    (precise,) = drawn(folder_file, ask())
    assert 0 < np.abs(pixels(outcome) - pixels(precise)).mean() < 3
