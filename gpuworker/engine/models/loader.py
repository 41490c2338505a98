"""From a single-file checkpoint in the original (LDM) key layout to networks on the device.

Reads files and fills networks; which networks is decided in ``families``.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from diffusers.models.upsampling import Upsample2D
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from gpuworker.contract.families import TEXT_PREFIXES, UNET, VAE, Shapes
from gpuworker.engine.errors import CheckpointError
from gpuworker.engine.models.families import Architecture, architecture_of, vae_config

TRAINING_STEPS = 1000
_TENSOR_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class TextTower:
    """One text encoder."""

    kind: Literal["clip", "open_clip"]
    model: Any
    """``CLIPTextModel`` or ``CLIPTextModelWithProjection``."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The networks of a checkpoint, ready to run, and the numbers that belong to them.

    The networks are ``Any``: the types diffusers and transformers publish do not show that they are torch modules.
    """

    family: str
    """As ``gpuworker.contract.families`` names it."""
    unet: Any
    """``UNet2DConditionModel``."""
    vae: Any
    """``AutoencoderKL``."""
    text: tuple[TextTower, ...]
    """SDXL has two."""
    alphas_cumprod: torch.Tensor
    """float32 on the CPU, 1000 values."""
    latent_scale: float
    prediction: Literal["eps", "v"] = "eps"
    size_embedding_width: int | None = None
    """Values each number of SDXL's size conditioning is embedded with; None where there is none."""

    @property
    def size_bytes(self) -> int:
        networks = (self.unet, self.vae, *(tower.model for tower in self.text))
        return sum(tensor.nbytes for network in networks for tensor in network.state_dict().values())


def load_checkpoint(
    path: Path, *, config_path: Path | None = None, device: torch.device, dtype: torch.dtype
) -> Checkpoint:
    """Load a checkpoint of one file. Tensors go to the device in the file's type and are cast there.

    Raises:
        CheckpointError: The file is damaged, incomplete or of another family.
    """
    tensors = read_safetensors(path)
    shapes: Shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    plan = architecture_of(shapes, config_path=config_path)
    unet = _unet(tensors, plan, device, dtype)
    return Checkpoint(
        family=plan.family,
        unet=unet,
        vae=_vae(_under(tensors, VAE), plan.vae, plan.family, device, dtype),
        text=tuple(
            _text_tower(tensors, prefix, config, plan.family, device, dtype)
            for prefix, config in zip(TEXT_PREFIXES[plan.family], plan.text, strict=True)
        ),
        alphas_cumprod=_alphas_cumprod(tensors, plan.beta_range),
        latent_scale=plan.latent_scale,
        prediction="v" if (plan.prediction or _found_prediction(unet)) == "v" else "eps",
        size_embedding_width=plan.size_embedding_width,
    )


def load_vae(path: Path, *, like: Checkpoint, device: torch.device, dtype: torch.dtype) -> Any:
    """Load a VAE of its own, keys with or without the prefix they have inside a checkpoint, or of diffusers.

    Args:
        like: The checkpoint it is to decode for; its latents must have as many channels.
    Raises:
        CheckpointError: The file is damaged, no VAE, or one for other latents.
    """
    tensors = read_safetensors(path)
    plain = {VAE + name.removeprefix(VAE): tensor for name, tensor in tensors.items()}
    shapes = {name.removeprefix(VAE): tuple(tensor.shape) for name, tensor in plain.items()}
    if "decoder.mid_block.resnets.0.conv1.weight" in shapes:
        return _vae_in_diffusers_names(plain, shapes, like, device, dtype)
    if "decoder.conv_in.weight" not in shapes or "decoder.up.0.block.0.conv2.weight" not in shapes:
        raise CheckpointError(f"{path.name} holds no VAE.")
    if shapes["decoder.conv_in.weight"][1] != like.vae.config.latent_channels:
        raise CheckpointError(f"{path.name} is a VAE for latents of {shapes['decoder.conv_in.weight'][1]} channels.")
    return _vae(plain, vae_config(shapes), like.family, device, dtype)


def _vae_in_diffusers_names(
    tensors: Tensors, shapes: Shapes, like: Checkpoint, device: torch.device, dtype: torch.dtype
) -> Any:
    """Of the shape of the checkpoint's own."""
    with torch.device("meta"):
        vae: Any = AutoencoderKL(**like.vae.config)
    fill(vae, {name.removeprefix(VAE): tensor for name, tensor in tensors.items()}, "VAE", like.family, device, dtype)
    return vae


