"""What kind of weights a file holds, told from the names and shapes of its tensors, never from its file name.

Both sides read this: the asset intake before it stores a file, the engine before it builds a network. Standard library only, so
that the web side can ask without torch; a safetensors header is enough to answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

Shapes = Mapping[str, tuple[int, ...]]

CHECKPOINT_FAMILIES = ("sd1", "sd2", "sdxl", "sdxl-refiner", "sd3", "flux")
"""Families of files that hold a denoiser, and so can be chosen as the checkpoint of a recipe."""

UNET = "model.diffusion_model."
VAE = "first_stage_model."
CLIP_TEXT = "cond_stage_model.transformer."
OPEN_CLIP_TEXT = "cond_stage_model.model."
SDXL_CLIP_TEXT = "conditioner.embedders.0.transformer."
SDXL_OPEN_CLIP_TEXT = "conditioner.embedders.1.model."
REFINER_TEXT = "conditioner.embedders.0.model."
TEXT_PREFIXES: dict[str, tuple[str, ...]] = {
    "sd1": (CLIP_TEXT,),
    "sd2": (OPEN_CLIP_TEXT,),
    "sdxl": (SDXL_CLIP_TEXT, SDXL_OPEN_CLIP_TEXT),
    "sdxl-refiner": (REFINER_TEXT,),
}
"""Family → where its text encoders lie, in the order of ``Checkpoint.text``."""

_CLIP_PARTS = (
    "embeddings.token_embedding.weight",
    "embeddings.position_embedding.weight",
    "encoder.layers.0.self_attn.q_proj.weight",
    "final_layer_norm.weight",
)
_OPEN_CLIP_PARTS = (
    "token_embedding.weight",
    "positional_embedding",
    "transformer.resblocks.0.attn.in_proj_weight",
    "ln_final.weight",
)
_PARTS = {
    UNET: (
        "time_embed.0.weight",
        "time_embed.2.weight",
        "input_blocks.0.0.weight",
        "middle_block.0.in_layers.2.weight",
        "out.2.weight",
    ),
    VAE: ("post_quant_conv.weight", "decoder.conv_in.weight", "decoder.conv_out.weight", "encoder.conv_in.weight"),
}
"""What any checkpoint with a UNet has, beside its text encoders."""
_LORA = re.compile(
    r"(?:^|[._])(?:lora_(?:up|down|A|B)|hada_w1_a|lokr_w[12]|oft_blocks|diff_b)\b|_lora\.(?:up|down)\b|^lora_(?:unet|te)"
)
_CONTROLNET = re.compile(r"^control_model\.|^controlnet_|(?:^|\.)(?:input_hint_block|zero_convs|lllite)")
_HYPERNETWORK = re.compile(r"^\d+\.[01]\.linear\d?\.")
_UPSCALER = re.compile(r"^(?:conv_first|model\.0|params(?:_ema)?\.conv_first|layers\.0\.residual_group)\b")


@dataclass(frozen=True, slots=True)
class Recognition:
    """What a file is, and why it is of no use when it is nothing we know."""

    family: str | None
    """``sd1`` … ``flux`` for checkpoints, else ``lora``, ``vae``, ``embedding``, ``controlnet``, ``upscaler``; None is unknown."""
    missing: tuple[str, ...] = ()
    """Tensors a usable file of this family has and this one lacks."""
    reason: str = ""
    """One sentence for people."""
    input_channels: int | None = None
    """Of the denoiser: 4 for text to image, 9 for an inpainting checkpoint, 8 for an editing one."""

    @property
    def is_checkpoint(self) -> bool:
        return self.family in CHECKPOINT_FAMILIES

    @property
    def is_complete(self) -> bool:
        return self.family is not None and not self.missing


def recognise(shapes: Shapes) -> Recognition:
    """Tell the family of a file from the names and shapes of its tensors."""
    if not shapes:
        return Recognition(None, reason="The file holds no tensors.")
    return _checkpoint(shapes) or _part(shapes) or Recognition(None, reason=_unknown(shapes))


def _checkpoint(shapes: Shapes) -> Recognition | None:
    if _any_starts(shapes, ("model.diffusion_model.joint_blocks.", "joint_blocks.")):
        return Recognition("sd3", reason="Joint transformer blocks of Stable Diffusion 3.")
    if _any_starts(shapes, ("model.diffusion_model.double_blocks.", "double_blocks.")):
        return Recognition("flux", reason="Double-stream transformer blocks of Flux.")
    if not _any_starts(shapes, (UNET,)):
        return None
    channels = _channels(shapes, UNET + "input_blocks.0.0.weight")
    family, looks = _unet_family(shapes)
    missing = _missing(shapes, family)
    reason = f"It lacks {', '.join(missing)}." if missing else looks
    return Recognition(family, missing, reason, channels)


def _unet_family(shapes: Shapes) -> tuple[str, str]:
    if _any_starts(shapes, ("conditioner.embedders.1.",)):
        return "sdxl", "Two text encoders of SDXL."
    if _any_starts(shapes, (REFINER_TEXT,)):
        return "sdxl-refiner", "One OpenCLIP encoder of the SDXL refiner."
    if _any_starts(shapes, (OPEN_CLIP_TEXT,)):
        return "sd2", "An OpenCLIP text encoder of Stable Diffusion 2."
    return "sd1", "The parts of Stable Diffusion 1."


def _part(shapes: Shapes) -> Recognition | None:
    if _any_matches(_LORA, shapes):
        return Recognition("lora", reason="Low-rank pairs for another model's layers.")
    if _any_matches(_CONTROLNET, shapes):
        return Recognition("controlnet", reason="A control network.")
    if _any_ends(shapes, ("decoder.conv_in.weight",)) and _any_ends(shapes, ("decoder.conv_out.weight",)):
        missing = () if _any_ends(shapes, ("post_quant_conv.weight",)) else ("post_quant_conv.weight",)
        return Recognition("vae", missing, reason="An image decoder of its own.")
    if shapes.keys() & {"emb_params", "clip_l", "clip_g", "string_to_param.*", "<concept>"} and len(shapes) <= 8:
        return Recognition("embedding", reason="A handful of text vectors.")
    if _any_matches(_HYPERNETWORK, shapes):
        return Recognition("hypernetwork", reason="Networks for keys and values by width.")
    if _any_matches(_UPSCALER, shapes):
        return Recognition("upscaler", reason="A picture to picture network.")
    return None


def _missing(shapes: Shapes, family: str) -> tuple[str, ...]:
    present = {name.replace("transformer.text_model.", "transformer.") for name in shapes}
    texts = {
        prefix: _CLIP_PARTS if prefix.endswith("transformer.") else _OPEN_CLIP_PARTS for prefix in TEXT_PREFIXES[family]
    }
    wanted = {**_PARTS, **texts}
    return tuple(part + name for part, names in wanted.items() for name in names if part + name not in present)


def _unknown(shapes: Shapes) -> str:
    first = ", ".join(sorted(shapes)[:3])
    return f"No family we know has these tensors ({len(shapes)} of them, starting with {first})."


def _channels(shapes: Shapes, name: str) -> int | None:
    shape = shapes.get(name, ())
    return shape[1] if len(shape) > 1 else None


def _any_starts(names: Iterable[str], prefixes: tuple[str, ...]) -> bool:
    return any(name.startswith(prefixes) for name in names)


def _any_ends(names: Iterable[str], suffixes: tuple[str, ...]) -> bool:
    return any(name.endswith(suffixes) for name in names)


def _any_matches(pattern: re.Pattern[str], names: Iterable[str]) -> bool:
    return any(pattern.search(name) for name in names)
