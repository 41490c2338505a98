"""From the tensors of a checkpoint to the configurations diffusers and transformers build networks from.

The structure is read off the shapes; what shapes cannot tell (attention heads) comes from an LDM-style YAML beside the file, or
from the rules of the family. A file's name says nothing. No weights are loaded here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import gcd
from pathlib import Path
from typing import Any

import yaml

from gpuworker.contract.families import TEXT_PREFIXES, UNET, VAE, Recognition, Shapes, recognise
from gpuworker.engine.errors import CheckpointError

SD1_UNET_HEADS = 8
MAX_NORM_GROUPS = 32
HEAD_CHANNELS = 64
"""Of the UNets of SD 2 and SDXL, and of every CLIP."""
SMALL_HEAD_CHANNELS = 8
INPUT_CHANNELS = (4, 8, 9)
SIZED_FAMILIES = ("sdxl", "sdxl-refiner")
SD_LATENT_SCALE = 0.18215
SDXL_LATENT_SCALE = 0.13025
SD_BETAS = (0.00085, 0.012)
FAMILY_NAMES = {
    "sd1": "Stable Diffusion 1",
    "sd2": "Stable Diffusion 2",
    "sdxl": "SDXL",
    "sdxl-refiner": "the SDXL refiner",
    "sd3": "Stable Diffusion 3",
    "flux": "Flux",
    "lora": "a LoRA",
    "vae": "a separate VAE",
    "embedding": "a textual inversion",
    "controlnet": "a ControlNet",
    "upscaler": "an upscaler",
}


@dataclass(frozen=True, slots=True)
class Architecture:
    """Constructor arguments of the three networks, and the numbers of the noise schedule."""

    family: str
    unet: dict[str, Any]
    vae: dict[str, Any]
    text: tuple[dict[str, Any], ...]
    """One per text encoder, in the order of ``TEXT_PREFIXES``."""
    latent_scale: float
    beta_range: tuple[float, float]
    """First and last beta of the scaled-linear schedule of 1000 steps."""
    prediction: str | None = None
    """``eps`` or ``v``; None has to be found out by running the network (SD 2 without a YAML)."""
    size_embedding_width: int | None = None
    """Values each number of SDXL's size conditioning is embedded with; None where there is none."""


@dataclass(frozen=True, slots=True)
class _Yaml:
    """The few lines of an LDM-style YAML that shapes cannot tell."""

    model: Mapping[str, Any] = field(default_factory=dict)
    unet: Mapping[str, Any] = field(default_factory=dict)
    text_config: Mapping[str, Any] = field(default_factory=dict)
    """The ``config.json`` of the text encoder the YAML names, where that folder lies beside it."""
    names_text_encoder: bool = False


def architecture_of(shapes: Shapes, *, config_path: Path | None = None) -> Architecture:
    """Infer the networks of a checkpoint.

    Raises:
        CheckpointError: The file is of another family, is incomplete, or asks for something the engine cannot do.
    """
    family = _renderable(recognise(shapes))
    config = _read_yaml(config_path)
    try:
        unet = _unet_config(_under(shapes, UNET), config.unet, family)
        text = tuple(_text_config(_under(shapes, prefix), prefix, config) for prefix in TEXT_PREFIXES[family])
        default_scale = SDXL_LATENT_SCALE if family in SIZED_FAMILIES else SD_LATENT_SCALE
        return Architecture(
            family=family,
            unet=unet,
            vae=vae_config(_under(shapes, VAE)),
            text=text,
            prediction=_prediction(config, family),
            size_embedding_width=_size_embedding_width(unet, text[-1], family),
            latent_scale=float(config.model.get("scale_factor", default_scale)),
            beta_range=(
                float(config.model.get("linear_start", SD_BETAS[0])),
                float(config.model.get("linear_end", SD_BETAS[1])),
            ),
        )
    except (KeyError, IndexError) as error:
        raise CheckpointError(f"The checkpoint lacks the tensor {error}.", family="sd1") from error


def _prediction(config: _Yaml, family: str) -> str | None:
    if asked := config.model.get("parameterization"):
        return str(asked)
    return None if family == "sd2" else "eps"


