"""From the weights of a checkpoint to networks on the device: one file, in the original layout or in that of diffusers.

Fills networks; which networks is decided in ``families``, how files are read in ``tensor_files``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.upsampling import Upsample2D
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from gpuworker.contract.layouts import (
    DIFFUSERS_VAE,
    UNET,
    VAE,
    original_names,
    unet_names,
    vae_names,
)
from gpuworker.engine.errors import CheckpointError
from gpuworker.engine.models.beside import Beside, beside_of_configs, beside_of_yaml
from gpuworker.engine.models.families import (
    SIZED_FAMILIES,
    Architecture,
    TextKind,
    TextPlan,
    architecture_of,
    vae_config,
)
from gpuworker.engine.models.tensor_files import Tensors, read_metadata, read_separately

TRAINING_STEPS = 1000


@dataclass(frozen=True, slots=True)
class TextTower:
    """One text encoder."""

    kind: TextKind
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
    zero_terminal_snr: bool = False
    """Trained with a noise schedule rescaled so that nothing of the picture is left at its end."""

    @property
    def size_bytes(self) -> int:
        networks = (self.unet, self.vae, *(tower.model for tower in self.text))
        return sum(tensor.nbytes for network in networks for tensor in network.state_dict().values())


def load_checkpoint(
    path: Path,
    *,
    config_path: Path | None = None,
    device: torch.device,
    dtype: torch.dtype,
    read: Callable[[Path], Tensors] = read_separately,
) -> Checkpoint:
    """Load a checkpoint. Tensors go to the device in the file's type and are cast there; each leaves memory as soon as it has.

    Args:
        config_path: An LDM-style YAML; without one, what the file's metadata hold of a folder's configuration counts.
        read: Gives the file's tensors away.
    Raises:
        CheckpointError: The file is damaged, incomplete or of another family.
    """
    beside = beside_of_yaml(config_path) if config_path else beside_of_configs(read_metadata(path))
    return _checkpoint(_in_original_layout(read(path)), beside, Place(device, dtype))


@dataclass(frozen=True, slots=True)
class Place:
    """Where networks go."""

    device: torch.device
    dtype: torch.dtype


def _in_original_layout(tensors: Tensors) -> Tensors:
    """The caller's dictionary is empty afterwards, as it would keep alive what is taken out of the new one."""
    names = original_names(shapes_of(tensors))
    return {names[name]: tensors.pop(name) for name in list(tensors)}


def shapes_of(tensors: Tensors) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _checkpoint(tensors: Tensors, beside: Beside | None, place: Place) -> Checkpoint:
    plan = architecture_of(shapes_of(tensors), beside)
    alphas_cumprod = _alphas_cumprod(tensors, plan)
    unet = _unet(taken(tensors, UNET), plan, place)
    return Checkpoint(
        family=plan.family,
        unet=unet,
        vae=_vae(taken(tensors, VAE), plan.vae, plan.family, place),
        text=tuple(_text_tower(taken(tensors, text.prefix), text, plan.family, place) for text in plan.text),
        alphas_cumprod=alphas_cumprod,
        latent_scale=plan.latent_scale,
        prediction="v" if (plan.prediction or _found_prediction(unet)) == "v" else "eps",
        size_embedding_width=plan.size_embedding_width,
        zero_terminal_snr=plan.zero_terminal_snr,
    )


def taken(tensors: Tensors, prefix: str) -> Tensors:
    """A part of a checkpoint without its prefix; the checkpoint no longer holds it."""
    return {name.removeprefix(prefix): tensors.pop(name) for name in list(tensors) if name.startswith(prefix)}


# --- UNet and VAE ----------------------------------------------------------------------------------------------------


def _unet(tensors: Tensors, plan: Architecture, place: Place) -> Any:
    with torch.device("meta"):
        unet: Any = UNet2DConditionModel(**plan.unet)
    fill(unet, tensors, unet_names(unet.state_dict()), "UNet of the checkpoint", plan.family, place)
    _resize_after_upsampling(unet)
    return unet


def _vae(tensors: Tensors, config: dict[str, Any], family: str | None, place: Place) -> Any:
    with torch.device("meta"):
        vae: Any = AutoencoderKL(**config)
    fill(vae, tensors, vae_names(vae.state_dict()), "VAE", family, place)
    return vae


def load_vae(path: Path, *, like: Checkpoint, device: torch.device, dtype: torch.dtype) -> Any:
    """Load a VAE of its own: original names with or without the prefix they have inside a checkpoint, or those of diffusers.

    Args:
        like: The checkpoint it is to decode for; its latents must have as many channels.
    Raises:
        CheckpointError: The file is damaged, no VAE, or one for other latents.
    """
    tensors = _vae_tensors(read_separately(path))
    shapes = shapes_of(tensors)
    try:
        config = vae_config(shapes)
    except (KeyError, IndexError) as error:
        raise CheckpointError(f"{path.name} holds no VAE: it lacks the tensor {error}.") from error
    if config["latent_channels"] != like.vae.config.latent_channels:
        raise CheckpointError(
            f"{path.name} is a VAE for latents of {config['latent_channels']} channels.", family="vae"
        )
    return _vae(tensors, config, "vae", Place(device, dtype))


def _vae_tensors(tensors: Tensors) -> Tensors:
    """Under their original names without prefix."""
    for prefix in (VAE, DIFFUSERS_VAE):
        tensors = taken(tensors, prefix) or tensors
    names = vae_names(tensors)
    return {names[name]: tensor for name, tensor in tensors.items()}


