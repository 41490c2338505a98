"""ControlNet files to networks on the device: original and diffusers key layouts, for the family of the checkpoint they go with.

What such a network does to a pass is in ``sampling.control``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel
from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint

from gpuworker.contract.families import CONTEXT_WIDTHS, FAMILY_NAMES, RENDERABLE_CONTROL, recognise
from gpuworker.engine.errors import CheckpointError, ControlNetworkError
from gpuworker.engine.models.loader import Checkpoint, Place, fill
from gpuworker.engine.models.tensor_files import Tensors, read_safetensors

ORIGINAL_MARK = "input_hint_block.0.weight"
DIFFUSERS_MARK = "controlnet_cond_embedding.conv_in.weight"
VECTOR_NAMES = {"label_emb.0.0.": "class_embedding.linear_1.", "label_emb.0.2.": "class_embedding.linear_2.",
                "add_embedding.": "class_embedding."}  # fmt: skip
"""Where SDXL's vector goes in: names of both layouts → ours, as the UNet takes it."""
DOWNSAMPLER = r"input_blocks\.(\d+)\.0\.op\.weight"
"""The last block of a level, and so what tells how many residual blocks a level has."""
LATENT_CHANNELS, COLOURS = 4, 3
BUILD = {
    "block_out_channels": "its levels are of the widths",
    "layers_per_block": "its residual blocks per level are",
    "cross_attention_dim": "it reads text of the width",
    "projection_class_embeddings_input_dim": "its vector of sizes has the length",
    "in_channels": "the channels of its latents are",
    "conditioning_channels": "the channels of its maps are",
}
"""What must be as in the checkpoint's UNet, and how it is said."""


@dataclass(frozen=True, slots=True)
class ControlNetwork:
    """One ControlNet, ready to run."""

    model: Any
    """``ControlNetModel`` without the part that reads the map."""
    hint_encoder: Any
    """That part: it is run once per pass, not once per step."""

    @property
    def size_bytes(self) -> int:
        parts = (self.model, self.hint_encoder)
        return sum(tensor.nbytes for part in parts for tensor in part.state_dict().values())


def load_controlnet(path: Path, *, like: Checkpoint, device: torch.device, dtype: torch.dtype) -> ControlNetwork:
    """Load a ControlNet.

    Args:
        like: The checkpoint it is wanted for: how many attention heads there are is in no tensor's shape.
    Raises:
        CheckpointError: The file is damaged, or no ControlNet the engine knows.
        ControlNetworkError: It was made for checkpoints of another build.
    """
    tensors = read_safetensors(path)
    _require_renderable(tensors, path.name)
    tensors = _in_diffusers_names(_without_prefix(tensors), path.name)
    try:
        config = _config(tensors, like.unet.config)
    except (KeyError, IndexError, ValueError) as error:
        raise CheckpointError(f"{path.name} is no complete ControlNet: {error}.", family="controlnet") from error
    require_same_build(config, like)
    with torch.device("meta"):
        model: Any = ControlNetModel(**config)
    names = {name: name for name in model.state_dict()}
    fill(model, tensors, names, "ControlNet", "controlnet", Place(device, dtype))
    encoder, model.controlnet_cond_embedding = model.controlnet_cond_embedding, torch.nn.Identity()
    return ControlNetwork(model, encoder)


def require_same_build(config: Mapping[str, Any], checkpoint: Checkpoint) -> None:
    """Whether what such a network says can be added to the checkpoint's UNet.

    Raises:
        ControlNetworkError: It cannot; the message goes after the network's name.
    """
    theirs = {**checkpoint.unet.config, "in_channels": LATENT_CHANNELS, "conditioning_channels": COLOURS}
    for name, what in BUILD.items():
        mine, wanted = config[name], theirs[name]
        if (list(mine) if isinstance(mine, Sequence) else mine) == (
            list(wanted) if isinstance(wanted, Sequence) else wanted
        ):
            continue
        family = CONTEXT_WIDTHS.get(config["cross_attention_dim"])
        made_for = FAMILY_NAMES[family] if family and family != checkpoint.family else "checkpoints of another build"
        raise ControlNetworkError(
            f"is for {made_for}, the checkpoint is {FAMILY_NAMES[checkpoint.family]}: {what} {mine}, not {wanted}."
        )


