"""From the tensors of a checkpoint to the configurations diffusers and transformers build networks from.

The structure is read off the shapes, in the original layout; what shapes cannot tell (attention heads, what is predicted) comes
from what lies ``beside`` the file, or from the rules of the family. A file's name says nothing. No weights are loaded here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import gcd
from typing import Any, Literal

from gpuworker.contract.families import FAMILY_NAMES, TEXT_PREFIXES, Recognition, recognise
from gpuworker.contract.layouts import UNET, VAE, Shapes
from gpuworker.engine.errors import CheckpointError
from gpuworker.engine.models.beside import Beside, TextBeside

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
V_PREDICTION_MARK = "v_pred"
"""An empty tensor that says what an SDXL checkpoint predicts; ``ZERO_SNR_MARK`` says what noise schedule it was trained with."""
ZERO_SNR_MARK = "ztsnr"

TextKind = Literal["clip", "open_clip"]


@dataclass(frozen=True, slots=True)
class TextPlan:
    """One text encoder."""

    prefix: str
    """Of its tensors."""
    kind: TextKind
    config: dict[str, Any]
    lacks_last_layer: bool = False
    """SD 2 in diffusers layout is stored without the layer that nothing reads; ``config`` counts it."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """Constructor arguments of the networks, and the numbers of the noise schedule."""

    family: str
    unet: dict[str, Any]
    vae: dict[str, Any]
    text: tuple[TextPlan, ...]
    """In the order of ``TEXT_PREFIXES``."""
    latent_scale: float
    beta_range: tuple[float, float]
    """First and last beta of the scaled-linear schedule of 1000 steps."""
    prediction: str | None = None
    """``eps`` or ``v``; None has to be found out by running the network (SD 2 with nothing beside it)."""
    zero_terminal_snr: bool = False
    size_embedding_width: int | None = None
    """Values each number of SDXL's size conditioning is embedded with; None where there is none."""


def architecture_of(shapes: Shapes, beside: Beside | None = None) -> Architecture:
    """Infer the networks of a checkpoint.

    Args:
        shapes: Under their names in the original layout.
    Raises:
        CheckpointError: The file is of another family, is incomplete, or asks for something the engine cannot do.
    """
    family = _renderable(recognise(shapes))
    told = beside or Beside()
    default_scale = SDXL_LATENT_SCALE if family in SIZED_FAMILIES else SD_LATENT_SCALE
    try:
        unet = _unet_config(_under(shapes, UNET), told, family)
        text = tuple(
            _text_plan(_under(shapes, prefix), prefix, told.text_at(place))
            for place, prefix in enumerate(TEXT_PREFIXES[family])
        )
        return Architecture(
            family=family,
            unet=unet,
            vae=vae_config(_under(shapes, VAE), groups=told.vae_groups),
            text=text,
            prediction=told.prediction or _untold_prediction(shapes, family, unet, is_told=beside is not None),
            zero_terminal_snr=told.zero_terminal_snr or ZERO_SNR_MARK in shapes,
            size_embedding_width=_size_embedding_width(unet, text[-1].config, family, told),
            latent_scale=told.latent_scale or default_scale,
            beta_range=(told.first_beta or SD_BETAS[0], told.last_beta or SD_BETAS[1]),
        )
    except (KeyError, IndexError, StopIteration) as error:
        raise CheckpointError(f"The checkpoint lacks the tensor {error}.", family=family) from error


def _untold_prediction(shapes: Shapes, family: str, unet: dict[str, Any], *, is_told: bool) -> str | None:
    """SD 2 comes in both kinds without a mark of which it is; of its inpainting there is one kind.

    A1111 1.10 renders a marked SDXL checkpoint as eps unless a YAML says v; nobody can want that picture.
    """
    if V_PREDICTION_MARK in shapes:
        return "v"
    return None if family == "sd2" and not is_told and unet["in_channels"] == 4 else "eps"


def _size_embedding_width(unet: dict[str, Any], text: dict[str, Any], family: str, told: Beside) -> int | None:
    """What is left of the vector beside the pooled text is six numbers for SDXL, five for its refiner."""
    if family not in SIZED_FAMILIES:
        return None
    numbers = 6 if family == "sdxl" else 5
    return (
        told.size_embedding_width or (unet["projection_class_embeddings_input_dim"] - text["projection_dim"]) // numbers
    )


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
    """Transformer blocks behind each residual block, on the way down and on the way up; 0 where there is no attention."""

    channels: int
    down: list[int] = field(default_factory=list)
    up: list[int] = field(default_factory=list)

    @property
    def attends(self) -> bool:
        return self.down[0] > 0

    @property
    def is_one_kind(self) -> bool:
        """diffusers' blocks have attention everywhere or nowhere."""
        return all(bool(depth) == self.attends for depth in self.down + self.up)


