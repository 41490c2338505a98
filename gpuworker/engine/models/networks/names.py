"""Which layer of a checkpoint a key of a network file means: A1111's names of layers ↔ the modules of our UNet and text towers.

A1111 names layers by their place in the original code (``diffusion_model_input_blocks_4_1_…``); files come with those names, with
kohya's (``lora_unet_…``, ``lora_te1_…``) or with kohya's prefix before diffusers' names. Nothing is merged here.

Source: ``assign_network_names_to_compvis_modules``, ``convert_diffusers_name_to_compvis`` and the fallbacks of ``load_network`` in
``extensions-builtin/Lora/networks.py`` of A1111 1.10.1.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from gpuworker.engine.models.loader import Checkpoint

CHANGEABLE = (torch.nn.Linear, torch.nn.Conv2d, torch.nn.LayerNorm, torch.nn.GroupNorm)
"""A1111 applies networks when one of these runs; an embedding table, say, is never changed."""
RESNET_PARTS = {
    "conv1": "in_layers_2",
    "conv2": "out_layers_3",
    "norm1": "in_layers_0",
    "norm2": "out_layers_0",
    "time_emb_proj": "emb_layers_1",
    "conv_shortcut": "skip_connection",
}
"""diffusers' name of a residual block's part → the original's."""
OPEN_CLIP_PARTS = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp_c_fc", "mlp.fc2": "mlp_c_proj"}
ATTENTION_PARTS = ("q_proj", "k_proj", "v_proj", "out_proj")


@dataclass(frozen=True, slots=True)
class Layer:
    """A module whose weights a network may change."""

    module: Any
    is_text: bool
    """The multiplier of the text encoder counts, not the UNet's."""
    attention: str | None = None
    """The OpenCLIP attention this is a part of: A1111 keeps it in one module and changes all four parts or none."""
    takes_bias: bool = True


Layers = Mapping[str, Layer]
"""A1111's name → layer."""


def layers_of(checkpoint: Checkpoint) -> dict[str, Layer]:
    """Every layer of the checkpoint that a network can name."""
    named = {name: Layer(module, is_text=False) for name, module in _unet(checkpoint.unet)}
    is_sdxl = checkpoint.family.startswith("sdxl")
    for index, tower in enumerate(checkpoint.text):
        prefix = f"{index}_" if is_sdxl else ""
        named |= dict(_clip(tower.model, prefix) if tower.kind == "clip" else _open_clip(tower.model, prefix))
    return {name: layer for name, layer in named.items() if isinstance(layer.module, CHANGEABLE)}


def layer_named(key: str, layers: Layers) -> str | None:
    """A1111's name of the layer that a file calls ``key`` (without the part after the first dot); None where there is none."""
    is_sd2 = "model_transformer_resblocks_0_ln_1" in layers
    name = _original_name(key, is_sd2=is_sd2)
    if name in layers:
        return name
    for wanted, prefixes in _FALLBACKS.items():
        if wanted in key:
            return next((other for prefix in prefixes if (other := key.replace(wanted, prefix)) in layers), None)
    return None


_FALLBACKS = {
    "lora_unet": ("diffusion_model",),
    "lora_te1_text_model": ("0_transformer_text_model", "transformer_text_model"),
    "oft_unet": ("diffusion_model",),
}
"""Files that carry the original names after a prefix of their own, as most of SDXL do."""


# --- the names in files ----------------------------------------------------------------------------------------------

_UNET_PART = re.compile(r"lora_unet_(down|up)_blocks_(\d+)_(attentions|resnets)_(\d+)_(.+)")
_MIDDLE_PART = re.compile(r"lora_unet_mid_block_(attentions|resnets)_(\d+)_(.+)")
_SAMPLER = re.compile(r"lora_unet_(?:down_blocks_(\d+)_downsamplers|up_blocks_(\d+)_upsamplers)_0_conv")
_TIME_EMBEDDING = re.compile(r"lora_unet_time_embedding_linear_(\d+)(.*)")
_TEXT_PART = re.compile(r"lora_te(2?)_text_model_encoder_layers_(\d+)_(.+)")


def _original_name(key: str, *, is_sd2: bool) -> str:
    """kohya's name with diffusers' layers in A1111's words; any other name as it is."""
    if match := _UNET_PART.match(key):
        return _unet_name(match[1], int(match[2]), match[3], int(match[4]), match[5])
    if match := _MIDDLE_PART.match(key):
        place = 1 if match[1] == "attentions" else int(match[2]) * 2
        return f"diffusion_model_middle_block_{place}_{_unet_part(match[1], match[3])}"
    if match := _TEXT_PART.match(key):
        return _text_name(match[3], int(match[2]), is_second=bool(match[1]), is_sd2=is_sd2)
    if match := _SAMPLER.match(key):
        return _sampler_name(match[1], match[2])
    if match := _TIME_EMBEDDING.match(key):
        return f"diffusion_model_time_embed_{int(match[1]) * 2 - 2}{match[2]}"
    for prefix, name in (("lora_unet_conv_in", "input_blocks_0_0"), ("lora_unet_conv_out", "out_2")):
        if key.startswith(prefix):
            return f"diffusion_model_{name}{key.removeprefix(prefix)}"
    return key


