"""Checkpoints of published size: every tensor goes where diffusers' own converter puts it, and Stable Diffusion 1 runs.

Nothing here holds real weights. Names and shapes need no memory; only the last test writes and loads whole files.
"""

from __future__ import annotations

import resource

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from gpuworker.contract.families import recognise
from gpuworker.contract.layouts import UNET, VAE, unet_names, vae_names
from gpuworker.engine.models.families import architecture_of
from gpuworker.engine.models.loader import in_names_of_transformers, load_checkpoint
from tests.engine.ldm import FULL_SIZE, total, write_full_size

FAMILIES = tuple(FULL_SIZE)
DOWN, CROSS = "DownBlock2D", "CrossAttnDownBlock2D"
UP, CROSS_UP = "UpBlock2D", "CrossAttnUpBlock2D"
_SD1 = {
    "block_out_channels": [320, 640, 1280, 1280],
    "down_block_types": [CROSS, CROSS, CROSS, DOWN],
    "up_block_types": [UP, CROSS_UP, CROSS_UP, CROSS_UP],
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
_SDXL = {
    "block_out_channels": [320, 640, 1280],
    "down_block_types": [DOWN, CROSS, CROSS],
    "up_block_types": [CROSS_UP, CROSS_UP, UP],
    "cross_attention_dim": 2048,
    "attention_head_dim": [5, 10, 20],
    "transformer_layers_per_block": [1, 2, 10],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
PUBLISHED_UNETS = {
    "sd1": _SD1,
    "sd2": {**_SD1, "cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True},
    "sdxl": _SDXL,
    "sdxl-refiner": {
        **_SDXL,
        "block_out_channels": [384, 768, 1536, 1536],
        "down_block_types": [DOWN, CROSS, CROSS, DOWN],
        "up_block_types": [UP, CROSS_UP, CROSS_UP, UP],
        "cross_attention_dim": 1280,
        "attention_head_dim": [6, 12, 24, 24],
        "transformer_layers_per_block": 4,
        "projection_class_embeddings_input_dim": 2560,
    },
}
"""From the ``unet/config.json`` of each model as it was published in diffusers layout."""
PUBLISHED_SIZES = {
    "sd1": (859_520_964, 83_653_863, (123_060_480,)),
    "sd2": (865_910_724, 83_653_863, (354_032_640,)),
    "sdxl": (2_567_463_684, 83_653_863, (123_060_480, 694_659_840)),
    "sdxl-refiner": (2_259_526_660, 83_653_863, (694_659_840,)),
}
"""Parameters of UNet, VAE and text encoders."""
PUBLISHED_TEXTS = {
    "sd1": [("quick_gelu", 12, 12)],
    "sd2": [("gelu", 24, 16)],
    "sdxl": [("quick_gelu", 12, 12), ("gelu", 32, 20)],
    "sdxl-refiner": [("gelu", 32, 20)],
}
"""Activation, layers and heads."""


def numbered(shapes):
    """Tensors of these shapes that take no memory; each holds its own number, so that it is known again after conversion."""
    return {
        name: filled(shape, number, in_rows=".in_proj_" in name) for number, (name, shape) in enumerate(shapes.items())
    }


def filled(shape, number, *, in_rows):
    """Args: in_rows: Each row has a fraction of its own, so that a part of the tensor is known again, too."""
    if not in_rows:
        return torch.tensor(float(number)).expand(shape)
    rows = number + torch.arange(shape[0]) / 8192
    return rows.reshape(-1, *[1] * (len(shape) - 1)).expand(shape)


def number_of(tensor):
    return float(tensor[(0,) * tensor.dim()])


def under(prefix, shapes):
    return {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}


def on_meta(kind, config):
    with torch.device("meta"):
        return kind(**config)


@pytest.mark.parametrize("family", FAMILIES)
def test_published_unet_is_inferred_from_shapes(family):
    plan = architecture_of(FULL_SIZE[family].shapes())
    ours, published = on_meta(UNet2DConditionModel, plan.unet), on_meta(UNet2DConditionModel, PUBLISHED_UNETS[family])
    shapes = {name: tensor.shape for name, tensor in ours.state_dict().items()}
    assert shapes == {
        name.replace("add_embedding.", "class_embedding."): tensor.shape
        for name, tensor in published.state_dict().items()
    }
    assert heads_of(ours) == heads_of(published)
    assert plan.size_embedding_width == (256 if family.startswith("sdxl") else None)


def heads_of(unet):
    return {name: module.heads for name, module in unet.named_modules() if hasattr(module, "heads")}


@pytest.mark.parametrize("family", FAMILIES)
def test_unet_tensors_go_where_diffusers_puts_them(family):
    tensors = numbered(under(UNET, FULL_SIZE[family].shapes()))
    published = on_meta(UNet2DConditionModel, PUBLISHED_UNETS[family])
    theirs = convert_ldm_unet_checkpoint({UNET + name: tensor for name, tensor in tensors.items()}, published.config)
    ours = {name: tensors[original] for name, original in unet_names(published.state_dict()).items()}
    assert {name: number_of(tensor) for name, tensor in ours.items()} == {
        name: number_of(tensor) for name, tensor in theirs.items()
    }


def test_vae_tensors_go_where_diffusers_puts_them():
    shapes = under(VAE, FULL_SIZE["sd1"].shapes())
    tensors = numbered(shapes)
    vae = on_meta(AutoencoderKL, architecture_of(FULL_SIZE["sd1"].shapes()).vae)
    theirs = convert_ldm_vae_checkpoint({VAE + name: tensor for name, tensor in tensors.items()}, vae.config)
    ours = {name: tensors[original] for name, original in vae_names(vae.state_dict()).items()}
    assert {name: number_of(tensor) for name, tensor in ours.items()} == {
        name: number_of(tensor) for name, tensor in theirs.items()
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_text_tensors_go_where_diffusers_puts_them(family):
    shapes = FULL_SIZE[family].shapes()
    for text in architecture_of(shapes).text:
        tensors = numbered({name: shape for name, shape in shapes.items() if name.startswith(text.prefix)})
        theirs = converted_text(text, tensors)
        ours = in_names_of_transformers(under(text.prefix, tensors))
        # diffusers leaves out what nothing reads: of SD 2 the last layer and the projection.
        assert theirs.keys() <= ours.keys()
        assert {name: marks(ours[name]) for name in theirs} == {name: marks(tensor) for name, tensor in theirs.items()}
        unread = ("encoder.layers.23.", "text_projection.") if family == "sd2" else ()
        assert all(name.startswith(("logit_scale", *unread)) for name in ours.keys() - theirs.keys())


def converted_text(text, tensors):
    if text.kind == "clip":
        # It looks for each prefix of its own.
        theirs = convert_ldm_clip_checkpoint(dict(tensors))
    else:
        model = on_meta(CLIPTextModelWithProjection, {"config": CLIPTextConfig(**text.config)})
        theirs = convert_open_clip_checkpoint(model, dict(tensors), prefix=text.prefix)
    return {name.removeprefix("text_model."): tensor for name, tensor in theirs.items() if "position_ids" not in name}


def marks(tensor):
    return tensor.shape, number_of(tensor)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_of_a_published_checkpoint_is_used(family):
    shapes = FULL_SIZE[family].shapes()
    plan = architecture_of(shapes)
    unet, vae = on_meta(UNet2DConditionModel, plan.unet), on_meta(AutoencoderKL, plan.vae)
    assert set(unet_names(unet.state_dict()).values()) == set(under(UNET, shapes))
    assert set(vae_names(vae.state_dict()).values()) == set(under(VAE, shapes))
    assert recognise(shapes).is_complete


@pytest.mark.parametrize("family", FAMILIES)
def test_networks_have_the_published_number_of_parameters(family):
    plan = architecture_of(FULL_SIZE[family].shapes())
    texts = [
        on_meta(
            lambda config=text.config, kind=text.kind: (
                CLIPTextModel if kind == "clip" else CLIPTextModelWithProjection
            )(CLIPTextConfig(**config)),
            {},
        )
        for text in plan.text
    ]
    networks = (on_meta(UNet2DConditionModel, plan.unet), on_meta(AutoencoderKL, plan.vae), *texts)
    unet, vae, *texts = (sum(parameter.numel() for parameter in network.parameters()) for network in networks)
    assert (unet, vae, tuple(texts)) == PUBLISHED_SIZES[family]


@pytest.mark.parametrize("family", FAMILIES)
def test_published_text_encoders_are_inferred_from_shapes(family):
    texts = architecture_of(FULL_SIZE[family].shapes()).text
    keys = ("hidden_act", "num_hidden_layers", "num_attention_heads")
    assert [tuple(text.config[key] for key in keys) for text in texts] == PUBLISHED_TEXTS[family]


@pytest.mark.parametrize("family", ["sd1", *(pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES[1:])])
def test_checkpoint_of_full_size_runs_a_step_and_is_in_memory_once(family, tmp_path):
    """SDXL takes 7 GB of disk and memory and half a minute."""
    shapes = FULL_SIZE[family].shapes()
    path = write_full_size(tmp_path / "full.safetensors", shapes)
    before = peak_bytes()
    checkpoint = load_checkpoint(path, device=torch.device("cpu"), dtype=torch.bfloat16)
    assert peak_bytes() - before < 1.1 * path.stat().st_size
    assert checkpoint.size_bytes == 2 * (total(shapes, ("",)) - unread(shapes))
    assert one_step(checkpoint).isfinite().all()


def peak_bytes():
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def unread(shapes):
    return sum(name.endswith("logit_scale") for name in shapes)


@torch.inference_mode()
def one_step(checkpoint):
    def ones(*shape):
        return torch.ones(shape, dtype=torch.bfloat16)

    config, tokens = checkpoint.unet.config, torch.zeros(1, 77, dtype=torch.int64)
    texts = [tower.model(tokens, output_hidden_states=True).hidden_states[-2] for tower in checkpoint.text]
    width = config.projection_class_embeddings_input_dim
    vector = {"class_labels": ones(1, width)} if width else {}
    return checkpoint.unet(ones(1, 4, 8, 8), 999, torch.cat(texts, dim=-1), return_dict=False, **vector)[0]