def _unet_config(shapes: Shapes, told: Beside, family: str) -> dict[str, Any]:
    levels = _unet_levels(shapes)
    channels = [level.channels for level in levels]
    attentive = [level.attends for level in levels]
    context = next(name for name in shapes if name.endswith("attn2.to_k.weight"))
    projection = next(name for name in shapes if name.endswith(".proj_in.weight"))
    return {
        "in_channels": shapes["input_blocks.0.0.weight"][1],
        "out_channels": shapes["out.2.weight"][0],
        "block_out_channels": channels,
        "layers_per_block": len(levels[0].down),
        "down_block_types": ["CrossAttnDownBlock2D" if here else "DownBlock2D" for here in attentive],
        "up_block_types": ["CrossAttnUpBlock2D" if here else "UpBlock2D" for here in reversed(attentive)],
        "cross_attention_dim": shapes[context][1],
        # diffusers calls the number of heads attention_head_dim here.
        "attention_head_dim": _unet_heads(channels, told, family),
        **_depths_config(shapes, levels),
        **_vector_config(shapes),
        "use_linear_projection": len(shapes[projection]) == 2,
        "norm_num_groups": told.unet_groups
        or _norm_groups(shapes, (".in_layers.0.weight", ".out_layers.0.weight", ".norm.weight", "out.0.weight")),
    }


def _vector_config(shapes: Shapes) -> dict[str, Any]:
    """SDXL's vector goes in as a class embedding, so that callers hand over one ready vector."""
    vector = shapes.get("label_emb.0.0.weight")
    if vector is None:
        return {}
    return {"class_embed_type": "projection", "projection_class_embeddings_input_dim": vector[1]}


