"""Random checkpoints in the SD 1.x key layout, small enough to be written and rendered within a test. No test lives here."""

from __future__ import annotations

from math import prod
from pathlib import Path

import torch
from safetensors.torch import save_file

Shapes = dict[str, tuple[int, ...]]


def checkpoint_shapes(
    *,
    unet: tuple[int, ...] = (32, 64),
    vae: tuple[int, ...] = (8, 8, 8, 8),
    width: int = 16,
    layers: int = 2,
    mlp: int = 32,
) -> Shapes:
    """Names and shapes of a whole checkpoint: one block per level, attention at every level."""
    return {
        **{f"model.diffusion_model.{name}": shape for name, shape in _unet(unet, width).items()},
        **{f"first_stage_model.{name}": shape for name, shape in _vae(vae).items()},
        **{
            f"cond_stage_model.transformer.text_model.{name}": shape
            for name, shape in _text(width, layers, mlp).items()
        },
    }


def write_checkpoint(path: Path, shapes: Shapes | None = None, *, seed: int = 0) -> Path:
    generator = torch.Generator().manual_seed(seed)
    save_file({name: _weights(name, shape, generator) for name, shape in (shapes or checkpoint_shapes()).items()}, path)
    return path


def _weights(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    if len(shape) == 1:
        return torch.ones(shape) if name.endswith("weight") else torch.zeros(shape)
    return torch.randn(shape, generator=generator) / prod(shape[1:]) ** 0.5


def _both(name: str, weight: tuple[int, ...]) -> Shapes:
    return {f"{name}.weight": weight, f"{name}.bias": weight[:1]}


def _unet(channels: tuple[int, ...], context: int) -> Shapes:
    time, first = channels[0] * 4, channels[0]
    shapes = {
        **_both("time_embed.0", (time, first)),
        **_both("time_embed.2", (time, time)),
        **_both("input_blocks.0.0", (first, 4, 3, 3)),
        **_both("out.0", (first,)),
        **_both("out.2", (4, first, 3, 3)),
    }
    skips, before, block = [first], first, 1
    for level, count in enumerate(channels):
        shapes |= _residual(f"input_blocks.{block}.0", before, count, time)
        shapes |= _transformer(f"input_blocks.{block}.1", count, context)
        skips.append(count)
        before, block = count, block + 1
        if level < len(channels) - 1:
            shapes |= _both(f"input_blocks.{block}.0.op", (count, count, 3, 3))
            skips.append(count)
            block += 1
    shapes |= _residual("middle_block.0", before, before, time)
    shapes |= _transformer("middle_block.1", before, context)
    shapes |= _residual("middle_block.2", before, before, time)
    for index, count in enumerate(sorted([*channels, *channels], reverse=True)):
        shapes |= _residual(f"output_blocks.{index}.0", before + skips.pop(), count, time)
        shapes |= _transformer(f"output_blocks.{index}.1", count, context)
        before = count
        if index % 2 == 1 and skips:
            shapes |= _both(f"output_blocks.{index}.2.conv", (count, count, 3, 3))
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


def _transformer(name: str, count: int, context: int) -> Shapes:
    inner = f"{name}.transformer_blocks.0"
    shapes = {
        **_both(f"{name}.norm", (count,)),
        **_both(f"{name}.proj_in", (count, count, 1, 1)),
        **_both(f"{name}.proj_out", (count, count, 1, 1)),
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


def _vae(channels: tuple[int, ...]) -> Shapes:
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
        shapes |= _vae_block(f"encoder.down.{level}.block.0", channels[max(0, level - 1)], count)
        shapes |= _vae_block(f"decoder.up.{level}.block.0", channels[min(level + 1, len(channels) - 1)], count)
        shapes |= _vae_block(f"decoder.up.{level}.block.1", count, count)
        if level < len(channels) - 1:
            shapes |= _both(f"encoder.down.{level}.downsample.conv", (count, count, 3, 3))
        if level > 0:
            shapes |= _both(f"decoder.up.{level}.upsample.conv", (count, count, 3, 3))
    return shapes


def _vae_block(name: str, before: int, count: int) -> Shapes:
    return {
        **_both(f"{name}.norm1", (before,)),
        **_both(f"{name}.conv1", (count, before, 3, 3)),
        **_both(f"{name}.norm2", (count,)),
        **_both(f"{name}.conv2", (count, count, 3, 3)),
        **(_both(f"{name}.nin_shortcut", (count, before, 1, 1)) if before != count else {}),
    }


def _text(width: int, layers: int, mlp: int) -> Shapes:
    shapes = {
        "embeddings.token_embedding.weight": (49408, width),
        "embeddings.position_embedding.weight": (77, width),
        **_both("final_layer_norm", (width,)),
    }
    for layer in range(layers):
        name = f"encoder.layers.{layer}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= _both(f"{name}.self_attn.{part}", (width, width))
        shapes |= _both(f"{name}.layer_norm1", (width,)) | _both(f"{name}.layer_norm2", (width,))
        shapes |= _both(f"{name}.mlp.fc1", (mlp, width)) | _both(f"{name}.mlp.fc2", (width, mlp))
    return shapes