def _size_embedding_width(unet: Mapping[str, Any], text: Mapping[str, Any], family: str) -> int | None:
    """What is left of the vector beside the pooled text is six numbers for SDXL, five for its refiner."""
    if family not in SIZED_FAMILIES:
        return None
    numbers = 6 if family == "sdxl" else 5
    return int((unet["projection_class_embeddings_input_dim"] - text["projection_dim"]) // numbers)


def _renderable(recognition: Recognition) -> str:
    if recognition.family not in TEXT_PREFIXES:
        looks = FAMILY_NAMES.get(recognition.family or "", "nothing known")
        raise CheckpointError(
            f"The file looks like {looks}; a checkpoint of Stable Diffusion 1, 2 or SDXL is wanted. {recognition.reason}",
            family=recognition.family,
        )
    if recognition.missing:
        raise CheckpointError(
            f"The checkpoint is incomplete. {recognition.reason}",
            family=recognition.family,
            missing=recognition.missing,
        )
    if recognition.input_channels not in INPUT_CHANNELS:
        raise CheckpointError(
            f"The denoiser takes {recognition.input_channels} channels; the engine renders from 4, 8 (editing) or 9 (inpainting).",
            family=recognition.family,
        )
    return recognition.family


def _under(shapes: Shapes, prefix: str) -> dict[str, tuple[int, ...]]:
    return {name.removeprefix(prefix): tuple(shape) for name, shape in shapes.items() if name.startswith(prefix)}


# --- UNet ------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Level:
    channels: int
    attention: list[bool] = field(default_factory=list)
    """One entry per residual block."""
    depth: int = 0
    """Transformer blocks of each attention."""


def _unet_config(shapes: Shapes, config: Mapping[str, Any], family: str) -> dict[str, Any]:
    levels = _unet_levels(shapes)
    middle = _count(shapes, r"middle_block\.1\.transformer_blocks\.(\d+)\.")
    attention_at = [any(level.attention) for level in levels]
    channels = [level.channels for level in levels]
    context = next(name for name in shapes if name.endswith("attn2.to_k.weight"))
    projection = next(name for name in shapes if name.endswith(".proj_in.weight"))
    return {
        "in_channels": shapes["input_blocks.0.0.weight"][1],
        "out_channels": shapes["out.2.weight"][0],
        "block_out_channels": channels,
        "layers_per_block": len(levels[0].attention),
        "down_block_types": ["CrossAttnDownBlock2D" if here else "DownBlock2D" for here in attention_at],
        "up_block_types": ["CrossAttnUpBlock2D" if here else "UpBlock2D" for here in reversed(attention_at)],
        "cross_attention_dim": shapes[context][1],
        # diffusers calls the number of heads attention_head_dim here.
        "attention_head_dim": _unet_heads(channels, config, family),
        # The middle is as deep as the last entry says, whether its level has attention or not.
        "transformer_layers_per_block": [level.depth or middle for level in levels],
        **_vector_config(shapes),
        "use_linear_projection": len(shapes[projection]) == 2,
        "norm_num_groups": _norm_groups(
            shapes, (".in_layers.0.weight", ".out_layers.0.weight", ".norm.weight", "out.0.weight")
        ),
    }


def _vector_config(shapes: Shapes) -> dict[str, Any]:
    """SDXL's vector goes in as a class embedding, so that callers hand over one ready vector."""
    vector = shapes.get("label_emb.0.0.weight")
    if vector is None:
        return {}
    return {"class_embed_type": "projection", "projection_class_embeddings_input_dim": vector[1]}


def _unet_levels(shapes: Shapes) -> list[_Level]:
    """Walk the input blocks: a downsampler ends a level."""
    levels: list[_Level] = []
    new_level = True
    for index in range(1, _count(shapes, r"input_blocks\.(\d+)\.")):
        block = f"input_blocks.{index}"
        if f"{block}.0.op.weight" in shapes:
            new_level = True
            continue
        if new_level:
            levels.append(_Level(channels=shapes[f"{block}.0.out_layers.3.weight"][0]))
            new_level = False
        levels[-1].attention.append(f"{block}.1.proj_in.weight" in shapes)
        levels[-1].depth = _count(shapes, rf"input_blocks\.{index}\.1\.transformer_blocks\.(\d+)\.")
    if len({tuple(level.attention[:1] * len(level.attention)) == tuple(level.attention) for level in levels}) != 1 or (
        len({len(level.attention) for level in levels}) != 1
    ):
        raise CheckpointError("The levels of the UNet differ in a way no Stable Diffusion 1 does.", family="sd1")
    return levels


def _unet_heads(channels: list[int], config: Mapping[str, Any], family: str) -> int | list[int]:
    head_channels = int(config.get("num_head_channels", -1))
    heads = int(config.get("num_heads", -1))
    if head_channels <= 0 and heads <= 0 and family != "sd1":
        head_channels = HEAD_CHANNELS
    if head_channels > 0:
        return [max(1, count // head_channels) for count in channels]
    return heads if heads > 0 else SD1_UNET_HEADS


# --- VAE and text encoder --------------------------------------------------------------------------------------------


def vae_config(shapes: Shapes) -> dict[str, Any]:
    levels = _count(shapes, r"decoder\.up\.(\d+)\.")
    return {
        "block_out_channels": [shapes[f"decoder.up.{level}.block.0.conv2.weight"][0] for level in range(levels)],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        # The decoder has one block more per level than the encoder.
        "layers_per_block": _count(shapes, r"decoder\.up\.0\.block\.(\d+)\.") - 1,
        "latent_channels": shapes["decoder.conv_in.weight"][1],
        "norm_num_groups": _norm_groups(shapes, (".norm1.weight", ".norm2.weight", ".norm.weight", ".norm_out.weight")),
    }


def _text_config(shapes: Shapes, prefix: str, config: _Yaml) -> dict[str, Any]:
    return _clip_config(shapes, config) if prefix.endswith("transformer.") else _open_clip_config(shapes)


def _open_clip_config(shapes: Shapes) -> dict[str, Any]:
    vocabulary, width = shapes["token_embedding.weight"]
    projection = shapes.get("text_projection", shapes.get("text_projection.weight", (width, width)))
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "projection_dim": projection[1],
        "intermediate_size": shapes["transformer.resblocks.0.mlp.c_fc.weight"][0],
        "num_hidden_layers": _count(shapes, r"transformer\.resblocks\.(\d+)\."),
        "max_position_embeddings": shapes["positional_embedding"][0],
        # Below 64 channels only test miniatures exist; those have heads of 8 by convention.
        "num_attention_heads": max(1, width // (SMALL_HEAD_CHANNELS if width < HEAD_CHANNELS else HEAD_CHANNELS)),
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
    }


def _clip_config(shapes: Shapes, config: _Yaml) -> dict[str, Any]:
    bare = {name.removeprefix("text_model."): shape for name, shape in shapes.items()}
    vocabulary, width = bare["embeddings.token_embedding.weight"]
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "projection_dim": width,
        "intermediate_size": bare["encoder.layers.0.mlp.fc1.weight"][0],
        "num_hidden_layers": _count(bare, r"encoder\.layers\.(\d+)\."),
        "max_position_embeddings": bare["embeddings.position_embedding.weight"][0],
        "num_attention_heads": int(config.text_config.get("num_attention_heads", _text_heads(width, config))),
        "hidden_act": config.text_config.get("hidden_act", "quick_gelu"),
        "layer_norm_eps": float(config.text_config.get("layer_norm_eps", 1e-5)),
    }


def _text_heads(width: int, config: _Yaml) -> int:
    """Heads of 64 channels, as in every CLIP.

    A YAML that names an encoder of its own means a test miniature; below 64 channels those have heads of 8 by convention.
    """
    is_small = config.names_text_encoder and width < HEAD_CHANNELS
    return max(1, width // (SMALL_HEAD_CHANNELS if is_small else HEAD_CHANNELS))


# --- shapes and YAML -------------------------------------------------------------------------------------------------


def _count(names: Iterable[str], pattern: str) -> int:
    """One more than the largest number the pattern finds at the start of a name."""
    return max((int(match[1]) for name in names if (match := re.match(pattern, name))), default=-1) + 1


def _norm_groups(shapes: Shapes, endings: tuple[str, ...]) -> int:
    """The largest power of two, 32 at most, that divides every normalised channel count: 32 in every real SD 1.x."""
    common = 0
    for name, shape in shapes.items():
        if name.endswith(endings) and len(shape) == 1:
            common = gcd(common, shape[0])
    return gcd(common, MAX_NORM_GROUPS)


def _read_yaml(path: Path | None) -> _Yaml:
    if path is None:
        return _Yaml()
    try:
        model = yaml.safe_load(path.read_text())["model"]["params"]
        text = model.get("cond_stage_config", {}).get("params") or _first_embedder(model)
        version = str(text.get("version", ""))
        network = model.get("unet_config") or model.get("network_config") or {}
        return _Yaml(
            model=model,
            unet=network.get("params") or {},
            text_config=_neighbour_config(path, version),
            names_text_encoder=bool(version),
        )
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(f"The configuration {path.name} is not an LDM-style YAML: {error}.") from error


def _first_embedder(model: Mapping[str, Any]) -> Mapping[str, Any]:
    """SDXL lists its encoders."""
    embedders = model.get("conditioner_config", {}).get("params", {}).get("emb_models") or [{}]
    return embedders[0].get("params") or {}


def _neighbour_config(path: Path, version: str) -> Mapping[str, Any]:
    """The ``config.json`` in a folder of that name beside the YAML; a name with a path in it is no neighbour."""
    if not version or Path(version).name != version:
        return {}
    config = path.parent / version / "config.json"
    return json.loads(config.read_text()) if config.is_file() else {}
