"""Stable Diffusion 3 and Flux: both layouts are loaded, pictures are those of diffusers' own pipelines, what cannot be done is refused."""

from __future__ import annotations

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
    Weights,
    WeightsFile,
)
from gpuworker.contract.families import recognise
from gpuworker.contract.flow import refusals
from gpuworker.engine import DiffusersRenderer
from gpuworker.engine.errors import CheckpointError, InvalidSpecError
from gpuworker.engine.models.flow import flux_weights, load_flow
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


@pytest.fixture(scope="module")
def flow_renderer() -> DiffusersRenderer:
    return DiffusersRenderer()


@pytest.fixture
def ask(recipe_of, kind):
    def build(**changes: Any) -> Recipe:
        negative = "blurry" if family_of(kind) == "sd3" else ""
        plain = {"prompt": PROMPTS[0], "negative_prompt": negative, "sampler": "Euler", "steps": 3, "cfg_scale": 4.0}
        return recipe_of(**{**plain, **SIZE, **changes})

    return build


def shapes_of(path: Path) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in load_file(path).items()}


def drawn(
    renderer: DiffusersRenderer, path: Path, *recipes: Recipe, inputs: dict[str, Path] | None = None, **watch: Any
) -> list[Any]:
    spec = RenderSpec(recipes, {RANDOM.sha256: WeightsFile(path)}, inputs or {})
    callbacks = {"on_step": lambda done, total: None, "should_stop": lambda: False, **watch}
    # The pinned hash names the model in caches; here every file is "the" checkpoint.
    return list(DiffusersRenderer().render(spec, **callbacks))


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
