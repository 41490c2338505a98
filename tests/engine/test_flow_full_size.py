"""Stable Diffusion 3, 3.5 and Flux in full size: from shapes alone, the networks that were published. Nothing is filled here."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel
from transformers import T5Config, T5EncoderModel

from gpuworker.contract.families import recognise
from gpuworker.engine.models.flow import flux_config, flux_weights, sd3_config, sd3_weights, t5_config
from gpuworker.engine.models.loader import shapes_of
from tests.engine.flow_models import flux_original, sd3_original

SD3: dict[str, Any] = {
    "sample_size": 128, "in_channels": 16, "out_channels": 16, "patch_size": 2, "attention_head_dim": 64,
    "joint_attention_dim": 4096, "pooled_projection_dim": 2048,
}  # fmt: skip
PUBLISHED: dict[str, tuple[Any, dict[str, Any]]] = {
    "SD 3 medium": (
        SD3Transformer2DModel,
        {**SD3, "num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536, "pos_embed_max_size": 192},
    ),
    "SD 3.5 medium": (
        SD3Transformer2DModel,
        {
            **SD3, "num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536, "pos_embed_max_size": 384,
            "qk_norm": "rms_norm", "dual_attention_layers": tuple(range(13)),
        },
    ),
    "SD 3.5 large": (
        SD3Transformer2DModel,
        {
            **SD3, "num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432, "pos_embed_max_size": 192,
            "qk_norm": "rms_norm",
        },
    ),
    "Flux dev": (FluxTransformer2DModel, {"guidance_embeds": True}),
    "Flux schnell": (FluxTransformer2DModel, {"guidance_embeds": False}),
}  # fmt: skip
"""Class and configuration; what is left out is the class' default. Source: ``transformer/config.json`` of each publisher."""


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("layout", ["diffusers", "original"])
def test_network_of_a_published_file_is_the_published_one(name, layout):
    kind, published = PUBLISHED[name]
    is_flux = kind is FluxTransformer2DModel
    with torch.device("meta"):
        network = kind(**published)
        state = network.state_dict()
        if layout == "original":
            written = flux_original(state) if is_flux else sd3_original(state)
            found = recognise({f"model.diffusion_model.{name}": shape for name, shape in shapes_of(written).items()})
            state = flux_weights(written) if is_flux else sd3_weights(written)
        else:
            found = recognise({f"transformer.{name}": shape for name, shape in shapes_of(state).items()})
        config = (flux_config if is_flux else sd3_config)(shapes_of(state), {})
    assert (found.family, found.input_channels) == ("flux" if is_flux else "sd3", 16)
    assert shapes_of(state) == shapes_of(network.state_dict())
    assert {key: network.config[key] for key in config} == config


def test_large_text_encoder_is_the_published_one():
    published = T5Config(
        vocab_size=32128, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64, feed_forward_proj="gated-gelu"
    )
    with torch.device("meta"):
        config = t5_config(shapes_of(T5EncoderModel(published).state_dict()), {})
    assert {key: getattr(published, key) for key in config} == config
