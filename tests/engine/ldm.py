"""Checkpoints in the original key layout: names and shapes of every family's, full size too, and small random ones for tests.

Written after Stability's ``ldm`` and ``sgm`` and OpenCLIP, not after the engine, which is tested with them. No test lives here.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path

import torch
from safetensors.torch import save_file

Shapes = dict[str, tuple[int, ...]]
VOCABULARY, POSITIONS = 49408, 77


@dataclass(frozen=True)
class UNet:
    """In the words of ``UNetModel``, but for ``depths``: transformer blocks per level, 0 without attention."""

    channels: tuple[int, ...] = (32, 64)
    blocks: int = 1
    depths: tuple[int, ...] = (1, 1)
    middle: int = 1
    context: int = 16
    linear: bool = False
    vector: int | None = None
    inputs: int = 4


@dataclass(frozen=True)
class Text:
    """A text encoder."""

    width: int = 16
    layers: int = 2
    mlp: int = 32


@dataclass(frozen=True)
class Ldm:
    """A whole checkpoint: its text encoders by the names in front of them."""

    unet: UNet = UNet()
    vae: tuple[int, ...] = (8, 8, 8, 8)
    vae_blocks: int = 1
    clip: dict[str, Text] = field(default_factory=dict)
    open_clip: dict[str, Text] = field(default_factory=dict)

    def shapes(self) -> Shapes:
        return {
            **_under("model.diffusion_model.", unet_shapes(self.unet)),
            **_under("first_stage_model.", vae_shapes(self.vae, self.vae_blocks)),
            **{
                name: shape
                for prefix, text in self.clip.items()
                for name, shape in _under(prefix + "transformer.text_model.", clip_shapes(text)).items()
            },
            **{
                name: shape
                for prefix, text in self.open_clip.items()
                for name, shape in _under(prefix + "model.", open_clip_shapes(text)).items()
            },
        }


_TINY = Text(width=16, layers=2, mlp=32)
_XL = UNet(channels=(32, 32, 64), blocks=2, depths=(0, 1, 2), middle=2, context=32, linear=True, vector=16 + 6 * 8)
TINY = {
    "sd1": Ldm(clip={"cond_stage_model.": _TINY}),
    "sd2": Ldm(replace(UNet(), linear=True), open_clip={"cond_stage_model.": _TINY}),
    "sdxl": Ldm(_XL, clip={"conditioner.embedders.0.": _TINY}, open_clip={"conditioner.embedders.1.": _TINY}),
    "sdxl-refiner": Ldm(
        replace(_XL, channels=(32, 32, 64, 64), depths=(0, 1, 1, 0), middle=1, context=16, vector=16 + 5 * 8),
        open_clip={"conditioner.embedders.0.": _TINY},
    ),
}
"""Family → the smallest checkpoint of its build."""

_VAE = (128, 256, 512, 512)
_CLIP_L, _CLIP_H, _CLIP_G = Text(768, 12, 3072), Text(1024, 24, 4096), Text(1280, 32, 5120)
_SD1 = UNet((320, 640, 1280, 1280), blocks=2, depths=(1, 1, 1, 0), context=768)
FULL_SIZE = {
    "sd1": Ldm(_SD1, _VAE, 2, clip={"cond_stage_model.": _CLIP_L}),
    "sd2": Ldm(replace(_SD1, context=1024, linear=True), _VAE, 2, open_clip={"cond_stage_model.": _CLIP_H}),
    "sdxl": Ldm(
        UNet((320, 640, 1280), blocks=2, depths=(0, 2, 10), middle=10, context=2048, linear=True, vector=2816),
        _VAE,
        2,
        clip={"conditioner.embedders.0.": _CLIP_L},
        open_clip={"conditioner.embedders.1.": _CLIP_G},
    ),
    "sdxl-refiner": Ldm(
        UNet((384, 768, 1536, 1536), blocks=2, depths=(0, 4, 4, 0), middle=4, context=1280, linear=True, vector=2560),
        _VAE,
        2,
        open_clip={"conditioner.embedders.0.": _CLIP_G},
    ),
}
"""Family → the checkpoint as it was published."""


def checkpoint_shapes(
    *,
    unet: tuple[int, ...] = (32, 64),
    vae: tuple[int, ...] = (8, 8, 8, 8),
    width: int = 16,
    layers: int = 2,
    mlp: int = 32,
) -> Shapes:
    """SD 1, one residual block per level, attention at every level."""
    network = UNet(unet, depths=(1,) * len(unet), context=width)
    return Ldm(network, vae, clip={"cond_stage_model.": Text(width, layers, mlp)}).shapes()


def write_checkpoint(path: Path, shapes: Shapes | None = None, *, seed: int = 0) -> Path:
    save_file(random_tensors(shapes or checkpoint_shapes(), seed=seed), path)
    return path


def write_full_size(path: Path, shapes: Shapes) -> Path:
    """A file of any size within seconds and without memory: bfloat16, one random tile of small values over and over."""
    tile = torch.randn(2**24 + 1, generator=torch.Generator().manual_seed(0)).mul_(0.02).bfloat16()
    values, header, begin = tile.view(torch.uint8).numpy().data, {}, 0
    for name, shape in shapes.items():
        end = begin + 2 * prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
        begin = end
    described = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(described)) + described)
        for _ in range(begin // len(values)):
            file.write(values)
        file.write(values[: begin % len(values)])
    return path


def random_tensors(shapes: Shapes, *, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: _weights(name, shape, generator) for name, shape in shapes.items()}


def _weights(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    if len(shape) == 1:
        return torch.ones(shape) if name.endswith("weight") else torch.zeros(shape)
    return torch.randn(shape, generator=generator) / prod(shape[1:]) ** 0.5


def _under(prefix: str, shapes: Shapes) -> Shapes:
    return {prefix + name: shape for name, shape in shapes.items()}


def _both(name: str, weight: tuple[int, ...]) -> Shapes:
    return {f"{name}.weight": weight, f"{name}.bias": weight[:1]}


# --- UNet ------------------------------------------------------------------------------------------------------------


def unet_shapes(unet: UNet) -> Shapes:
    first, last = unet.channels[0], unet.channels[-1]
    time = 4 * first
    shapes = {
        **_both("time_embed.0", (time, first)),
        **_both("time_embed.2", (time, time)),
        **(_both("label_emb.0.0", (time, unet.vector)) | _both("label_emb.0.2", (time, time)) if unet.vector else {}),
        **_both("input_blocks.0.0", (first, unet.inputs, 3, 3)),
        **_both("out.0", (first,)),
        **_both("out.2", (4, first, 3, 3)),
    }
    skips, before, block = [first], first, 0
    for level, count in enumerate(unet.channels):
        for _ in range(unet.blocks):
            block += 1
            shapes |= _residual(f"input_blocks.{block}.0", before, count, time)
            shapes |= _transformer(f"input_blocks.{block}.1", count, unet, unet.depths[level])
            skips.append(count)
            before = count
        if level < len(unet.channels) - 1:
            block += 1
            shapes |= _both(f"input_blocks.{block}.0.op", (count, count, 3, 3))
            skips.append(count)
    shapes |= _residual("middle_block.0", last, last, time)
    shapes |= _transformer("middle_block.1", last, unet, unet.middle)
    shapes |= _residual("middle_block.2", last, last, time)
    return shapes | _output_blocks(unet, skips, time)


def _output_blocks(unet: UNet, skips: list[int], time: int) -> Shapes:
    shapes: Shapes = {}
    before, block = unet.channels[-1], -1
    for level, count in reversed(list(enumerate(unet.channels))):
        for _ in range(unet.blocks + 1):
            block += 1
            shapes |= _residual(f"output_blocks.{block}.0", before + skips.pop(), count, time)
            shapes |= _transformer(f"output_blocks.{block}.1", count, unet, unet.depths[level])
            before = count
        if level:
            shapes |= _both(f"output_blocks.{block}.{2 if unet.depths[level] else 1}.conv", (count, count, 3, 3))
    return shapes


def _residual(name: str, before: int, count: int, time: int) -> Shapes:
    return {
        **_both(f"{name}.in_layers.0", (before,)),
        **_both(f"{name}.in_layers.2", (count, before, 3, 3)),
        **_both(f"{name}.emb_layers.1", (count, time)),
        **_both(f"{name}.out_layers.0", (count,)),
        **_both(f"{name}.out_layers.3", (count, count, 3, 3)),
        **(_both(f"{name}.skip_connection", (count, before, 1, 1)) if before != count else {}),
    }


def _transformer(name: str, count: int, unet: UNet, depth: int) -> Shapes:
    if not depth:
        return {}
    projection = (count, count) if unet.linear else (count, count, 1, 1)
    shapes = {
        **_both(f"{name}.norm", (count,)),
        **_both(f"{name}.proj_in", projection),
        **_both(f"{name}.proj_out", projection),
    }
    for block in range(depth):
        shapes |= _transformer_block(f"{name}.transformer_blocks.{block}", count, unet.context)
    return shapes


def _transformer_block(inner: str, count: int, context: int) -> Shapes:
    shapes = {
        **_both(f"{inner}.ff.net.0.proj", (count * 8, count)),
        **_both(f"{inner}.ff.net.2", (count, count * 4)),
    }
    for attention, source in (("attn1", count), ("attn2", context)):
        shapes[f"{inner}.{attention}.to_q.weight"] = (count, count)
        shapes[f"{inner}.{attention}.to_k.weight"] = shapes[f"{inner}.{attention}.to_v.weight"] = (count, source)
        shapes |= _both(f"{inner}.{attention}.to_out.0", (count, count))
    for norm in ("norm1", "norm2", "norm3"):
        shapes |= _both(f"{inner}.{norm}", (count,))
    return shapes


# --- VAE -------------------------------------------------------------------------------------------------------------


def vae_shapes(channels: tuple[int, ...], blocks: int = 1) -> Shapes:
    first, last = channels[0], channels[-1]
    shapes = {
        **_both("quant_conv", (8, 8, 1, 1)),
        **_both("post_quant_conv", (4, 4, 1, 1)),
        **_both("encoder.conv_in", (first, 3, 3, 3)),
        **_both("encoder.norm_out", (last,)),
        **_both("encoder.conv_out", (8, last, 3, 3)),
        **_both("decoder.conv_in", (last, 4, 3, 3)),
        **_both("decoder.norm_out", (first,)),
        **_both("decoder.conv_out", (3, first, 3, 3)),
    }
    for side in ("encoder", "decoder"):
        shapes |= _vae_block(f"{side}.mid.block_1", last, last) | _vae_block(f"{side}.mid.block_2", last, last)
        shapes |= _both(f"{side}.mid.attn_1.norm", (last,))
        for part in ("q", "k", "v", "proj_out"):
            shapes |= _both(f"{side}.mid.attn_1.{part}", (last, last, 1, 1))
    for level, count in enumerate(channels):
        shapes |= _vae_blocks(f"encoder.down.{level}", channels[max(0, level - 1)], count, blocks)
        shapes |= _vae_blocks(f"decoder.up.{level}", channels[min(level + 1, len(channels) - 1)], count, blocks + 1)
        if level < len(channels) - 1:
            shapes |= _both(f"encoder.down.{level}.downsample.conv", (count, count, 3, 3))
        if level > 0:
            shapes |= _both(f"decoder.up.{level}.upsample.conv", (count, count, 3, 3))
    return shapes


def _vae_blocks(name: str, before: int, count: int, blocks: int) -> Shapes:
    shapes: Shapes = {}
    for block in range(blocks):
        shapes |= _vae_block(f"{name}.block.{block}", count if block else before, count)
    return shapes


def _vae_block(name: str, before: int, count: int) -> Shapes:
    return {
        **_both(f"{name}.norm1", (before,)),
        **_both(f"{name}.conv1", (count, before, 3, 3)),
        **_both(f"{name}.norm2", (count,)),
        **_both(f"{name}.conv2", (count, count, 3, 3)),
        **(_both(f"{name}.nin_shortcut", (count, before, 1, 1)) if before != count else {}),
    }


# --- text encoders ---------------------------------------------------------------------------------------------------


def clip_shapes(text: Text) -> Shapes:
    """In the names of transformers."""
    shapes = {
        "embeddings.token_embedding.weight": (VOCABULARY, text.width),
        "embeddings.position_embedding.weight": (POSITIONS, text.width),
        **_both("final_layer_norm", (text.width,)),
    }
    for layer in range(text.layers):
        name = f"encoder.layers.{layer}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= _both(f"{name}.self_attn.{part}", (text.width, text.width))
        shapes |= _both(f"{name}.layer_norm1", (text.width,)) | _both(f"{name}.layer_norm2", (text.width,))
        shapes |= _both(f"{name}.mlp.fc1", (text.mlp, text.width)) | _both(f"{name}.mlp.fc2", (text.width, text.mlp))
    return shapes


def open_clip_shapes(text: Text) -> Shapes:
    shapes = {
        "token_embedding.weight": (VOCABULARY, text.width),
        "positional_embedding": (POSITIONS, text.width),
        "text_projection": (text.width, text.width),
        "logit_scale": (),
        **_both("ln_final", (text.width,)),
    }
    for layer in range(text.layers):
        name = f"transformer.resblocks.{layer}"
        shapes[f"{name}.attn.in_proj_weight"] = (3 * text.width, text.width)
        shapes[f"{name}.attn.in_proj_bias"] = (3 * text.width,)
        shapes |= _both(f"{name}.attn.out_proj", (text.width, text.width))
        shapes |= _both(f"{name}.ln_1", (text.width,)) | _both(f"{name}.ln_2", (text.width,))
        shapes |= _both(f"{name}.mlp.c_fc", (text.mlp, text.width)) | _both(
            f"{name}.mlp.c_proj", (text.width, text.mlp)
        )
    return shapes


def total(shapes: Shapes, prefixes: Iterable[str]) -> int:
    """Values in all tensors whose names begin with one of the prefixes."""
    return sum(prod(shape) for name, shape in shapes.items() if name.startswith(tuple(prefixes)))
