"""Miniatures of Stable Diffusion 3 and Flux in their real layouts: random pipelines of diffusers, and files made of them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from safetensors.torch import save_file
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from gpuworker.contract.flow import FLOW_PREFIXES
from gpuworker.engine.models.flow import T5_TOKENIZER
from gpuworker.engine.prompts.tokens import TOKENIZER_DIR

Tensors = dict[str, torch.Tensor]
KINDS = ("sd3", "sd3.5", "flux", "flux-fast")
"""Without and with normed queries and second attentions; with and without an embedding for the guidance."""
PARTS = ("transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3")


def family_of(kind: str) -> str:
    return "sd3" if kind.startswith("sd3") else "flux"


def pipeline(kind: str) -> Any:
    """With random weights, always the same."""
    torch.manual_seed(0)
    made = _sd3(kind) if family_of(kind) == "sd3" else _flux(kind)
    made.set_progress_bar_config(disable=True)
    for network in networks(made).values():
        network.eval()
    return made


def networks(made: Any) -> dict[str, Any]:
    return {name: network for name in PARTS if (network := getattr(made, name, None)) is not None}


def _sd3(kind: str) -> Any:
    newer = kind == "sd3.5"
    transformer = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=16, out_channels=16, num_layers=2, attention_head_dim=16 if newer else 64,
        num_attention_heads=4 if newer else 1, joint_attention_dim=32, caption_projection_dim=64,
        pooled_projection_dim=32, pos_embed_max_size=8, qk_norm="rms_norm" if newer else None,
        dual_attention_layers=(0,) if newer else (),
    )  # fmt: skip
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_vae(1.5305, 0.0609),
        text_encoder=_clip(CLIPTextModelWithProjection, "quick_gelu", heads=1),
        tokenizer=_clip_tokenizer(),
        text_encoder_2=_clip(CLIPTextModelWithProjection, "gelu", heads=2),
        tokenizer_2=_clip_tokenizer(pad_token="!"),
        text_encoder_3=_t5(),
        tokenizer_3=_t5_tokenizer(),
    )


def _flux(kind: str) -> Any:
    fast = kind == "flux-fast"
    transformer = FluxTransformer2DModel(
        in_channels=64, num_layers=2, num_single_layers=2, attention_head_dim=32, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=16, guidance_embeds=not fast, axes_dims_rope=(4, 14, 14),
    )  # fmt: skip
    dynamic = {"shift": 3.0, "use_dynamic_shifting": True}
    return FluxPipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(**({"shift": 1.0} if fast else dynamic)),
        vae=_vae(0.3611, 0.1159),
        text_encoder=_clip(CLIPTextModel, "quick_gelu", heads=1),
        tokenizer=_clip_tokenizer(),
        text_encoder_2=_t5(),
        tokenizer_2=_t5_tokenizer(),
    )


def _vae(scale: float, shift: float) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8, 8, 8), layers_per_block=1, down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, norm_num_groups=8, latent_channels=16, scaling_factor=scale,
        shift_factor=shift, use_quant_conv=False, use_post_quant_conv=False,
    )  # fmt: skip


def _clip(kind: Any, activation: str, *, heads: int) -> Any:
    return kind(
        CLIPTextConfig(
            vocab_size=49408, hidden_size=16, projection_dim=16, intermediate_size=32, num_hidden_layers=2,
            num_attention_heads=heads, hidden_act=activation,
        )
    )  # fmt: skip


def _t5() -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(
            vocab_size=32128, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu"
        )
    )


def _clip_tokenizer(pad_token: str = "<|endoftext|>") -> Any:
    return CLIPTokenizer.from_pretrained(TOKENIZER_DIR, model_max_length=77, pad_token=pad_token)


def _t5_tokenizer() -> Any:
    return PreTrainedTokenizerFast(
        tokenizer_file=str(T5_TOKENIZER), model_max_length=512, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


# --- files -----------------------------------------------------------------------------------------------------------


def write_in_names_of_diffusers(made: Any, path: Path) -> Path:
    """As the intake writes a folder, its configurations in the metadata."""
    tensors = {
        f"{part}.{name}": tensor
        for part, network in networks(made).items()
        for name, tensor in network.state_dict().items()
    }
    texts = {f"{part}/config.json": _config_text(network) for part, network in networks(made).items()}
    texts["scheduler/scheduler_config.json"] = made.scheduler.to_json_string()
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path, texts)
    return path


def _config_text(network: Any) -> str:
    config = network.config
    return json.dumps(config.to_dict() if hasattr(config, "to_dict") else dict(config), default=str)


def write_original(made: Any, kind: str, path: Path) -> Path:
    """As publishers write one file."""
    save_file({name: tensor.contiguous().clone() for name, tensor in original(made, kind).items()}, path)
    return path


def original(made: Any, kind: str) -> Tensors:
    family = family_of(kind)
    prefixes = {theirs: prefix for prefix, theirs in FLOW_PREFIXES[family].items()}
    inverse = sd3_original if family == "sd3" else flux_original
    tensors: Tensors = {}
    for part, network in networks(made).items():
        state = network.state_dict()
        if part == "transformer":
            state = inverse(state)
        tensors |= {prefixes[f"{part}."] + name: tensor for name, tensor in state.items()}
    return tensors


_SD3_ENDS = {
    "pos_embed.proj": "x_embedder.proj",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "context_embedder": "context_embedder",
    "proj_out": "final_layer.linear",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
}
_SD3_PARTS = {
    "attn.norm_q": "x_block.attn.ln_q",
    "attn.norm_k": "x_block.attn.ln_k",
    "attn.norm_added_q": "context_block.attn.ln_q",
    "attn.norm_added_k": "context_block.attn.ln_k",
    "attn.to_out.0": "x_block.attn.proj",
    "attn.to_add_out": "context_block.attn.proj",
    "attn2.norm_q": "x_block.attn2.ln_q",
    "attn2.norm_k": "x_block.attn2.ln_k",
    "attn2.to_out.0": "x_block.attn2.proj",
    "norm1.linear": "x_block.adaLN_modulation.1",
    "norm1_context.linear": "context_block.adaLN_modulation.1",
    "ff.net.0.proj": "x_block.mlp.fc1",
    "ff.net.2": "x_block.mlp.fc2",
    "ff_context.net.0.proj": "context_block.mlp.fc1",
    "ff_context.net.2": "context_block.mlp.fc2",
}
_SD3_JOINED = {
    "x_block.attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "context_block.attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "x_block.attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
}
_FLUX_ENDS = {
    "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "context_embedder": "txt_in",
    "x_embedder": "img_in",
    "proj_out": "final_layer.linear",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
}
_FLUX_DOUBLE = {
    "norm1.linear": "img_mod.lin",
    "norm1_context.linear": "txt_mod.lin",
    "attn.norm_q": "img_attn.norm.query_norm",
    "attn.norm_k": "img_attn.norm.key_norm",
    "attn.norm_added_q": "txt_attn.norm.query_norm",
    "attn.norm_added_k": "txt_attn.norm.key_norm",
    "attn.to_out.0": "img_attn.proj",
    "attn.to_add_out": "txt_attn.proj",
    "ff.net.0.proj": "img_mlp.0",
    "ff.net.2": "img_mlp.2",
    "ff_context.net.0.proj": "txt_mlp.0",
    "ff_context.net.2": "txt_mlp.2",
}
_FLUX_SINGLE = {
    "norm.linear": "modulation.lin",
    "proj_out": "linear2",
    "attn.norm_q": "norm.query_norm",
    "attn.norm_k": "norm.key_norm",
}
_FLUX_DOUBLE_JOINED = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
}
_FLUX_SINGLE_JOINED = {"linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")}


def sd3_original(state: Tensors) -> Tensors:
    last = max(int(name.split(".")[1]) for name in state if name.startswith("transformer_blocks."))
    made = {"pos_embed": state["pos_embed.pos_embed"]}
    made |= _ends(state, _SD3_ENDS)
    made |= _blocks(state, "transformer_blocks", "joint_blocks", _SD3_PARTS, _SD3_JOINED)
    for name in (f"joint_blocks.{last}.context_block.adaLN_modulation.1", "final_layer.adaLN_modulation.1"):
        made |= _swapped(made, name)
    return made


def flux_original(state: Tensors) -> Tensors:
    made = _ends(state, _FLUX_ENDS)
    made |= _blocks(state, "transformer_blocks", "double_blocks", _FLUX_DOUBLE, _FLUX_DOUBLE_JOINED)
    made |= _blocks(state, "single_transformer_blocks", "single_blocks", _FLUX_SINGLE, _FLUX_SINGLE_JOINED)
    return made | _swapped(made, "final_layer.adaLN_modulation.1")


def _ends(state: Tensors, names: dict[str, str]) -> Tensors:
    return {
        f"{new}.{ending}": state[f"{old}.{ending}"]
        for old, new in names.items()
        for ending in ("weight", "bias")
        if f"{old}.{ending}" in state
    }


def _blocks(
    state: Tensors, theirs: str, ours: str, parts: dict[str, str], joined: dict[str, tuple[str, ...]]
) -> Tensors:
    made: Tensors = {}
    for name, tensor in state.items():
        if not (match := re.fullmatch(rf"{theirs}\.(\d+)\.(.+)\.(weight|bias)", name)):
            continue
        number, part, ending = match.groups()
        if part in parts:
            scale = "scale" if ours != "joint_blocks" and ".norm" in f".{part}" and "linear" not in part else ending
            made[f"{ours}.{number}.{parts[part]}.{scale}"] = tensor
        for whole, pieces in joined.items():
            if part == pieces[0]:
                rows = [state[f"{theirs}.{number}.{piece}.{ending}"] for piece in pieces]
                made[f"{ours}.{number}.{whole}.{ending}"] = torch.cat(rows)
    return made


def _swapped(made: Tensors, name: str) -> Tensors:
    """Shift before scale, where diffusers has them the other way round."""
    return {
        f"{name}.{ending}": torch.cat(made[f"{name}.{ending}"].chunk(2)[::-1])
        for ending in ("weight", "bias")
        if f"{name}.{ending}" in made
    }