def _require_renderable(tensors: Tensors, file: str) -> None:
    """Raises: CheckpointError: It is no ControlNet, or one of a sort that is used in another way."""
    found = recognise({name: tuple(tensor.shape) for name, tensor in tensors.items()})
    if found.make and found.make not in RENDERABLE_CONTROL:
        message = f"{file} holds a control network of the sort {found.make}, which the engine does not know to use."
        raise CheckpointError(message, family="controlnet")


def _without_prefix(tensors: Tensors) -> Tensors:
    """The network alone: names without what stands in front of each (``control_model.``, ``controlnet.`` …)."""
    for name in tensors:
        for mark in (ORIGINAL_MARK, DIFFUSERS_MARK):
            prefix = name.removesuffix(mark)
            if prefix != name and (not prefix or prefix.endswith(".")):
                return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
    return tensors


def _in_diffusers_names(tensors: Tensors, file: str) -> Tensors:
    if DIFFUSERS_MARK not in tensors:
        if ORIGINAL_MARK not in tensors:
            raise CheckpointError(f"{file} holds no ControlNet: nothing in it reads a map.", family="controlnet")
        downsamplers = (int(match[1]) for name in tensors if (match := re.match(DOWNSAMPLER, name)))
        converted = convert_controlnet_checkpoint(tensors, {"layers_per_block": min(downsamplers, default=2) - 1})
        tensors = {**{name: tensors[name] for name in tensors if name.startswith("label_emb.")}, **converted}
    return {_renamed(name): tensor for name, tensor in tensors.items() if tensor is not None}


def _renamed(name: str) -> str:
    for theirs, ours in VECTOR_NAMES.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def _config(tensors: Tensors, unet: Mapping[str, Any]) -> dict[str, Any]:
    """Constructor arguments; what shapes cannot tell is as in the UNet."""
    levels = _count(tensors, r"down_blocks\.(\d+)\.")
    depths = [
        _count(tensors, rf"down_blocks\.{level}\.attentions\.0\.transformer_blocks\.(\d+)\.") for level in range(levels)
    ]
    middle = _count(tensors, r"mid_block\.attentions\.0\.transformer_blocks\.(\d+)\.")
    context = next((name for name in tensors if name.endswith("attn2.to_k.weight")), None)
    projection = next((name for name in tensors if name.endswith(".proj_in.weight")), None)
    vector = tensors.get("class_embedding.linear_1.weight")
    hint = "controlnet_cond_embedding"
    return {
        "in_channels": tensors["conv_in.weight"].shape[1],
        "conditioning_channels": tensors[f"{hint}.conv_in.weight"].shape[1],
        "conditioning_embedding_out_channels": [
            tensors[f"{hint}.{part}.weight"].shape[0] for part in ("conv_in", "blocks.1", "blocks.3", "blocks.5")
        ],
        "block_out_channels": [
            tensors[f"down_blocks.{level}.resnets.0.conv2.weight"].shape[0] for level in range(levels)
        ],
        "layers_per_block": _count(tensors, r"down_blocks\.0\.resnets\.(\d+)\."),
        "down_block_types": ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths],
        "mid_block_type": "UNetMidBlock2DCrossAttn" if middle else "UNetMidBlock2D",
        # The middle is as deep as the last entry says, whether its level has attention or not.
        "transformer_layers_per_block": [depth or middle or 1 for depth in depths],
        "cross_attention_dim": tensors[context].shape[1] if context else unet["cross_attention_dim"],
        "use_linear_projection": bool(projection and tensors[projection].dim() == 2),
        "attention_head_dim": unet["attention_head_dim"],
        "norm_num_groups": unet["norm_num_groups"],
        "class_embed_type": None if vector is None else "projection",
        "projection_class_embeddings_input_dim": None if vector is None else vector.shape[1],
    }


def _count(names: Tensors, pattern: str) -> int:
    return max((int(match[1]) for name in names if (match := re.match(pattern, name))), default=-1) + 1
