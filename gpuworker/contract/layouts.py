"""The two ways in which checkpoints name their tensors: the original (LDM) layout and that of diffusers, told apart and translated.

Everything else reads the original layout. Names only, no weights: standard library only, so that the web side can ask, too.

Source: the block order of ``UNetModel`` in CompVis' ``ldm/modules/diffusionmodules/openaimodel.py`` and of ``Encoder`` and
``Decoder`` in ``model.py`` there; the names of ``UNet2DConditionModel`` and ``AutoencoderKL`` in diffusers 0.42.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

Shapes = Mapping[str, tuple[int, ...]]

UNET = "model.diffusion_model."
VAE = "first_stage_model."
CLIP_TEXT = "cond_stage_model.transformer."
OPEN_CLIP_TEXT = "cond_stage_model.model."
SDXL_CLIP_TEXT = "conditioner.embedders.0.transformer."
SDXL_OPEN_CLIP_TEXT = "conditioner.embedders.1.model."
REFINER_TEXT = "conditioner.embedders.0.model."

FOLDER_PARTS = ("unet", "transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3")
"""Subfolders of a model in diffusers layout that hold weights. In one file, their names and a dot stand before their tensors'."""
DIFFUSERS_UNET = "unet."
DIFFUSERS_VAE = "vae."
DIFFUSERS_TEXT = "text_encoder."
DIFFUSERS_SECOND_TEXT = "text_encoder_2."
SD2_TURBO = "conditioner.embedders.0."
SD2_TEXT_WIDTH = 1024

_RESIDUAL_PARTS = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "class_embedding.linear_1": "label_emb.0.0",
    "class_embedding.linear_2": "label_emb.0.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_UNET_BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")
_UNET_MIDDLE = re.compile(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)")
_VAE_BLOCK = re.compile(r"(encoder|decoder)\.(?:down|up)_blocks\.(\d+)\.(resnets|downsamplers|upsamplers)\.(\d+)\.(.+)")
_VAE_MIDDLE = re.compile(r"(encoder|decoder)\.mid_block\.(resnets|attentions)\.(\d+)\.(.+)")
_VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
    # Until diffusers 0.16.
    "query": "q",
    "key": "k",
    "value": "v",
    "proj_attn": "proj_out",
}


def original_names(shapes: Shapes) -> dict[str, str]:
    """Every name in a checkpoint file → its name in the original layout; most files are written in that already."""
    if is_diffusers_checkpoint(shapes):
        return _from_diffusers(shapes)
    if shapes.get(REFINER_TEXT + "ln_final.weight") == (SD2_TEXT_WIDTH,):
        # SD 2.1 Turbo comes with SDXL's prefix; A1111 tells it from the refiner by the width, too.
        return {name: _with_prefix(name, SD2_TURBO, "cond_stage_model.") for name in shapes}
    return {name: name for name in shapes}


def is_diffusers_checkpoint(names: Collection[str]) -> bool:
    return DIFFUSERS_UNET + "conv_in.weight" in names


def _with_prefix(name: str, old: str, new: str) -> str:
    return new + name.removeprefix(old) if name.startswith(old) else name


def _from_diffusers(shapes: Shapes) -> dict[str, str]:
    first, second = _text_places(shapes)
    unet = unet_names(name.removeprefix(DIFFUSERS_UNET) for name in shapes if name.startswith(DIFFUSERS_UNET))
    vae = vae_names(name.removeprefix(DIFFUSERS_VAE) for name in shapes if name.startswith(DIFFUSERS_VAE))
    names = {DIFFUSERS_UNET + name: UNET + original for name, original in unet.items()}
    names |= {DIFFUSERS_VAE + name: VAE + original for name, original in vae.items()}
    for name in shapes.keys() - names.keys():
        names[name] = _with_prefix(_with_prefix(name, DIFFUSERS_TEXT, first), DIFFUSERS_SECOND_TEXT, second)
    return names


