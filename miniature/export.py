"""The trained networks as ONE safetensors file in the original SD 1.x key layout, float16, as released checkpoints have it.

The names are the inverse of what diffusers does when it reads such a file; the test reads the file back with the product's
own loader and compares every tensor.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextModel

SD_SCALE = 0.18215
"""Every SD 1.x program multiplies encoded latents by this, so it is divided out of the VAE here."""
LOG_VARIANCE = -30.0
"""Of the VAE's posterior: so small that encoding is deterministic."""
Tensors = dict[str, torch.Tensor]

UNET_PLACES = (
    (r"time_embedding\.linear_1", r"time_embed.0"),
    (r"time_embedding\.linear_2", r"time_embed.2"),
    (r"conv_in", r"input_blocks.0.0"),
    (r"conv_norm_out", r"out.0"),
    (r"conv_out", r"out.2"),
    (r"mid_block\.resnets\.0", r"middle_block.0"),
    (r"mid_block\.attentions\.0", r"middle_block.1"),
    (r"mid_block\.resnets\.1", r"middle_block.2"),
)
RESNET_PARTS = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
ATTENTION_PARTS = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def save_checkpoint(
    path: Path, *, unet: UNet2DConditionModel, vae: AutoencoderKL, text_encoder: CLIPTextModel, latent_std: float
) -> None:
    """Write the checkpoint; the same weights give the same bytes.

    Args:
        latent_std: The UNet was trained on encoded latents divided by this.
    """
    tensors = {
        **named("model.diffusion_model.", unet_tensors(unet)),
        **named("first_stage_model.", vae_tensors(vae, latent_std=latent_std)),
        **named("cond_stage_model.transformer.", text_tensors(text_encoder)),
    }
    halves = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    halves |= schedule_tensors()
    draft = path.with_suffix(f".{os.getpid()}.draft")
    save_file({name: halves[name].contiguous() for name in sorted(halves)}, draft, metadata={"format": "pt"})
    os.replace(draft, path)


def named(prefix: str, tensors: Tensors) -> Tensors:
    return {prefix + name: tensor.detach() for name, tensor in tensors.items()}


def unet_tensors(unet: UNet2DConditionModel) -> Tensors:
    layers = unet.config.layers_per_block
    return {unet_name(name, layers): tensor for name, tensor in unet.state_dict().items()}


def unet_name(name: str, layers: int) -> str:
    """A diffusers name → its place in ``input_blocks``, ``middle_block``, ``output_blocks``."""
    for pattern, place in UNET_PLACES:
        if re.match(pattern + r"\.", name):
            return resnet_part(re.sub(pattern, place, name, count=1))
    side, level, kind, index, rest = re.fullmatch(
        r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)", name
    ).groups()  # type: ignore[union-attr]
    stride = layers + 1
    if kind == "downsamplers":
        return f"input_blocks.{(int(level) + 1) * stride}.0.op.{rest.removeprefix('conv.')}"
    if kind == "upsamplers":
        return f"output_blocks.{int(level) * stride + layers}.2.{rest}"
    first = 1 if side == "down" else 0
    block = f"{'input' if side == 'down' else 'output'}_blocks.{first + int(level) * stride + int(index)}"
    return resnet_part(f"{block}.{0 if kind == 'resnets' else 1}.{rest}")


def resnet_part(name: str) -> str:
    head, part, tail = name.rsplit(".", 2)
    return f"{head}.{RESNET_PARTS[part]}.{tail}" if part in RESNET_PARTS and "transformer_blocks" not in head else name


def vae_tensors(vae: AutoencoderKL, *, latent_std: float) -> Tensors:
    tensors = {}
    for name, tensor in vae.state_dict().items():
        as_convolution = ".attentions." in name and tensor.ndim == 2
        tensors[vae_name(name, levels=len(vae.config.block_out_channels))] = (
            tensor[:, :, None, None] if as_convolution else tensor
        )
    factor, means = latent_std * SD_SCALE, vae.config.latent_channels
    tensors["quant_conv.weight"] = torch.cat(
        [tensors["quant_conv.weight"][:means] / factor, torch.zeros_like(tensors["quant_conv.weight"][means:])]
    )
    tensors["quant_conv.bias"] = torch.cat(
        [tensors["quant_conv.bias"][:means] / factor, torch.full((means,), LOG_VARIANCE)]
    )
    tensors["post_quant_conv.weight"] = tensors["post_quant_conv.weight"] * factor
    return tensors


def vae_name(name: str, *, levels: int) -> str:
    name = re.sub(r"down_blocks\.(\d+)\.resnets\.(\d+)", r"down.\1.block.\2", name)
    name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d+)\.", lambda found: f"up.{levels - 1 - int(found[1])}.", name)
    name = re.sub(r"(up\.\d+)\.resnets\.(\d+)", r"\1.block.\2", name).replace(".upsamplers.0", ".upsample")
    name = re.sub(r"mid_block\.resnets\.(\d+)", lambda found: f"mid.block_{int(found[1]) + 1}", name)
    if "mid_block.attentions.0." in name:
        head, _, rest = name.partition("mid_block.attentions.0.")
        part, _, tail = rest.rpartition(".")
        name = f"{head}mid.attn_1.{ATTENTION_PARTS[part]}.{tail}"
    return name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")


def text_tensors(text_encoder: CLIPTextModel) -> Tensors:
    tensors = {
        name if name.startswith("text_model.") else f"text_model.{name}": tensor
        for name, tensor in text_encoder.state_dict().items()
    }
    tensors["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    return tensors


def schedule_tensors() -> Tensors:
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    cumulative = (1 - betas).cumprod(0)
    previous = torch.cat([torch.ones(1, dtype=torch.float64), cumulative[:-1]])
    return {
        "betas": betas.float(),
        "alphas_cumprod": cumulative.float(),
        "alphas_cumprod_prev": previous.float(),
    }