def _unet_levels(shapes: Shapes) -> list[_Level]:
    """Walk the input blocks, where a downsampler ends a level, and the output blocks, of which each level has one more."""
    levels: list[_Level] = []
    new_level = True
    for index in range(1, count_in(shapes, r"input_blocks\.(\d+)\.")):
        block = f"input_blocks.{index}"
        if f"{block}.0.op.weight" in shapes:
            new_level = True
            continue
        if new_level:
            levels.append(_Level(channels=shapes[f"{block}.0.out_layers.3.weight"][0]))
            new_level = False
        levels[-1].down.append(_depth(shapes, block))
    blocks = len(levels[0].down) + 1
    for index in range(count_in(shapes, r"output_blocks\.(\d+)\.")):
        levels[-1 - index // blocks].up.append(_depth(shapes, f"output_blocks.{index}"))
    if any((len(level.down), len(level.up)) != (blocks - 1, blocks) or not level.is_one_kind for level in levels):
        raise CheckpointError("The levels of the UNet differ in a way no Stable Diffusion's do.")
    return levels


def _depth(shapes: Shapes, block: str) -> int:
    return count_in(shapes, re.escape(block) + r"\.1\.transformer_blocks\.(\d+)\.")


def _depths_config(shapes: Shapes, levels: Sequence[_Level]) -> dict[str, Any]:
    """How deep the transformers are: a number per level, or per residual block where they differ (SSD-1B, a thinned SDXL)."""
    middle = _depth(shapes, "middle_block")
    if middle and levels[-1].attends and set(levels[-1].down) != {middle}:
        raise CheckpointError(f"The middle of the UNet is {middle} deep, its last level {levels[-1].down[0]}.")
    config: dict[str, Any] = {} if middle else {"mid_block_type": "UNetMidBlock2D"}
    # A level without attention needs some number, and the middle is as deep as the last one says.
    unused = middle or 1
    if all(len({*level.down, *level.up}) == 1 for level in levels):
        return {**config, "transformer_layers_per_block": [level.down[0] or unused for level in levels]}
    return {
        **config,
        "transformer_layers_per_block": [level.down if level.attends else unused for level in levels],
        "reverse_transformer_layers_per_block": [level.up if level.attends else unused for level in reversed(levels)],
    }


def _unet_heads(channels: Sequence[int], told: Beside, family: str) -> int | list[int]:
    if told.head_channels:
        return [max(1, count // told.head_channels) for count in channels]
    if told.heads:
        return told.heads if isinstance(told.heads, int) else list(told.heads)
    if family == "sd1":
        return SD1_UNET_HEADS
    return [max(1, count // HEAD_CHANNELS) for count in channels]


# --- VAE and text encoder --------------------------------------------------------------------------------------------


def vae_config(shapes: Shapes, *, groups: int | None = None) -> dict[str, Any]:
    """Args: shapes: Under their original names without prefix."""
    levels = count_in(shapes, r"decoder\.up\.(\d+)\.")
    return {
        "block_out_channels": [shapes[f"decoder.up.{level}.block.0.conv2.weight"][0] for level in range(levels)],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        # The decoder has one block more per level than the encoder.
        "layers_per_block": count_in(shapes, r"decoder\.up\.0\.block\.(\d+)\.") - 1,
        "latent_channels": shapes["decoder.conv_in.weight"][1],
        "mid_block_add_attention": "decoder.mid.attn_1.q.weight" in shapes,
        "norm_num_groups": groups
        or _norm_groups(shapes, (".norm1.weight", ".norm2.weight", ".norm.weight", ".norm_out.weight")),
    }


def _text_plan(shapes: Shapes, prefix: str, told: TextBeside) -> TextPlan:
    is_clip = prefix.endswith("transformer.")
    bare = {name.removeprefix("text_model."): shape for name, shape in shapes.items()}
    if "transformer.resblocks.0.ln_1.weight" in bare:
        return TextPlan(prefix, "open_clip", _open_clip_config(bare, told))
    config = clip_config(bare, told, is_clip=is_clip)
    # diffusers keeps what SD 2 reads of its encoder: all but the last layer.
    cut = not is_clip and "text_projection.weight" not in bare
    config["num_hidden_layers"] += cut
    return TextPlan(prefix, "clip" if is_clip else "open_clip", config, lacks_last_layer=cut)


def _open_clip_config(shapes: Shapes, told: TextBeside) -> dict[str, Any]:
    """In OpenCLIP's own names."""
    vocabulary, width = shapes["token_embedding.weight"]
    # A bare parameter has its inputs first, a linear layer its outputs.
    projection = shapes.get("text_projection", shapes.get("text_projection.weight", (width, width))[::-1])
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "projection_dim": projection[1],
        "intermediate_size": shapes["transformer.resblocks.0.mlp.c_fc.weight"][0],
        "num_hidden_layers": count_in(shapes, r"transformer\.resblocks\.(\d+)\."),
        "max_position_embeddings": shapes["positional_embedding"][0],
        "num_attention_heads": told.heads or _text_heads(width, is_small=True),
        "hidden_act": told.activation or "gelu",
        "layer_norm_eps": 1e-5,
    }


def clip_config(shapes: Shapes, told: TextBeside, *, is_clip: bool) -> dict[str, Any]:
    """In the names of transformers."""
    vocabulary, width = shapes["embeddings.token_embedding.weight"]
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "projection_dim": shapes.get("text_projection.weight", (width, width))[0],
        "intermediate_size": shapes["encoder.layers.0.mlp.fc1.weight"][0],
        "num_hidden_layers": count_in(shapes, r"encoder\.layers\.(\d+)\."),
        "max_position_embeddings": shapes["embeddings.position_embedding.weight"][0],
        "num_attention_heads": told.heads or _text_heads(width, is_small=told.is_named or not is_clip),
        "hidden_act": told.activation or ("quick_gelu" if is_clip else "gelu"),
        "layer_norm_eps": told.norm_epsilon or 1e-5,
    }


def _text_heads(width: int, *, is_small: bool) -> int:
    """Heads of 64 channels, as in every CLIP; below 64 channels only miniatures exist, which have heads of 8 by convention.

    Args:
        is_small: Whether that convention counts: for any OpenCLIP, and for a CLIP whose YAML names an encoder of its own.
    """
    return max(1, width // (SMALL_HEAD_CHANNELS if is_small and width < HEAD_CHANNELS else HEAD_CHANNELS))


# --- shapes ----------------------------------------------------------------------------------------------------------


def count_in(names: Iterable[str], pattern: str) -> int:
    """One more than the largest number the pattern finds at the start of a name."""
    return max((int(match[1]) for name in names if (match := re.match(pattern, name))), default=-1) + 1


def _norm_groups(shapes: Shapes, endings: tuple[str, ...]) -> int:
    """The largest power of two, 32 at most, that divides every normalised channel count: 32 in every real checkpoint."""
    common = 0
    for name, shape in shapes.items():
        if name.endswith(endings) and len(shape) == 1:
            common = gcd(common, shape[0])
    return gcd(common, MAX_NORM_GROUPS)