@torch.inference_mode()
def _found_prediction(unet: Any) -> str:
    """Whether a network without a configuration predicts velocities: at full noise those point away from it.

    Source: ``is_using_v_parameterization_for_sd2``, A1111 1.10.1 ``modules/sd_models_config.py``.
    """
    given = torch.full((1, unet.config.in_channels, 8, 8), 0.5, device=unet.device, dtype=unet.dtype)
    context = torch.full((1, 2, unet.config.cross_attention_dim), 0.5, device=unet.device, dtype=unet.dtype)
    answer = unet(given, TRAINING_STEPS - 1, context, return_dict=False)[0]
    return "v" if float((answer - given).float().mean()) < -1 else "eps"


# --- text encoders ---------------------------------------------------------------------------------------------------

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
OPEN_CLIP_MARK = "token_embedding.weight"


def _text_tower(tensors: Tensors, plan: TextPlan, family: str, place: Place) -> TextTower:
    kind: Any = CLIPTextModel if plan.kind == "clip" else CLIPTextModelWithProjection
    with torch.device("meta"):
        model = kind(CLIPTextConfig(**plan.config))
    weights = in_names_of_transformers(tensors)
    if plan.kind == "open_clip":
        weights |= _left_out(weights, plan)
    wanted = {name: name.removeprefix("text_model.") for name in model.state_dict()}
    fill(model, weights, wanted, "text encoder", family, place)
    number_positions(model, place.device)
    return TextTower(plan.kind, model)


def number_positions(model: Any, device: torch.device) -> None:
    """The one buffer that no file needs to hold."""
    embeddings = getattr(model, "text_model", model).embeddings
    positions = torch.arange(model.config.max_position_embeddings, device=device).unsqueeze(0)
    embeddings.register_buffer("position_ids", positions, persistent=False)


def in_names_of_transformers(tensors: Tensors) -> Tensors:
    """A text encoder's weights, taken out of ``tensors``.

    OpenCLIP keeps the three projections of an attention in one matrix, and the last projection transposed.
    """
    weights = {name.removeprefix("text_model."): tensors.pop(name) for name in list(tensors)}
    return _of_open_clip(weights) if OPEN_CLIP_MARK in weights else weights


def _of_open_clip(tensors: Tensors) -> Tensors:
    weights: Tensors = {}
    for name in list(tensors):
        tensor = tensors.pop(name)
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
            weights[_renamed(name)] = tensor
    return weights


def _renamed(name: str) -> str:
    for theirs, ours in OPEN_CLIP_NAMES:
        name = name.replace(theirs, ours)
    return name


def _left_out(weights: Tensors, plan: TextPlan) -> Tensors:
    """What files of SD 2 may lack, as nothing there asks for it."""
    added: Tensors = {}
    if "text_projection.weight" not in weights:
        added["text_projection.weight"] = torch.eye(plan.config["hidden_size"])
    if plan.lacks_last_layer:
        added |= _layer_without_effect(weights, plan.config["num_hidden_layers"] - 1)
    return added


def _layer_without_effect(weights: Tensors, number: int) -> Tensors:
    """A last layer whose two branches add nothing, so that the hidden state before it is the stored encoder's last."""
    before, layer = f"encoder.layers.{number - 1}.", f"encoder.layers.{number}."
    return {
        layer + name.removeprefix(before): torch.zeros_like(tensor)
        for name, tensor in weights.items()
        if name.startswith(before)
    }


# --- filling ---------------------------------------------------------------------------------------------------------


def fill(
    network: torch.nn.Module, tensors: Tensors, names: Mapping[str, str], part: str, family: str | None, place: Place
) -> None:
    """Give a network its weights, taking them out of ``tensors``; every parameter must have one, and of its shape.

    Parameters of one name share their weights.

    Args:
        names: The network's names → those of ``tensors``.
    """
    wanted = network.state_dict()
    missing = tuple(sorted(names[name] for name in wanted if names[name] not in tensors))
    if missing:
        raise CheckpointError(f"The {part} lacks {_listed(missing)}.", family=family, missing=missing)
    moved: Tensors = {}
    places: dict[str, str] = {}
    for name, like in wanted.items():
        if (first := places.setdefault(names[name], name)) != name:
            moved[name] = moved[first]
            continue
        # Nothing else holds the file's tensor then, so that memory holds the weights once.
        given = tensors.pop(names[name])
        if not given.is_floating_point():
            raise CheckpointError(f"{names[name]} of the {part} is quantised ({given.dtype}).", family=family)
        flat = given.flatten(1) if given.dim() > like.dim() and given.shape[2:].numel() == 1 else given
        if flat.shape != like.shape:
            found, expected = tuple(given.shape), tuple(like.shape)
            raise CheckpointError(f"{names[name]} of the {part} is {found}, expected {expected}.", family=family)
        moved[name] = flat.to(place.device).to(place.dtype).contiguous()
    network.load_state_dict(moved, assign=True)
    network.requires_grad_(False).eval()


def _listed(names: Iterable[str], most: int = 5) -> str:
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _alphas_cumprod(tensors: Tensors, plan: Architecture) -> torch.Tensor:
    """The file's own noise schedule where it carries one, else the scaled-linear one; SDXL's is never read from the file."""
    stored = tensors.get("alphas_cumprod")
    if stored is not None and stored.shape == (TRAINING_STEPS,) and plan.family not in SIZED_FAMILIES:
        return stored.float().clone()
    first, last = plan.beta_range
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