def read_safetensors(path: Path) -> Tensors:
    """Read a whole file front to back into one buffer; the tensors are views of it.

    Mapped reads fetch a cold file page by page, which is several times slower than one pass over it.

    Raises:
        CheckpointError: The file is not a complete safetensors file.
    """
    try:
        with path.open("rb") as file:
            (header_bytes,) = struct.unpack("<Q", file.read(8))
            size_bytes = path.stat().st_size - 8 - header_bytes
            if size_bytes < 0:
                raise ValueError("its header is longer than the file")
            header: dict[str, Any] = json.loads(file.read(header_bytes))
            data = torch.empty(size_bytes, dtype=torch.uint8)
            if file.readinto(data.numpy().data) != size_bytes:
                raise ValueError("it ends early")
        return {name: _view(data, entry) for name, entry in header.items() if name != "__metadata__"}
    except (struct.error, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"{path.name} is not a complete safetensors file: {error}.") from error


def _view(data: torch.Tensor, entry: dict[str, Any]) -> torch.Tensor:
    begin, end = entry["data_offsets"]
    if not 0 <= begin <= end <= data.numel():
        raise ValueError("a tensor lies outside the file")
    dtype, raw = _TENSOR_TYPES[entry["dtype"]], data[begin:end]
    aligned = raw if begin % dtype.itemsize == 0 else raw.clone()
    return aligned.view(dtype).view(entry["shape"])


def _unet(tensors: Tensors, plan: Architecture, device: torch.device, dtype: torch.dtype) -> Any:
    with torch.device("meta"):
        unet: Any = UNet2DConditionModel(**plan.unet)
    weights = convert_ldm_unet_checkpoint(_under(tensors, UNET), unet.config)
    fill(unet, weights, "UNet", plan.family, device, dtype)
    _resize_after_upsampling(unet)
    return unet


def _vae(tensors: Tensors, config: dict[str, Any], family: str, device: torch.device, dtype: torch.dtype) -> Any:
    with torch.device("meta"):
        vae: Any = AutoencoderKL(**config)
    weights = convert_ldm_vae_checkpoint(tensors, vae.config)
    fill(vae, weights, "VAE", family, device, dtype)
    return vae


def _text_tower(
    tensors: Tensors, prefix: str, config: dict[str, Any], family: str, device: torch.device, dtype: torch.dtype
) -> TextTower:
    found = {name.removeprefix(prefix): tensor for name, tensor in _under(tensors, prefix).items()}
    if prefix.endswith("transformer."):
        model: Any = CLIPTextModel(CLIPTextConfig(**config))
        weights = {
            name.removeprefix("text_model."): tensor
            for name, tensor in found.items()
            if not name.endswith("position_ids")
        }
        kind: Literal["clip", "open_clip"] = "clip"
    else:
        model = CLIPTextModelWithProjection(CLIPTextConfig(**config))
        weights = _open_clip_weights(found)
        kind = "open_clip"
    # Files differ in whether the names carry text_model, and so do versions of transformers.
    body = "text_model." if any(name.startswith("text_model.") for name in model.state_dict()) else ""
    named = {name if name.startswith("text_projection") else body + name: weight for name, weight in weights.items()}
    fill(model, named, "text encoder", family, device, dtype)
    return TextTower(kind, model.to(device))


OPEN_CLIP_NAMES = (
    ("token_embedding.", "embeddings.token_embedding."),
    ("ln_final.", "final_layer_norm."),
    ("transformer.resblocks.", "encoder.layers."),
    (".ln_1.", ".layer_norm1."),
    (".ln_2.", ".layer_norm2."),
    (".mlp.c_fc.", ".mlp.fc1."),
    (".mlp.c_proj.", ".mlp.fc2."),
    (".attn.out_proj.", ".self_attn.out_proj."),
)
"""OpenCLIP's names → those of transformers."""