def _unet_name(side: str, block: int, kind: str, index: int, part: str) -> str:
    """The rule of networks with two residual blocks per level: every Stable Diffusion's."""
    blocks, number = ("input", 1 + block * 3 + index) if side == "down" else ("output", block * 3 + index)
    return f"diffusion_model_{blocks}_blocks_{number}_{1 if kind == 'attentions' else 0}_{_unet_part(kind, part)}"


def _unet_part(kind: str, part: str) -> str:
    return RESNET_PARTS.get(part, part) if kind == "resnets" else part


def _sampler_name(down: str | None, up: str | None) -> str:
    if down is not None:
        return f"diffusion_model_input_blocks_{3 + int(down) * 3}_0_op"
    # QUIRK(A1111 1.10): the place in the block is Stable Diffusion 1's, so SDXL's first upsampler is found by its own name only.
    return f"diffusion_model_output_blocks_{2 + int(up or 0) * 3}_{2 if int(up or 0) else 1}_conv"


def _text_name(part: str, layer: int, *, is_second: bool, is_sd2: bool) -> str:
    if not is_second and not is_sd2:
        return f"transformer_text_model_encoder_layers_{layer}_{part}"
    prefix = "1_" if is_second else ""
    if "mlp_fc1" in part or "mlp_fc2" in part:
        part = part.replace("mlp_fc1", "mlp_c_fc").replace("mlp_fc2", "mlp_c_proj")
    else:
        part = part.replace("self_attn", "attn")
    return f"{prefix}model_transformer_resblocks_{layer}_{part}"


# --- the names of our modules ----------------------------------------------------------------------------------------

_Named = Iterator[tuple[str, Any]]


def _unet(unet: Any) -> _Named:
    outside = {
        "input_blocks_0_0": unet.conv_in,
        "time_embed_0": unet.time_embedding.linear_1,
        "time_embed_2": unet.time_embedding.linear_2,
        "label_emb_0_0": getattr(unet.class_embedding, "linear_1", None),
        "label_emb_0_2": getattr(unet.class_embedding, "linear_2", None),
        "out_0": unet.conv_norm_out,
        "out_2": unet.conv_out,
        **_input_blocks(unet),
        **_output_blocks(unet),
    }
    yield from ((f"diffusion_model_{name}", module) for name, module in outside.items())
    first, *others = unet.mid_block.resnets
    # A thinned SDXL has nothing but the first.
    attentions = [attention for attention in unet.mid_block.attentions if attention is not None]
    for place, module in enumerate((first, *attentions, *others)):
        yield from _parts(f"diffusion_model_middle_block_{place}", module, is_resnet=place != 1)


def _input_blocks(unet: Any) -> dict[str, Any]:
    named: dict[str, Any] = {}
    number = 0
    for block in unet.down_blocks:
        for resnet, attention in _pairs(block):
            number += 1
            named |= _pair(f"input_blocks_{number}", resnet, attention)
        for sampler in block.downsamplers or ():
            number += 1
            named[f"input_blocks_{number}_0_op"] = sampler.conv
    return named


def _output_blocks(unet: Any) -> dict[str, Any]:
    named: dict[str, Any] = {}
    number = -1
    for block in unet.up_blocks:
        attention: Any = None
        for resnet, attention in _pairs(block):
            number += 1
            named |= _pair(f"output_blocks_{number}", resnet, attention)
        for sampler in block.upsamplers or ():
            named[f"output_blocks_{number}_{1 if attention is None else 2}_conv"] = sampler.conv
    return named


def _pairs(block: Any) -> Iterator[tuple[Any, Any]]:
    """Each residual block of a level and the transformer behind it, or None."""
    attentions = getattr(block, "attentions", None) or [None] * len(block.resnets)
    return zip(block.resnets, attentions, strict=True)


def _pair(name: str, resnet: Any, attention: Any) -> dict[str, Any]:
    named = dict(_parts(f"{name}_0", resnet, is_resnet=True))
    return named if attention is None else named | dict(_parts(f"{name}_1", attention, is_resnet=False))


def _parts(prefix: str, module: Any, *, is_resnet: bool) -> _Named:
    for path, part in module.named_modules():
        name = path.replace(".", "_")
        yield f"{prefix}_{RESNET_PARTS.get(name, name) if is_resnet else name}", part


def _clip(model: Any, prefix: str) -> Iterator[tuple[str, Layer]]:
    for path, module in model.named_modules():
        name = path.removeprefix("text_model.").replace(".", "_")
        yield f"{prefix}transformer_text_model_{name}", Layer(module, is_text=True)


def _open_clip(model: Any, prefix: str) -> Iterator[tuple[str, Layer]]:
    for path, module in model.named_modules():
        path = path.removeprefix("text_model.")
        if path == "final_layer_norm":
            yield f"{prefix}model_ln_final", Layer(module, is_text=True)
        elif match := re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)", path):
            block = f"{prefix}model_transformer_resblocks_{match[1]}"
            part = match[2].removeprefix("self_attn.")
            if part in ATTENTION_PARTS:
                # Of A1111's one module, a network's bias changes the output's alone.
                takes_bias = part == "out_proj"
                yield f"{block}_attn_{part}", Layer(module, True, attention=f"{block}_attn", takes_bias=takes_bias)
            elif part in OPEN_CLIP_PARTS:
                yield f"{block}_{OPEN_CLIP_PARTS[part]}", Layer(module, is_text=True)
