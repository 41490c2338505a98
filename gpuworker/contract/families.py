"""What kind of weights a file holds, told from the names and shapes of its tensors, never from its file name.

Both sides read this: the asset intake before it stores a file, the engine before it builds a network. Standard library only, so
that the web side can ask without torch; a safetensors header is enough to answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from gpuworker.contract.flow import NEEDED_PARTS, TRANSFORMER, flow_names
from gpuworker.contract.layouts import (
    CLIP_TEXT,
    OPEN_CLIP_TEXT,
    REFINER_TEXT,
    SDXL_CLIP_TEXT,
    SDXL_OPEN_CLIP_TEXT,
    UNET,
    VAE,
    Shapes,
    original_names,
    unet_names,
    vae_names,
)

CHECKPOINT_FAMILIES = ("sd1", "sd2", "sdxl", "sdxl-refiner", "sd3", "flux")
"""Families of files that hold a denoiser, and so can be chosen as the checkpoint of a recipe."""
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
    "hypernetwork": "a hypernetwork",
    "upscaler": "an upscaler",
}
TEXT_PREFIXES: dict[str, tuple[str, ...]] = {
    "sd1": (CLIP_TEXT,),
    "sd2": (OPEN_CLIP_TEXT,),
    "sdxl": (SDXL_CLIP_TEXT, SDXL_OPEN_CLIP_TEXT),
    "sdxl-refiner": (REFINER_TEXT,),
}
"""Family → where its text encoders lie in the original layout, in the order of ``Checkpoint.text``."""
CONTEXT_WIDTHS = {768: "sd1", 1024: "sd2", 2048: "sdxl", 1280: "sdxl-refiner"}
"""Width of the text that cross-attention reads → family."""


@dataclass(frozen=True, slots=True)
class Recognition:
    """What a file is, and why it is of no use when it is nothing we know."""

    family: str | None
    """``sd1`` … ``flux`` for checkpoints, else ``lora``, ``vae``, ``embedding``, ``controlnet``, ``hypernetwork``,
    ``upscaler``; None is unknown."""
    missing: tuple[str, ...] = ()
    """Tensors a usable file of this family has and this one lacks."""
    reason: str = ""
    """One sentence for people."""
    input_channels: int | None = None
    """Of the denoiser: 4 for text to image (16 of SD 3 and Flux), 9 for an inpainting checkpoint, 8 for an editing one."""
    base: str | None = None
    """The checkpoint family a part such as a LoRA was made for, where the file shows it."""
    make: str = ""
    """Of a control network: which sort, one of ``RENDERABLE_CONTROL`` where the engine can use it."""

    @property
    def is_checkpoint(self) -> bool:
        return self.family in CHECKPOINT_FAMILIES

    @property
    def is_complete(self) -> bool:
        return self.family is not None and not self.missing


def recognise(shapes: Shapes) -> Recognition:
    """Tell the family of a file, in the original layout or in that of diffusers, from the names and shapes of its tensors."""
    if not shapes:
        return Recognition(None, reason="The file holds no tensors.")
    names = original_names(shapes)
    original = {names[name]: shape for name, shape in shapes.items()}
    found = _flow_checkpoint(shapes) or _unet_checkpoint(original) or _part(shapes)
    return found or Recognition(None, reason=_unknown(shapes))


# --- checkpoints -----------------------------------------------------------------------------------------------------

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
_UNET_PARTS = (
    "time_embed.0.weight",
    "time_embed.2.weight",
    "input_blocks.0.0.weight",
    "middle_block.0.in_layers.2.weight",
    "out.2.weight",
)
_VAE_PARTS = (
    "post_quant_conv.weight",
    "decoder.conv_in.weight",
    "decoder.conv_out.weight",
    "encoder.conv_in.weight",
)
_FLOW_MARKS = {
    "flux": ("double_blocks.", "single_transformer_blocks."),
    "sd3": ("joint_blocks.", "transformer_blocks.0.norm1_context."),
}
"""How names in the denoiser begin: in the original names, and in those of diffusers."""
_FLOW_TENSORS = {
    "flux": (
        ("img_in.weight", "x_embedder.weight"),
        ("vector_in.in_layer.weight", "time_text_embed.text_embedder.linear_1.weight"),
        ("txt_in.weight", "context_embedder.weight"),
    ),
    "sd3": (
        ("x_embedder.proj.weight", "pos_embed.proj.weight"),
        ("y_embedder.mlp.0.weight", "time_text_embed.text_embedder.linear_1.weight"),
        ("context_embedder.weight", "context_embedder.weight"),
    ),
}
"""What tells these families from their relatives, likewise in both; the first reads the latents."""
_FOREIGN_DENOISERS = {
    "embedder.model.ln_final.weight": "It is an unCLIP checkpoint, which draws from pictures.",
    "depth_model.model.pretrained.act_postprocess3.0.project.0.bias": "It is a depth-to-image checkpoint.",
    "cond_stage_model.roberta.embeddings.word_embeddings.weight": "Its text encoder is AltDiffusion's.",
}


def _flow_checkpoint(shapes: Shapes) -> Recognition | None:
    if _any_matches(_LORA, shapes) or _any_matches(_CONTROLNET, shapes):
        return None
    for prefix in (UNET, TRANSFORMER, ""):
        for family, marks in _FLOW_MARKS.items():
            if _any_starts(shapes, tuple(prefix + mark for mark in marks)):
                # Without a prefix it is the denoiser's file alone.
                whole = shapes if prefix else {TRANSFORMER + name: shape for name, shape in shapes.items()}
                names = flow_names(whole, family)
                return _flow_recognition(family, {names[name]: shape for name, shape in whole.items()})
    return None


def _flow_recognition(family: str, shapes: Shapes) -> Recognition:
    """Args: shapes: With diffusers' prefixes."""
    parts = {prefix: what for prefix, what in NEEDED_PARTS[family].items() if not _any_starts(shapes, (prefix,))}
    tensors = [
        TRANSFORMER + original
        for original, theirs in _FLOW_TENSORS[family]
        if not {TRANSFORMER + original, TRANSFORMER + theirs} & shapes.keys()
    ]
    lost = [f"{what} ({prefix}*)" for prefix, what in parts.items()] + tensors
    reason = f"It looks like {FAMILY_NAMES[family]}, but lacks {', '.join(lost)}." if lost else "It predicts flows."
    inputs = max(_length(shapes, TRANSFORMER + name, 1) or 0 for name in _FLOW_TENSORS[family][0])
    # Flux takes four latents at once.
    return Recognition(family, (*parts, *tensors), reason, inputs // 4 if family == "flux" else inputs)


def _unet_checkpoint(shapes: Shapes) -> Recognition | None:
    """Args: shapes: Under their original names."""
    if not _any_starts(shapes, (UNET,)):
        bare = unet_names(shapes)
        if (
            "conv_in.weight" not in shapes
            or "time_embed.0.weight" not in bare.values()
            or _any_matches(_CONTROLNET, shapes)
        ):
            return None
        # The denoiser's file of a folder in diffusers layout.
        shapes = {UNET + bare[name]: shape for name, shape in shapes.items()}
    foreign = next((reason for name, reason in _FOREIGN_DENOISERS.items() if name in shapes), None)
    if foreign:
        return Recognition(None, reason=f"{foreign} The engine renders Stable Diffusion 1, 2 and SDXL.")
    channels = _length(shapes, UNET + "input_blocks.0.0.weight", 1)
    family, looks = _unet_family(shapes)
    missing = _missing(shapes, family)
    return Recognition(family, missing, _lacking(shapes, family, missing) if missing else looks, channels)


def _unet_family(shapes: Shapes) -> tuple[str, str]:
    if _any_starts(shapes, (SDXL_OPEN_CLIP_TEXT,)):
        return "sdxl", "Two text encoders of SDXL."
    if _any_starts(shapes, (REFINER_TEXT,)):
        return "sdxl-refiner", "One OpenCLIP encoder of the SDXL refiner."
    if _any_starts(shapes, (OPEN_CLIP_TEXT,)):
        return "sd2", "An OpenCLIP text encoder of Stable Diffusion 2."
    if _any_starts(shapes, (CLIP_TEXT,)):
        return "sd1", "The parts of Stable Diffusion 1."
    return _base_by_context(shapes) or "sd1", "A denoiser."


def _missing(shapes: Shapes, family: str) -> tuple[str, ...]:
    present = {name.replace(".text_model.", ".") for name in shapes}
    wanted = [UNET + name for name in _UNET_PARTS] + [VAE + name for name in _VAE_PARTS]
    for prefix in TEXT_PREFIXES[family]:
        in_names_of_transformers = prefix.endswith("transformer.") or prefix + _CLIP_PARTS[0] in present
        wanted += [prefix + name for name in (_CLIP_PARTS if in_names_of_transformers else _OPEN_CLIP_PARTS)]
    return tuple(name for name in wanted if name not in present)


def _lacking(shapes: Shapes, family: str, missing: tuple[str, ...]) -> str:
    """Whole parts by their names, single tensors by theirs."""
    parts = {UNET: "the denoiser", VAE: "the VAE", **dict.fromkeys(TEXT_PREFIXES[family], "a text encoder")}
    gone = {prefix: what for prefix, what in parts.items() if not _any_starts(shapes, (prefix,))}
    tensors = [name for name in missing if not name.startswith(tuple(gone))]
    lost = [f"{what} ({prefix}*)" for prefix, what in gone.items()] + tensors
    return f"It looks like {FAMILY_NAMES[family]}, but lacks {', '.join(lost)}."


# --- what is added to a checkpoint -----------------------------------------------------------------------------------

_LORA = re.compile(
    r"(?:^|[._])(?:lora_(?:up|down|mid|A|B)|hada_[wt][12]|lokr_[wt][12]|oft_blocks|oft_diag|[wb]_norm|on_input|dora_scale|diff(?:_b)?)(?:$|[._])"
    r"|_lora\.(?:up|down)\b|^(?:lora|lycoris|oft)_(?:unet|te|transformer)"
)
_LORA_KINDS = {
    r"\.hada_w1_a$": "LoHa",
    r"\.lokr_w[12]": "LoKr",
    r"\.oft_(?:blocks|diag)$": "OFT",
    r"\.a1\.weight$": "GLoRA",
    r"\.on_input$": "IA3",
    r"\.w_norm$": "norm",
    r"\.diff$": "full differences",
    r"\.dora_scale$": "DoRA",
}
_LORA_BASES = {
    r"double_blocks|single_transformer_blocks|single_blocks": "flux",
    r"joint_blocks|add_q_proj|^lora_transformer_transformer_blocks": "sd3",
    r"^(?:lora|lycoris)_te[12]_|^text_encoder_2\.|label_emb|add_embedding": "sdxl",
}
RENDERABLE_CONTROL = ("ControlNet", "ControlNet in diffusers' names")
_CONTROLNETS = {
    r"^lora_controlnet$": "Control-LoRA",
    r"(?:^|\.)(?:task_embedding$|control_add_embedding\.|controlnet_mode_embedder\.)": "ControlNet union",
    r"^difference$": "ControlNet as a difference",
    r"^control_model\.|(?:^|\.)(?:input_hint_block|zero_convs)\.": "ControlNet",
    r"(?:^|\.)controlnet_(?:cond_embedding|down_blocks|mid_block)": "ControlNet in diffusers' names",
    r"lllite": "ControlNet-LLLite",
    r"^ip_adapter\.|^image_proj\.": "IP-Adapter",
    r"^(?:adapter\.)?body\.\d+\.(?:block1|resnets\.\d+\.block1|in_conv)\.": "T2I-Adapter",
}
"""The first that any name matches; what is like another sort and more comes before it."""
_CONTROLNET = re.compile("|".join(_CONTROLNETS))
_HYPERNETWORK = re.compile(r"^(\d+)\.[01]\.linear\d?\.")
_EMBEDDING = re.compile(r"^(?:emb_params|clip_[lg]|string_to_param\..+|<.+>)$")
_MOST_EMBEDDING_TENSORS = 8
_UPSCALERS = {
    r"^(?:model\.1\.sub\.0\.RDB1|body\.0\.rdb1|RRDB_trunk\.0\.RDB1)\.": "RRDBNet of ESRGAN and Real-ESRGAN",
    r"^layers\.\d+\.residual_group\.overlap_attn\.": "HAT",
    r"^layers\.\d+\.residual_group\.blocks\.\d+\.attn\.logit_scale": "Swin2SR",
    r"^layers\.\d+\.residual_group\.": "SwinIR",
    r"^layers\.\d+\.blocks\.\d+\.(?:attn|adaptive|ffn)": "DAT",
    r"^m_(?:head|body|tail)\.": "ScuNET",
    r"^residual_layer\.\d+\.": "OmniSR",
    r"^body\.1\.weight$": "SRVGGNetCompact",
}


def _part(shapes: Shapes) -> Recognition | None:
    """The first kind that knows the file."""
    kinds: tuple[Callable[[Shapes], Recognition | None], ...] = (
        _controlnet,
        _lora,
        _vae,
        _embedding,
        _hypernetwork,
        _upscaler,
    )
    return next((found for kind in kinds if (found := kind(shapes))), None)


def _lora(shapes: Shapes) -> Recognition | None:
    if not _any_matches(_LORA, shapes):
        return None
    kind = _kind_of(shapes, _LORA_KINDS)
    reason = f"Changes of another model's layers, as {kind}." if kind else "Low-rank pairs for another model's layers."
    return Recognition("lora", reason=reason, base=_kind_of(shapes, _LORA_BASES) or _base_by_context(shapes))


def _controlnet(shapes: Shapes) -> Recognition | None:
    kind = _kind_of(shapes, _CONTROLNETS)
    if kind is None:
        return None
    is_sized = _any_matches(re.compile(r"(?:^|\.)(?:label_emb|add_embedding)\."), shapes)
    base = _base_by_context(shapes) or ("sdxl" if is_sized else None)
    return Recognition("controlnet", reason=f"A control network: {kind}.", base=base, make=kind)


def _vae(shapes: Shapes) -> Recognition | None:
    bare = {name.removeprefix(VAE).removeprefix("vae."): shape for name, shape in shapes.items()}
    names = vae_names(bare)
    present = {names[name]: shape for name, shape in bare.items()}
    if not {"decoder.conv_in.weight", "decoder.conv_out.weight"} <= present.keys():
        return None
    channels = _length(present, "decoder.conv_in.weight", 1)
    # Those of SD 3 and Flux have 16 channels and no such convolution.
    wanted = () if channels == 16 else ("post_quant_conv.weight",)
    missing = tuple(name for name in (*wanted, "encoder.conv_in.weight") if name not in present)
    reason = f"A VAE that lacks {', '.join(missing)}." if missing else f"A VAE for latents of {channels} channels."
    return Recognition("vae", missing, reason)


def _embedding(shapes: Shapes) -> Recognition | None:
    vectors = {name: shape for name, shape in shapes.items() if _EMBEDDING.match(name)}
    if not vectors or len(shapes) > _MOST_EMBEDDING_TENSORS:
        return None
    if "clip_g" in shapes:
        missing = () if "clip_l" in shapes else ("clip_l",)
        reason = (
            "Text vectors of SDXL that lack the first encoder's."
            if missing
            else "Text vectors for both encoders of SDXL."
        )
        return Recognition("embedding", missing, reason, base="sdxl")
    width = next(iter(vectors.values()), (0,))[-1:] or (0,)
    return Recognition("embedding", reason="A handful of text vectors.", base=CONTEXT_WIDTHS.get(width[0]))


def _hypernetwork(shapes: Shapes) -> Recognition | None:
    widths = {int(match[1]) for name in shapes if (match := _HYPERNETWORK.match(name))}
    if not widths:
        return None
    base = next((family for width, family in ((2048, "sdxl"), (1024, "sd2"), (768, "sd1")) if width in widths), None)
    return Recognition("hypernetwork", reason="Networks for keys and values by width.", base=base)


def _upscaler(shapes: Shapes) -> Recognition | None:
    kind = _kind_of(_unwrapped(shapes), _UPSCALERS)
    return Recognition("upscaler", reason=f"A picture to picture network: {kind}.") if kind else None


def _unwrapped(names: Iterable[str]) -> list[str]:
    """Networks of BasicSR come with a word in front of every name."""
    return [re.sub(r"^params(?:_ema)?\.", "", name) for name in names]


def _kind_of(names: Collection[str], kinds: Mapping[str, str]) -> str | None:
    """The first of the kinds that has any of the names."""
    return next((kind for pattern, kind in kinds.items() if _any_matches(re.compile(pattern), names)), None)


# --- what a part was made for ----------------------------------------------------------------------------------------

_READS_TEXT = re.compile(
    r"attn2[._](?:processor[._])?to_[kv](?P<part>\..+|_lora\.down\.weight|_ip\.weight)$"
    r"|^ip_adapter\.\d+\.to_k_ip(?P<ip>\.weight)$"
)


def _base_by_context(shapes: Shapes) -> str | None:
    """By the width of the text that the first cross-attention reads: the inputs of its keys and values."""
    layers: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        if match := _READS_TEXT.search(name):
            part = match["part"] or match["ip"]
            layers.setdefault(name.removesuffix(part), {})[part.lstrip("._")] = shape
    widths = (_inputs(parts) for parts in layers.values())
    return next((CONTEXT_WIDTHS[width] for width in widths if width in CONTEXT_WIDTHS), None)


_INPUT_PARTS = (
    "weight",
    "lora_down.weight",
    "lora_A.weight",
    "lora_A.default.weight",
    "lora.down.weight",
    "hada_w1_b",
    "diff",
    "a1.weight",
    "b1.weight",
)


def _inputs(parts: Mapping[str, tuple[int, ...]]) -> int | None:
    """Of a linear layer, from whichever part of it or of its change shows them."""
    first = next((parts[name] for name in _INPUT_PARTS if len(parts.get(name, ())) > 1), None)
    if first is not None:
        return first[1]
    sides = [parts.get(f"lokr_w{side}") or parts.get(f"lokr_w{side}_b") for side in (1, 2)]
    return sides[0][1] * sides[1][1] if sides[0] and sides[1] else None


# --- nothing we know -------------------------------------------------------------------------------------------------

_FOREIGN = {
    r"^stylegan_decoder\.": "GFPGAN, which restores faces",
    r"^(?:quantize\.embedding|ft_layers)\.": "CodeFormer, which restores faces",
    r"^vision_model\.|^visual\.": "an image encoder",
    r"^(?:text_model\.)?encoder\.layers\.\d+\.self_attn\.|^transformer\.resblocks\.": "a text encoder alone",
    r"^encoder\.block\.\d+\.layer\.\d+\.SelfAttention\.": "a T5 text encoder",
    r"motion_modules\.": "a motion module of AnimateDiff",
    r"^(?:decoder\.layers\.|taesd_|\d+\.conv\.\d+\.weight)": "a small approximate VAE",
    r"^model\.layers\.\d+\.self_attn\.": "a language model",
    r"^transformer_blocks\.|^blocks\.\d+\.": "a transformer of another family",
}


def _unknown(shapes: Shapes) -> str:
    looks = _kind_of(_unwrapped(shapes), _FOREIGN)
    first = ", ".join(sorted(shapes)[:3])
    seen = f"{len(shapes)} of them, starting with {first}"
    return f"It looks like {looks} ({seen})." if looks else f"No family we know has these tensors ({seen})."


def _length(shapes: Shapes, name: str, axis: int) -> int | None:
    shape = shapes.get(name, ())
    return shape[axis] if len(shape) > axis else None


def _any_starts(names: Iterable[str], prefixes: tuple[str, ...]) -> bool:
    return any(name.startswith(prefixes) for name in names)


def _any_matches(pattern: re.Pattern[str], names: Iterable[str]) -> bool:
    return any(pattern.search(name) for name in names)
