"""One file in diffusers' names, as people merge folders: the same pictures as from the original layout, to the last bit.

diffusers' own converters write the files, so that both directions are not ours. Folders are tested with their intake.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from safetensors.torch import load_file, save_file

from gpuworker.contract import RenderSpec, WeightsFile
from gpuworker.contract.families import TEXT_PREFIXES, recognise
from gpuworker.engine import DiffusersRenderer
from gpuworker.engine.models.loader import Checkpoint, load_checkpoint, load_vae
from tests.engine.conftest import RANDOM
from tests.engine.ldm import TINY, write_checkpoint

CPU: dict[str, Any] = {"device": torch.device("cpu"), "dtype": torch.float32}
PARTS = {"sd1": ("text_encoder",), "sd2": ("text_encoder",), "sdxl": ("text_encoder", "text_encoder_2"),
         "sdxl-refiner": ("text_encoder_2",)}  # fmt: skip


@pytest.fixture(params=TINY)
def family(request) -> str:
    return request.param


@pytest.fixture
def original(family, tmp_path) -> Path:
    return write_checkpoint(tmp_path / "original.safetensors", TINY[family].shapes())


@pytest.fixture
def translated(family, original, tmp_path) -> Path:
    """As diffusers' converters translate the original."""
    checkpoint, tensors = load_checkpoint(original, **CPU), load_file(original)
    published = unet_config_of_diffusers(checkpoint)
    parts = {"unet": convert_ldm_unet_checkpoint(tensors, published), "vae": vae_weights(checkpoint, tensors)}
    for part, prefix, tower in zip(PARTS[family], TEXT_PREFIXES[family], checkpoint.text, strict=True):
        if tower.kind == "clip":
            parts[part] = convert_ldm_clip_checkpoint(dict(tensors))
        else:
            parts[part] = convert_open_clip_checkpoint(tower.model, dict(tensors), prefix=prefix)
        if family == "sd2":
            # diffusers leaves out the layer that nothing reads, but knows its number in full size only.
            parts[part] = {name: tensor for name, tensor in parts[part].items() if ".layers.1." not in name}
    save_file(
        {
            f"{part}.{name}": tensor.contiguous().clone()
            for part, weights in parts.items()
            for name, tensor in weights.items()
        },
        tmp_path / "translated.safetensors",
    )
    return tmp_path / "translated.safetensors"


def unet_config_of_diffusers(checkpoint: Checkpoint) -> dict[str, Any]:
    """There SDXL's vector is an added embedding."""
    config = dict(checkpoint.unet.config)
    if checkpoint.size_embedding_width:
        config |= {"class_embed_type": None, "addition_embed_type": "text_time"}
    return config


def vae_weights(checkpoint: Checkpoint, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return convert_ldm_vae_checkpoint(tensors, checkpoint.vae.config)


def picture(path: Path, recipe: Any) -> bytes:
    spec = RenderSpec((recipe,), {RANDOM.sha256: WeightsFile(path)})
    (outcome,) = DiffusersRenderer().render(spec, on_step=lambda done, total: None, should_stop=lambda: False)
    return outcome.picture.pixels


def test_both_layouts_give_the_same_picture(original, translated, recipe_of):
    recipe = recipe_of(steps=2)
    assert picture(original, recipe) == picture(translated, recipe)


def test_translated_file_is_recognised(family, translated):
    recognition = recognise({name: tuple(tensor.shape) for name, tensor in load_file(translated).items()})
    assert (recognition.family, recognition.is_complete, recognition.input_channels) == (family, True, 4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_read_as_what_it_is(original, tmp_path, dtype):
    halves = {name: tensor.to(dtype) for name, tensor in load_file(original).items()}
    save_file(halves, tmp_path / "half.safetensors")
    checkpoint = load_checkpoint(tmp_path / "half.safetensors", **CPU)
    assert torch.equal(checkpoint.unet.conv_in.weight, halves["model.diffusion_model.input_blocks.0.0.weight"].float())


@pytest.mark.parametrize("names", ["today's", "old", "prefixed"])
def test_vae_of_diffusers_is_loaded_by_itself(tmp_path, names):
    checkpoint = load_checkpoint(write_checkpoint(tmp_path / "original.safetensors"), **CPU)
    theirs = AutoencoderKL(**checkpoint.vae.config)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = theirs.state_dict()
    for new, before in old.items() if names == "old" else ():
        tensors = {name.replace(new, before): tensor for name, tensor in tensors.items()}
    prefix = "vae." if names == "prefixed" else ""
    save_file({prefix + name: tensor for name, tensor in tensors.items()}, tmp_path / "vae.safetensors")
    vae = load_vae(tmp_path / "vae.safetensors", like=checkpoint, **CPU)
    assert all(torch.equal(tensor, theirs.state_dict()[name]) for name, tensor in vae.state_dict().items())
