"""Each companion of the miniature does what it is there for, measured from pixels."""

from __future__ import annotations

import hashlib
import io
from dataclasses import replace
from functools import cache
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, EulerDiscreteScheduler
from PIL import Image
from safetensors.torch import load_file

from gpuworker.contract import (
    EmbeddingUse,
    ExtrasRecipe,
    InputPicture,
    NetworkUse,
    Recipe,
    Rendered,
    RenderSpec,
    Weights,
    WeightsFile,
)
from gpuworker.engine import DiffusersRenderer
from gpuworker.engine.models.loader import load_checkpoint, load_vae
from miniature.companions import EMBEDDING_NAME, EMBEDDING_SCENE, Captions, edges, published_controlnet
from miniature.judge import judged, overlap
from miniature.scenes import Figure, Scene

MINIATURE = Path(__file__).resolve().parents[2] / "miniature"
SEEDS = (11, 22, 33)


@cache
def weights_of(stem: str) -> Weights:
    return Weights(name=stem, sha256=hashlib.sha256((MINIATURE / f"{stem}.safetensors").read_bytes()).hexdigest())


def recipe(prompt: str, **changes) -> Recipe:
    fields = {"sampler": "Euler a", "steps": 12, "cfg_scale": 5.0, "width": 64, "height": 64, "seed": 11, "subseed": 0}
    checkpoint = weights_of("renderkiln-miniature")
    return Recipe(**{"prompt": prompt, "negative_prompt": "", "checkpoint": checkpoint, **fields, **changes})


@pytest.fixture(scope="module")
def pictures_of():
    renderer = DiffusersRenderer()

    def render(*recipes, inputs=None) -> list[np.ndarray]:
        used = {use.sha256: use for item in recipes for use in item.weights()}
        files = {sha256: WeightsFile(MINIATURE / f"{use.name}.safetensors") for sha256, use in used.items()}
        spec = RenderSpec(recipes, files, inputs or {})
        found = []
        for outcome in renderer.render(spec, on_step=lambda *_: None, should_stop=lambda: False):
            assert isinstance(outcome, Rendered), outcome
            picture = outcome.picture
            found.append(np.frombuffer(picture.pixels, np.uint8).reshape(picture.height, picture.width, 3))
        return found

    return render


def lora(weight: float) -> NetworkUse:
    return NetworkUse(kind="lora", weights=weights_of("miniature-moonlight"), te=weight, unet=weight)


def given(picture: np.ndarray, folder: Path) -> tuple[InputPicture, dict[str, Path]]:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    sha256 = hashlib.sha256(file.getvalue()).hexdigest()
    (folder / sha256).write_bytes(file.getvalue())
    height, width, _ = picture.shape
    return InputPicture(sha256=sha256, width=width, height=height), {sha256: folder / sha256}


def test_companions_are_small():
    sizes = [path.stat().st_size for path in MINIATURE.glob("*.safetensors") if path.stem != "renderkiln-miniature"]
    assert len(sizes) == 5
    assert max(sizes) <= 4_000_000


def test_lora_turns_day_to_moonlight_and_weight_zero_is_none_bit_for_bit(pictures_of):
    plain = [recipe("a red circle on a white background", seed=seed) for seed in SEEDS]
    without = pictures_of(*plain)
    by_moonlight = pictures_of(*(replace(item, networks=(lora(1.0),)) for item in plain))
    at_zero = pictures_of(*(replace(item, networks=(lora(0.0),)) for item in plain))
    assert all((one == other).all() for one, other in zip(without, at_zero, strict=True))
    red, green, blue = np.mean(by_moonlight, axis=(0, 1, 2)) / np.mean(without, axis=(0, 1, 2))
    # As the light it was trained on: red goes most, blue stays.
    assert red < 0.8 and red < green < blue and blue - red > 0.2, (red, green, blue)


def test_embedding_is_a_word_for_a_sunset_over_the_sea(pictures_of):
    use = EmbeddingUse(weights=weights_of(EMBEDDING_NAME))
    verdicts = [
        judged(picture, EMBEDDING_SCENE)
        for picture in pictures_of(*(recipe(EMBEDDING_NAME, seed=seed, embeddings=(use,)) for seed in SEEDS))
    ]
    assert all(verdict.colours for verdict in verdicts)
    without = pictures_of(*(recipe(EMBEDDING_NAME, seed=seed) for seed in SEEDS))
    assert not any(judged(picture, EMBEDDING_SCENE).colours for picture in without)


