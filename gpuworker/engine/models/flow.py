"""From files of Stable Diffusion 3 and Flux to networks of diffusers, offline; what they are like is inferred from shapes.

Only building and filling happens here; ``gpuworker.engine.flow`` draws.

Source: the block order of ``mmditx.py`` in Stability-AI/sd3.5 and of ``flux/model.py`` in black-forest-labs/flux; the names of
``SD3Transformer2DModel`` and ``FluxTransformer2DModel`` in diffusers 0.42.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel, SD3Transformer2DModel
from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from gpuworker.contract.families import recognise
from gpuworker.contract.flow import (
    FLOW_FAMILIES,
    FLOW_VAE,
    SECOND_TEXT,
    T5_PREFIXES,
    TEXT,
    TRANSFORMER,
    flow_names,
)
from gpuworker.contract.layouts import Shapes, vae_names
from gpuworker.contract.recipe import LATENT_FACTOR
from gpuworker.engine.errors import CheckpointError
from gpuworker.engine.models.beside import config_in, text_of_config
from gpuworker.engine.models.families import clip_config, count_in, vae_config
from gpuworker.engine.models.loader import Place, fill, number_positions, shapes_of, taken
from gpuworker.engine.models.tensor_files import Tensors, read_metadata, read_separately, read_shapes
from gpuworker.engine.prompts.tokens import TOKENIZER_DIR

T5_TOKENIZER = TOKENIZER_DIR.with_name("t5_tokenizer") / "tokenizer.json"
SD3_HEAD_CHANNELS = 64
CLIP_TOKENS = 77
T5_TOKENS = {"sd3": 256, "flux": 512}
FAST_T5_TOKENS = 256
LATENT_RANGES = {"sd3": (1.5305, 0.0609), "flux": (0.3611, 0.1159)}
"""Family → what latents are multiplied with after the shift, and the shift."""
SD3_SCHEDULE = {"shift": 3.0}
FLUX_SCHEDULE = {"shift": 3.0, "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}
FAST_FLUX_SCHEDULE = {"shift": 1.0}
"""Of Flux that is distilled to few steps, which has no embedding for the guidance."""
SCHEDULER = "FlowMatchEulerDiscreteScheduler"


@dataclass(frozen=True, slots=True)
class TextPart:
    """A text encoder with what makes its tokens."""

    network: Any
    tokenizer: Any
    max_tokens: int

    def tokens(self, texts: list[str]) -> torch.Tensor:
        """Shape (texts, max_tokens); what is longer is cut."""
        made = self.tokenizer(
            texts, padding="max_length", max_length=self.max_tokens, truncation=True, return_tensors="pt"
        )
        return made.input_ids.to(self.network.device)

    def cuts(self, text: str) -> bool:
        """Whether the end of it has no room."""
        return len(self.tokenizer(text).input_ids) > self.max_tokens


@dataclass(frozen=True, slots=True)
class FlowModel:
    """The networks of one file, ready to run."""

    family: str
    transformer: Any
    """``SD3Transformer2DModel`` or ``FluxTransformer2DModel``."""
    vae: AutoencoderKL
    schedule: Mapping[str, Any]
    """Configuration of ``FlowMatchEulerDiscreteScheduler``."""
    clip: tuple[TextPart, ...]
    """Two of Stable Diffusion 3, one of Flux."""
    t5: TextPart | None
    """Stable Diffusion 3 may come without."""

    @property
    def size_bytes(self) -> int:
        texts = [part.network for part in (*self.clip, self.t5) if part]
        return sum(tensor.nbytes for network in (self.transformer, self.vae, *texts) for tensor in network.parameters())

    @property
    def reader(self) -> TextPart:
        """What reads most of a prompt."""
        return self.t5 or self.clip[0]

    @property
    def reads_guidance(self) -> bool:
        """Whether the network is told how much it shall follow the prompt: Flux, unless it is distilled to few steps."""
        return bool(getattr(self.transformer.config, "guidance_embeds", False))


def flow_family(path: Path) -> str | None:
    """``sd3`` or ``flux``, or None for every other file; its header is read once.

    Raises:
        CheckpointError: The file is damaged.
    """
    return _flow_family(path, path.stat().st_size)


@lru_cache(maxsize=256)
def _flow_family(path: Path, size_bytes: int) -> str | None:
    family = recognise(read_shapes(path)).family
    return family if family in FLOW_FAMILIES else None


def load_flow(
    path: Path, *, device: torch.device, dtype: torch.dtype, read: Callable[[Path], Tensors] = read_separately
) -> FlowModel:
    """Load a file with all parts of such a model.

    Args:
        dtype: float16 becomes bfloat16: these networks overflow in half precision.
        read: Gives the file's tensors away.
    Raises:
        CheckpointError: The file is damaged, incomplete or of another family.
    """
    texts, tensors = read_metadata(path), read(path)
    found = recognise(shapes_of(tensors))
    family = found.family or ""
    if family not in FLOW_FAMILIES or found.missing:
        raise CheckpointError(f"The checkpoint is incomplete. {found.reason}", family=family, missing=found.missing)
    names = flow_names(tensors, family)
    parts = {names[name]: tensors.pop(name) for name in list(tensors)}
    place = Place(device, torch.bfloat16 if dtype == torch.float16 else dtype)
    try:
        return _Loader(family, parts, texts, place).model()
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"The checkpoint cannot be read as {FLOW_FAMILIES[family]}: {error}.", family=family
        ) from error


class _Loader:
    """Builds each part on no device and fills it."""

    def __init__(self, family: str, tensors: Tensors, texts: Mapping[str, str], place: Place) -> None:
        self.family = family
        self.tensors = tensors
        self.texts = texts
        self.place = place

    def model(self) -> FlowModel:
        return self._sd3() if self.family == "sd3" else self._flux()

    def _sd3(self) -> FlowModel:
        projected = CLIPTextModelWithProjection
        return FlowModel(
            family="sd3",
            transformer=self._transformer(SD3Transformer2DModel, sd3_weights, sd3_config),
            vae=self._vae(),
            schedule=self._schedule(SD3_SCHEDULE),
            clip=(
                TextPart(self._clip(TEXT, projected, is_clip=True), _clip_tokenizer(), CLIP_TOKENS),
                # OpenCLIP's windows end in zeros, which this token is.
                TextPart(
                    self._clip(SECOND_TEXT, projected, is_clip=False), _clip_tokenizer(pad_token="!"), CLIP_TOKENS
                ),
            ),
            t5=self._t5(T5_TOKENS["sd3"]),
        )

    def _flux(self) -> FlowModel:
        transformer = self._transformer(FluxTransformer2DModel, flux_weights, flux_config)
        guided = transformer.config.guidance_embeds
        return FlowModel(
            family="flux",
            transformer=transformer,
            vae=self._vae(),
            schedule=self._schedule(FLUX_SCHEDULE if guided else FAST_FLUX_SCHEDULE),
            clip=(TextPart(self._clip(TEXT, CLIPTextModel, is_clip=True), _clip_tokenizer(), CLIP_TOKENS),),
            t5=self._t5(T5_TOKENS["flux"] if guided else FAST_T5_TOKENS),
        )

    def _filled(self, network: Any, tensors: Tensors, part: str, names: Mapping[str, str] | None = None) -> Any:
        fill(network, tensors, names or {name: name for name in network.state_dict()}, part, self.family, self.place)
        return network

    def _transformer(
        self, kind: Any, in_names_of_diffusers: Callable[[Tensors], Tensors], config_of: Callable[..., dict[str, Any]]
    ) -> Any:
        tensors = in_names_of_diffusers(taken(self.tensors, TRANSFORMER))
        with torch.device("meta"):
            transformer = kind(**config_of(shapes_of(tensors), config_in(self.texts, "transformer")))
        self._filled(transformer, tensors, "denoiser")
        if tensors:
            # Scales of quantised weights, for one: without them the others are not what they seem.
            raise ValueError(f"its denoiser holds {len(tensors)} tensors nothing is known of, {min(tensors)} for one")
        return transformer

    def _schedule(self, usual: Mapping[str, Any]) -> Mapping[str, Any]:
        asked = config_in(self.texts, "scheduler", "scheduler_config.json")
        if (kind := asked.get("_class_name", SCHEDULER)) != SCHEDULER or asked.get("stochastic_sampling"):
            raise ValueError(f"its scheduler is another {kind} than the engine knows")
        return FlowMatchEulerDiscreteScheduler.from_config(asked or usual).config

    def _vae(self) -> AutoencoderKL:
        tensors = taken(self.tensors, FLOW_VAE)
        names = vae_names(tensors)
        tensors = {names[name]: tensors.pop(name) for name in list(tensors)}
        told = config_in(self.texts, "vae")
        config = vae_config(shapes_of(tensors), groups=told.get("norm_num_groups"))
        if (factor := 2 ** (len(config["block_out_channels"]) - 1)) != LATENT_FACTOR:
            raise ValueError(f"its VAE makes a latent of {factor} pixels a side; the engine knows {LATENT_FACTOR}")
        scale, shift = LATENT_RANGES[self.family]
        with torch.device("meta"):
            vae = AutoencoderKL(
                **config,
                scaling_factor=told.get("scaling_factor", scale),
                shift_factor=told.get("shift_factor", shift),
                use_quant_conv="quant_conv.weight" in tensors,
                use_post_quant_conv="post_quant_conv.weight" in tensors,
            )
        return self._filled(vae, tensors, "VAE", vae_names(vae.state_dict()))

    def _clip(self, prefix: str, kind: Any, *, is_clip: bool) -> Any:
        tensors = taken(self.tensors, prefix)
        tensors = {name.removeprefix("text_model."): tensors.pop(name) for name in list(tensors)}
        if is_clip and kind is CLIPTextModelWithProjection and "text_projection.weight" not in tensors:
            # Files in the original layout leave this one out.
            tensors["text_projection.weight"] = torch.eye(tensors["embeddings.token_embedding.weight"].shape[1])
        told = text_of_config(config_in(self.texts, prefix.removesuffix(".")))
        with torch.device("meta"):
            encoder = kind(CLIPTextConfig(**clip_config(shapes_of(tensors), told, is_clip=is_clip)))
        names = {name: name.removeprefix("text_model.") for name in encoder.state_dict()}
        self._filled(encoder, tensors, "text encoder", names)
        number_positions(encoder, self.place.device)
        return encoder

    def _t5(self, max_tokens: int) -> TextPart | None:
        tensors = taken(self.tensors, T5_PREFIXES[self.family])
        if not tensors:
            return None
        told = config_in(self.texts, T5_PREFIXES[self.family].removesuffix("."))
        with torch.device("meta"):
            encoder = T5EncoderModel(T5Config(**t5_config(shapes_of(tensors), told)))
        words = next(name for name in ("shared.weight", "encoder.embed_tokens.weight") if name in tensors)
        names = {name: name for name in encoder.state_dict()}
        names |= {name: words for name in ("shared.weight", "encoder.embed_tokens.weight") if name in names}
        return TextPart(self._filled(encoder, tensors, "T5 text encoder", names), _t5_tokenizer(), max_tokens)


# --- vocabularies ----------------------------------------------------------------------------------------------------


@cache
def _clip_tokenizer(pad_token: str = "<|endoftext|>") -> Any:
    return CLIPTokenizer.from_pretrained(TOKENIZER_DIR, model_max_length=CLIP_TOKENS, pad_token=pad_token)


@cache
def _t5_tokenizer() -> Any:
    return PreTrainedTokenizerFast(
        tokenizer_file=str(T5_TOKENIZER), pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


# --- shapes ----------------------------------------------------------------------------------------------------------


def sd3_config(shapes: Shapes, told: Mapping[str, Any]) -> dict[str, Any]:
    width, channels, patch, _ = shapes["pos_embed.proj.weight"]
    normed = shapes.get("transformer_blocks.0.attn.norm_q.weight")
    head = normed[0] if normed else told.get("attention_head_dim", SD3_HEAD_CHANNELS)
    side = isqrt(shapes["pos_embed.pos_embed"][1])
    return {
        "sample_size": told.get("sample_size", 128),
        "patch_size": patch,
        "in_channels": channels,
        "out_channels": shapes["proj_out.weight"][0] // patch**2,
        "num_layers": count_in(shapes, r"transformer_blocks\.(\d+)\."),
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "joint_attention_dim": shapes["context_embedder.weight"][1],
        "caption_projection_dim": shapes["context_embedder.weight"][0],
        "pooled_projection_dim": shapes["time_text_embed.text_embedder.linear_1.weight"][1],
        "pos_embed_max_size": side,
        "dual_attention_layers": tuple(
            layer
            for layer in range(count_in(shapes, r"transformer_blocks\.(\d+)\."))
            if f"transformer_blocks.{layer}.attn2.to_q.weight" in shapes
        ),
        "qk_norm": "rms_norm" if normed else None,
    }


def flux_config(shapes: Shapes, told: Mapping[str, Any]) -> dict[str, Any]:
    (head,) = shapes["transformer_blocks.0.attn.norm_q.weight"]
    width, inputs = shapes["x_embedder.weight"]
    # An eighth of each head counts pictures, the rest rows and columns.
    axes = tuple(told.get("axes_dims_rope") or (head // 8, head * 7 // 16, head * 7 // 16))
    if sum(axes) != head or any(axis % 2 for axis in axes):
        raise ValueError(f"its heads of {head} channels cannot be split into {axes} for places")
    return {
        "in_channels": inputs,
        "num_layers": count_in(shapes, r"transformer_blocks\.(\d+)\."),
        "num_single_layers": count_in(shapes, r"single_transformer_blocks\.(\d+)\."),
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "joint_attention_dim": shapes["context_embedder.weight"][1],
        "pooled_projection_dim": shapes["time_text_embed.text_embedder.linear_1.weight"][1],
        "guidance_embeds": "time_text_embed.guidance_embedder.linear_1.weight" in shapes,
        "axes_dims_rope": axes,
    }


def t5_config(shapes: Shapes, told: Mapping[str, Any]) -> dict[str, Any]:
    vocabulary, width = shapes.get("shared.weight") or shapes["encoder.embed_tokens.weight"]
    buckets, heads = shapes["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
    gated = "encoder.block.0.layer.1.DenseReluDense.wi_0.weight" in shapes
    return {
        "vocab_size": vocabulary,
        "d_model": width,
        "d_kv": shapes["encoder.block.0.layer.0.SelfAttention.q.weight"][0] // heads,
        "d_ff": shapes[f"encoder.block.0.layer.1.DenseReluDense.{'wi_0' if gated else 'wi'}.weight"][0],
        "num_layers": count_in(shapes, r"encoder\.block\.(\d+)\."),
        "num_heads": heads,
        "relative_attention_num_buckets": buckets,
        "feed_forward_proj": told.get("feed_forward_proj", "gated-gelu" if gated else "relu"),
    }


# --- original names --------------------------------------------------------------------------------------------------


def sd3_weights(tensors: Tensors) -> Tensors:
    """In the names of diffusers, taken out of ``tensors``; what its converter does not know keeps its name."""
    if "x_embedder.proj.weight" not in tensors:
        return tensors
    return convert_sd3_transformer_checkpoint_to_diffusers(tensors) | tensors


_FLUX_ENDS = {
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "txt_in": "context_embedder",
    "img_in": "x_embedder",
    "final_layer.linear": "proj_out",
}
_FLUX_PARTS = {
    "img_mod.lin": "norm1.linear",
    "txt_mod.lin": "norm1_context.linear",
    "img_attn.norm.query_norm": "attn.norm_q",
    "img_attn.norm.key_norm": "attn.norm_k",
    "txt_attn.norm.query_norm": "attn.norm_added_q",
    "txt_attn.norm.key_norm": "attn.norm_added_k",
    "img_attn.proj": "attn.to_out.0",
    "txt_attn.proj": "attn.to_add_out",
    "img_mlp.0": "ff.net.0.proj",
    "img_mlp.2": "ff.net.2",
    "txt_mlp.0": "ff_context.net.0.proj",
    "txt_mlp.2": "ff_context.net.2",
    "modulation.lin": "norm.linear",
    "linear2": "proj_out",
    "norm.query_norm": "attn.norm_q",
    "norm.key_norm": "attn.norm_k",
}
_FLUX_JOINED = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
}
"""What lies in one matrix: three of the model's width, and the rest."""
_FLUX_BLOCK = re.compile(r"(double|single)_blocks\.(\d+)\.(.+)\.(weight|bias|scale)")