def _open_clip_weights(tensors: Tensors) -> Tensors:
    """OpenCLIP keeps the three projections of an attention in one matrix, and the last projection transposed."""
    weights: Tensors = {}
    for name, tensor in tensors.items():
        if ".attn.in_proj_" in name:
            layer, _, part = name.partition(".attn.in_proj_")
            layer = layer.replace("transformer.resblocks.", "encoder.layers.")
            for projection, share in zip(("q_proj", "k_proj", "v_proj"), tensor.chunk(3), strict=True):
                weights[f"{layer}.self_attn.{projection}.{part}"] = share
        elif name == "positional_embedding":
            weights["embeddings.position_embedding.weight"] = tensor
        elif name == "text_projection":
            weights["text_projection.weight"] = tensor.T
        else:
            for theirs, ours in OPEN_CLIP_NAMES:
                name = name.replace(theirs, ours)
            weights[name] = tensor
    if "text_projection.weight" not in weights:
        # Some SD 2 files leave it out; nothing there asks for it.
        weights["text_projection.weight"] = torch.eye(tensors["token_embedding.weight"].shape[1])
    return weights


@torch.inference_mode()
def _found_prediction(unet: Any) -> str:
    """Whether a network without a configuration predicts velocities: at full noise those point away from it.

    Source: ``is_using_v_parameterization_for_sd2``, A1111 1.10.1 ``modules/sd_models_config.py``.
    """
    given = torch.full((1, unet.config.in_channels, 8, 8), 0.5, device=unet.device, dtype=unet.dtype)
    context = torch.full((1, 2, unet.config.cross_attention_dim), 0.5, device=unet.device, dtype=unet.dtype)
    answer = unet(given, TRAINING_STEPS - 1, context, return_dict=False)[0]
    return "v" if float((answer - given[:, : answer.shape[1]]).float().mean()) < -1 else "eps"


def _under(tensors: Tensors, prefix: str) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def fill(
    network: torch.nn.Module, weights: Tensors, part: str, family: str, device: torch.device, dtype: torch.dtype
) -> None:
    """Give a network its weights; every parameter must have one, and of its shape."""
    wanted = network.state_dict()
    missing = tuple(sorted(wanted.keys() - weights.keys()))
    if missing:
        raise CheckpointError(
            f"The {part} of the checkpoint lacks {', '.join(missing[:5])}.", family=family, missing=missing
        )
    wrong = [name for name in wanted if weights[name].shape != wanted[name].shape]
    if wrong:
        found, expected = tuple(weights[wrong[0]].shape), tuple(wanted[wrong[0]].shape)
        raise CheckpointError(f"{wrong[0]} of the {part} is {found}, expected {expected}.", family=family)
    # One copy to the device and one cast there; the file's buffer must not stay alive behind a view of it.
    moved = {name: weights[name].to(device, copy=True).to(dtype).contiguous() for name in wanted}
    network.load_state_dict(moved, assign=True)
    network.requires_grad_(False).eval()


def _alphas_cumprod(tensors: Tensors, beta_range: tuple[float, float]) -> torch.Tensor:
    """The file's own noise schedule where it carries one, else the scaled-linear one."""
    stored = tensors.get("alphas_cumprod")
    if stored is not None and stored.shape == (TRAINING_STEPS,):
        return stored.float().clone()
    first, last = beta_range
    betas = torch.linspace(first**0.5, last**0.5, TRAINING_STEPS, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(dim=0).float()


class _ResizingUpsample(torch.nn.Module):
    """Doubles, convolves, then resizes to the skip connection it will meet.

    QUIRK(A1111 1.10): sides that are not a multiple of 64 pixels meet skips of odd size. A1111 resizes after the convolution,
    diffusers before it; the pictures differ visibly.
    """

    def __init__(self, conv: torch.nn.Module) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, hidden_states: torch.Tensor, output_size: tuple[int, int] | None = None) -> torch.Tensor:
        hidden_states = self.conv(F.interpolate(hidden_states, scale_factor=2.0, mode="nearest"))
        if output_size is None or hidden_states.shape[2:] == output_size:
            return hidden_states
        return F.interpolate(hidden_states, size=output_size, mode="nearest")


def _resize_after_upsampling(unet: Any) -> None:
    for block in unet.up_blocks:
        for index, upsampler in enumerate(block.upsamplers or ()):
            if isinstance(upsampler, Upsample2D):
                convolution: Any = upsampler.conv
                block.upsamplers[index] = _ResizingUpsample(convolution)