def test_vae_rebuilds_pictures_better_than_the_checkpoints_own():
    cpu, full = torch.device("cpu"), torch.float32
    checkpoint = load_checkpoint(MINIATURE / "renderkiln-miniature.safetensors", device=cpu, dtype=full)
    crisp = load_vae(MINIATURE / "miniature-crisp-vae.safetensors", like=checkpoint, device=cpu, dtype=full)
    rng = Random(99)
    pictures = torch.from_numpy(np.stack([Scene.random(rng).draw(64, rng) for _ in range(32)])).permute(0, 3, 1, 2)
    wanted = pictures.float() / 127.5 - 1
    with torch.inference_mode():
        errors = [
            float((vae.decode(vae.encode(wanted).latent_dist.mode()).sample - wanted).abs().mean())
            for vae in (checkpoint.vae, crisp)
        ]
    assert errors[1] < 0.95 * errors[0], errors


@pytest.mark.parametrize("shape", ["circle", "square", "triangle"])
def test_controlnet_makes_the_shape_follow_the_edge_map(shape):
    """Run by diffusers: the engine has no ControlNet yet."""
    drawn = Scene(figures=(Figure(shape, "white", "center"),), ground="black").draw(64, Random(5))
    hint = torch.from_numpy(edges(drawn)).permute(2, 0, 1)[None].float() / 255
    wanted = drawn.mean(axis=-1) > 127
    steered, free = (np.mean([overlap(figure_in(p), wanted) for p in sampled(given)]) for given in (hint, None))
    assert steered > 0.5 and steered > free + 0.2, (steered, free)


@torch.inference_mode()
def sampled(hint: torch.Tensor | None) -> np.ndarray:
    """Pictures of a caption without a shape, one per seed."""
    cpu, full = torch.device("cpu"), torch.float32
    checkpoint = load_checkpoint(MINIATURE / "renderkiln-miniature.safetensors", device=cpu, dtype=full)
    control = ControlNetModel.from_unet(checkpoint.unet)
    stored = load_file(MINIATURE / "miniature-canny.safetensors")
    names = published_controlnet(control, checkpoint.unet.config.layers_per_block)
    control.load_state_dict(
        {ours: stored[theirs].float() for ours, theirs in zip(control.state_dict(), names, strict=True)}
    )
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="linspace"
    )
    scheduler.set_timesteps(12)
    context = checkpoint.text[0].model(Captions()(["yellow and blue"])).last_hidden_state.expand(len(SEEDS), -1, -1)
    noise = [torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in SEEDS]
    latents = torch.stack(noise) * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        scaled = scheduler.scale_model_input(latents, timestep)
        more = {}
        if hint is not None:
            down, middle = control(scaled, timestep, context, hint.expand(len(SEEDS), -1, -1, -1), return_dict=False)
            more = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        noise_found = checkpoint.unet(scaled, timestep, context, **more).sample
        latents = scheduler.step(noise_found, timestep, latents).prev_sample
    decoded = checkpoint.vae.decode(latents / checkpoint.latent_scale).sample
    return ((decoded.clamp(-1, 1) + 1) * 127.5).permute(0, 2, 3, 1).numpy().astype(np.uint8)


def figure_in(picture: np.ndarray) -> np.ndarray:
    """What differs from the ground, which is the colour of the rim."""
    pixels = picture.astype(float)
    ground = np.median(np.concatenate([pixels[:2].reshape(-1, 3), pixels[-2:].reshape(-1, 3)]), axis=0)
    return np.linalg.norm(pixels - ground, axis=-1) > 60


def test_upscaler_doubles_pictures_better_than_lanczos(pictures_of, tmp_path):
    rng, errors = Random(77), []
    for _ in range(6):
        scene, seed = Scene.random(rng), rng.random()
        small, large = scene.draw(64, Random(seed)), scene.draw(128, Random(seed))
        image, inputs = given(small, tmp_path)
        extras = ExtrasRecipe(picture=image, upscaler_1="miniature-x2", upscaler_1_weights=weights_of("miniature-x2"))
        (ours,) = pictures_of(extras, inputs=inputs)
        plain = np.asarray(Image.fromarray(small).resize((128, 128), Image.Resampling.LANCZOS))
        errors.append([np.abs(made.astype(float) - large).mean() for made in (ours, plain)])
    ours, plain = np.mean(errors, axis=0)
    assert ours < plain, (ours, plain)
