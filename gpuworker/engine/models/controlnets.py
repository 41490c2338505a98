"""ControlNet files to networks on the device: original and diffusers key layouts, for the family of the checkpoint they go with.

What such a network does to a pass is in ``sampling.control``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel
from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint

from gpuworker.engine.errors import CheckpointError
from gpuworker.engine.models.loader import Checkpoint, Place, fill
from gpuworker.engine.models.tensor_files import Tensors, read_safetensors

ORIGINAL_PREFIX = "control_model."
ORIGINAL_MARK = "input_hint_block.0.weight"
DIFFUSERS_MARK = "controlnet_cond_embedding.conv_in.weight"
VECTOR_NAMES = {"label_emb.0.0.": "class_embedding.linear_1.", "label_emb.0.2.": "class_embedding.linear_2.",
                "add_embedding.": "class_embedding."}  # fmt: skip
"""Where SDXL's vector goes in: names of both layouts → ours, as the UNet takes it."""


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

    def fits(self, checkpoint: Checkpoint) -> bool:
        """Whether what it says can be added to this UNet."""
        mine, unet = self.model.config, checkpoint.unet.config
        same = ("cross_attention_dim", "layers_per_block", "projection_class_embeddings_input_dim")
        return list(mine.block_out_channels) == list(unet.block_out_channels) and all(
            mine[name] == unet[name] for name in same
        )


def load_controlnet(path: Path, *, like: Checkpoint, device: torch.device, dtype: torch.dtype) -> ControlNetwork:
    """Load a ControlNet.

    Args:
        like: The checkpoint it is wanted for: how many attention heads there are is in no tensor's shape.
    Raises:
        CheckpointError: The file is damaged, or no ControlNet the engine knows.
    """
    tensors = _in_diffusers_names(read_safetensors(path), path.name, like)
    try:
        config = _config(tensors, like.unet.config)
    except (KeyError, IndexError, ValueError) as error:
        raise CheckpointError(f"{path.name} is no complete ControlNet: {error}.", family="controlnet") from error
    with torch.device("meta"):
        model: Any = ControlNetModel(**config)
    names = {name: name for name in model.state_dict()}
    fill(model, tensors, names, "ControlNet", "controlnet", Place(device, dtype))
    encoder, model.controlnet_cond_embedding = model.controlnet_cond_embedding, torch.nn.Identity()
    return ControlNetwork(model, encoder)


def _in_diffusers_names(tensors: Tensors, file: str, like: Checkpoint) -> Tensors:
    tensors = {name.removeprefix(ORIGINAL_PREFIX): tensor for name, tensor in tensors.items()}
    if DIFFUSERS_MARK not in tensors:
        if ORIGINAL_MARK not in tensors:
            raise CheckpointError(f"{file} holds no ControlNet: nothing in it reads a map.", family="controlnet")
        converted = convert_controlnet_checkpoint(tensors, like.unet.config)
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
