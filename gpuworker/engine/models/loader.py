"""From a single-file checkpoint in the original (LDM) key layout to networks on the device.

Reads files and fills networks; which networks is decided in ``families``.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from diffusers.models.upsampling import Upsample2D
from transformers import CLIPTextConfig, CLIPTextModel

from gpuworker.contract.families import CLIP_TEXT, UNET, VAE, Shapes
from gpuworker.engine.errors import CheckpointError
from gpuworker.engine.models.families import Architecture, architecture_of

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
class Checkpoint:
    """The three networks of a checkpoint, ready to run, and the numbers that belong to them.

    The networks are ``Any``: the types diffusers and transformers publish do not show that they are torch modules.
    """

    unet: Any
    """``UNet2DConditionModel``."""
    vae: Any
    """``AutoencoderKL``."""
    text_encoder: Any
    """``CLIPTextModel``."""
    alphas_cumprod: torch.Tensor
    """float32 on the CPU, 1000 values."""
    latent_scale: float

    @property
    def size_bytes(self) -> int:
        networks = (self.unet, self.vae, self.text_encoder)
        return sum(tensor.nbytes for network in networks for tensor in network.state_dict().values())


def load_checkpoint(
    path: Path, *, config_path: Path | None = None, device: torch.device, dtype: torch.dtype
) -> Checkpoint:
    """Load an SD 1.x checkpoint. Tensors go to the device in the file's type and are cast there.

    Raises:
        CheckpointError: The file is damaged, incomplete or of another family.
    """
    tensors = read_safetensors(path)
    shapes: Shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    plan = architecture_of(shapes, config_path=config_path)
    return Checkpoint(
        unet=_unet(tensors, plan, device, dtype),
        vae=_vae(tensors, plan, device, dtype),
        text_encoder=_text_encoder(tensors, plan, device, dtype),
        alphas_cumprod=_alphas_cumprod(tensors, plan.beta_range),
        latent_scale=plan.latent_scale,
    )


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
    _fill(unet, weights, "UNet", device, dtype)
    _resize_after_upsampling(unet)
    return unet


def _vae(tensors: Tensors, plan: Architecture, device: torch.device, dtype: torch.dtype) -> Any:
    with torch.device("meta"):
        vae: Any = AutoencoderKL(**plan.vae)
    weights = convert_ldm_vae_checkpoint(_under(tensors, VAE), vae.config)
    _fill(vae, weights, "VAE", device, dtype)
    return vae


def _text_encoder(tensors: Tensors, plan: Architecture, device: torch.device, dtype: torch.dtype) -> Any:
    encoder: Any = CLIPTextModel(CLIPTextConfig(**plan.text_encoder))
    # Files differ in whether the names carry text_model, and so do versions of transformers.
    prefix = "text_model." if any(name.startswith("text_model.") for name in encoder.state_dict()) else ""
    weights = {
        prefix + name.removeprefix(CLIP_TEXT).removeprefix("text_model."): tensor
        for name, tensor in _under(tensors, CLIP_TEXT).items()
        if not name.endswith("position_ids")
    }
    _fill(encoder, weights, "text encoder", device, dtype)
    return encoder.to(device)


def _under(tensors: Tensors, prefix: str) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _fill(network: torch.nn.Module, weights: Tensors, part: str, device: torch.device, dtype: torch.dtype) -> None:
    """Give a network its weights; every parameter must have one, and of its shape."""
    wanted = network.state_dict()
    missing = tuple(sorted(wanted.keys() - weights.keys()))
    if missing:
        raise CheckpointError(
            f"The {part} of the checkpoint lacks {', '.join(missing[:5])}.", family="sd1", missing=missing
        )
    wrong = [name for name in wanted if weights[name].shape != wanted[name].shape]
    if wrong:
        found, expected = tuple(weights[wrong[0]].shape), tuple(wanted[wrong[0]].shape)
        raise CheckpointError(f"{wrong[0]} of the {part} is {found}, expected {expected}.", family="sd1")
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