def _text_places(shapes: Shapes) -> tuple[str, str]:
    """Where the first and the second text encoder would lie; their tensors keep the names transformers gives them."""
    has_second = any(name.startswith(DIFFUSERS_SECOND_TEXT) for name in shapes)
    has_first = any(name.startswith(DIFFUSERS_TEXT) for name in shapes)
    if has_second and not has_first:
        return CLIP_TEXT, REFINER_TEXT
    if has_second or DIFFUSERS_UNET + "add_embedding.linear_1.weight" in shapes:
        return SDXL_CLIP_TEXT, SDXL_OPEN_CLIP_TEXT
    return (OPEN_CLIP_TEXT if _has_linear_projections(shapes) else CLIP_TEXT), SDXL_OPEN_CLIP_TEXT


def _has_linear_projections(shapes: Shapes) -> bool:
    """As SD 2 and later have where SD 1 has convolutions."""
    return any(name.endswith(".proj_in.weight") and len(shape) == 2 for name, shape in shapes.items())


# --- UNet ------------------------------------------------------------------------------------------------------------


def unet_names(names: Iterable[str]) -> dict[str, str]:
    """All names of a diffusers UNet → the original names, both without prefix; a name that is none of them stays."""
    names = list(names)
    layers = _residual_blocks(names)
    attentive = {
        match[2] for name in names if (match := _UNET_BLOCK.match(name)) and match.group(1, 3) == ("up", "attentions")
    }
    return {name: _unet_name(name, layers, attentive) for name in names}


def _residual_blocks(names: Iterable[str]) -> int:
    """Per level of the way down; the way up has one more."""
    first_level = re.compile(r"down_blocks\.0\.resnets\.(\d+)\.")
    return max((int(match[1]) + 1 for name in names if (match := first_level.match(name))), default=1)


def _unet_name(name: str, layers: int, attentive: Collection[str]) -> str:
    if match := _UNET_MIDDLE.match(name):
        if match[1] == "attentions":
            return f"middle_block.1.{match[3]}"
        return f"middle_block.{2 * int(match[2])}.{_residual_part(match[3])}"
    if match := _UNET_BLOCK.match(name):
        side, level, kind, index, rest = match.groups()
        block = int(level) * (layers + 1)
        if kind == "downsamplers":
            return f"input_blocks.{block + layers + 1}.0.{rest.replace('conv.', 'op.')}"
        if kind == "upsamplers":
            return f"output_blocks.{block + layers}.{2 if level in attentive else 1}.{rest}"
        place = f"input_blocks.{1 + block + int(index)}" if side == "down" else f"output_blocks.{block + int(index)}"
        return f"{place}.0.{_residual_part(rest)}" if kind == "resnets" else f"{place}.1.{rest}"
    return _renamed(name, _UNET_ENDS)


def _residual_part(name: str) -> str:
    return _renamed(name, _RESIDUAL_PARTS)


def _renamed(name: str, parts: Mapping[str, str]) -> str:
    """``<part>.weight`` or ``<part>.bias`` with the part's other name."""
    part, _, ending = name.rpartition(".")
    return f"{parts[part]}.{ending}" if part in parts else name


# --- VAE -------------------------------------------------------------------------------------------------------------


def vae_names(names: Iterable[str]) -> dict[str, str]:
    """All names of a diffusers VAE → the original names, both without prefix; a name that is none of them stays.

    Attention has 1×1 convolutions there and linear layers here.
    """
    names = list(names)
    levels = {int(match[2]) for name in names if (match := _VAE_BLOCK.match(name)) and match[1] == "decoder"}
    return {name: _vae_name(name, last_level=max(levels, default=0)) for name in names}


def _vae_name(name: str, *, last_level: int) -> str:
    if match := _VAE_MIDDLE.match(name):
        side, kind, index, rest = match.groups()
        if kind == "attentions":
            return f"{side}.mid.attn_1.{_renamed(rest, _VAE_ATTENTION)}"
        return f"{side}.mid.block_{int(index) + 1}.{_vae_residual_part(rest)}"
    if match := _VAE_BLOCK.match(name):
        side, level, kind, index, rest = match.groups()
        place = f"encoder.down.{level}" if side == "encoder" else f"decoder.up.{last_level - int(level)}"
        if kind == "resnets":
            return f"{place}.block.{index}.{_vae_residual_part(rest)}"
        return f"{place}.{'downsample' if kind == 'downsamplers' else 'upsample'}.{rest}"
    return name.replace("conv_norm_out", "norm_out")


def _vae_residual_part(name: str) -> str:
    return name.replace("conv_shortcut", "nin_shortcut")