def flux_weights(tensors: Tensors) -> Tensors:
    """In the names of diffusers, taken out of ``tensors``."""
    if "img_in.weight" not in tensors:
        return tensors
    width = tensors["img_in.weight"].shape[0]
    weights: Tensors = {}
    for name in list(tensors):
        weights |= _flux_tensor(name, tensors.pop(name), width)
    return weights


def _flux_tensor(name: str, tensor: torch.Tensor, width: int) -> Tensors:
    if match := _FLUX_BLOCK.fullmatch(name):
        kind, number, part, ending = match.groups()
        block = f"{'transformer_blocks' if kind == 'double' else 'single_transformer_blocks'}.{number}"
        if part in _FLUX_JOINED:
            pieces = tensor.split([width] * 3 + [tensor.shape[0] - 3 * width] * (part == "linear1"))
            return {f"{block}.{new}.{ending}": piece for new, piece in zip(_FLUX_JOINED[part], pieces, strict=True)}
        return {f"{block}.{_FLUX_PARTS[part]}.{ending.replace('scale', 'weight')}": tensor}
    part, _, ending = name.rpartition(".")
    if part == "final_layer.adaLN_modulation.1":
        shift, scale = tensor.chunk(2)
        return {f"norm_out.linear.{ending}": torch.cat((scale, shift))}
    return {f"{_FLUX_ENDS[part]}.{ending}": tensor} if part in _FLUX_ENDS else {name: tensor}
