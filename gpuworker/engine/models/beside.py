"""What comes with the weights and tells what their shapes cannot: an LDM-style YAML, or the ``config.json`` files of diffusers.

Both become one ``Beside``; a file without either has none, and the rules of its family count. No weights are read here.

Source: which lines of a YAML count follows A1111 1.10.1 ``modules/sd_models_config.py`` and ``sd_models_xl.py``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from gpuworker.engine.errors import CheckpointError

SCALED_LINEAR = "scaled_linear"


@dataclass(frozen=True, slots=True)
class TextBeside:
    """Of one text encoder."""

    heads: int | None = None
    activation: str | None = None
    norm_epsilon: float | None = None
    is_named: bool = False
    """The YAML names an encoder of its own instead of the family's: a miniature."""


@dataclass(frozen=True, slots=True)
class Beside:
    """Everything may be missing."""

    heads: int | tuple[int, ...] | None = None
    """Of the UNet's attentions, for all levels or for each."""
    head_channels: int | None = None
    """Channels of one head; only where ``heads`` is missing."""
    prediction: str | None = None
    """``eps`` or ``v``."""
    latent_scale: float | None = None
    first_beta: float | None = None
    last_beta: float | None = None
    zero_terminal_snr: bool = False
    size_embedding_width: int | None = None
    unet_groups: int | None = None
    vae_groups: int | None = None
    text: tuple[TextBeside, ...] = field(default_factory=tuple)

    def text_at(self, place: int) -> TextBeside:
        return self.text[place] if place < len(self.text) else TextBeside()


# --- YAML ------------------------------------------------------------------------------------------------------------


def beside_of_yaml(path: Path) -> Beside:
    """Raises: CheckpointError: It is no LDM-style YAML."""
    try:
        model = yaml.safe_load(path.read_text())["model"]["params"]
        unet = _params(model.get("unet_config") or model.get("network_config"))
        return Beside(
            heads=_positive(unet.get("num_heads")),
            head_channels=_positive(unet.get("num_head_channels")),
            prediction=_yaml_prediction(model),
            latent_scale=_number(model.get("scale_factor")),
            first_beta=_number(model.get("linear_start")),
            last_beta=_number(model.get("linear_end")),
            size_embedding_width=_size_embedding_width(_embedders(model)),
            text=tuple(_yaml_text(path, _params(entry)) for entry in _embedders(model) if _reads_text(entry)),
        )
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(f"The configuration {path.name} is not an LDM-style YAML: {error}.") from error


def _params(config: Mapping[str, Any] | None) -> Mapping[str, Any]:
    return (config or {}).get("params") or {}


def _embedders(model: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """SDXL lists what it is conditioned on; SD 1 and 2 have their one text encoder."""
    if "conditioner_config" in model:
        return _params(model["conditioner_config"]).get("emb_models") or ()
    return (model.get("cond_stage_config") or {},)


def _reads_text(embedder: Mapping[str, Any]) -> bool:
    return embedder.get("input_key", "txt") == "txt"


def _size_embedding_width(embedders: Sequence[Mapping[str, Any]]) -> int | None:
    widths = (_params(entry).get("outdim") for entry in embedders)
    return next((int(width) for width in widths if width), None)


def _yaml_prediction(model: Mapping[str, Any]) -> str | None:
    """``parameterization`` for SD 1 and 2; SDXL names the class that scales for a v-prediction."""
    if asked := model.get("parameterization"):
        return str(asked)
    scaling = _params(model.get("denoiser_config")).get("scaling_config") or {}
    target = str(scaling.get("target", "")).rpartition(".")[2]
    return {"VScaling": "v", "EpsScaling": "eps"}.get(target)


def _yaml_text(path: Path, params: Mapping[str, Any]) -> TextBeside:
    """A YAML names a folder with a CLIP's ``config.json``, or OpenCLIP's ``<arch>.json``; both may lie beside it."""
    if arch := str(params.get("arch", "")):
        described = _neighbour(path, f"{arch}.json")
        heads = _positive(_mapping(described.get("text_cfg")).get("heads"))
        activation = "quick_gelu" if described.get("quick_gelu") else None
        return TextBeside(heads=heads, activation=activation, is_named=bool(described))
    version = str(params.get("version", ""))
    return text_of_config(_neighbour(path, version, "config.json"), is_named=bool(version))


def text_of_config(config: Mapping[str, Any], *, is_named: bool = False) -> TextBeside:
    return TextBeside(
        heads=_positive(config.get("num_attention_heads")),
        activation=config.get("hidden_act"),
        norm_epsilon=_number(config.get("layer_norm_eps")),
        is_named=is_named,
    )


def _neighbour(path: Path, *names: str) -> Mapping[str, Any]:
    """A JSON file beside the YAML; a name with a path in it is no neighbour."""
    if not names[0] or Path(names[0]).name != names[0]:
        return {}
    found = path.parent.joinpath(*names)
    return _mapping(json.loads(found.read_text())) if found.is_file() else {}


# --- what a folder in diffusers layout left in the metadata ----------------------------------------------------------


def beside_of_configs(texts: Mapping[str, str]) -> Beside | None:
    """Args: texts: Place in the folder → content, as the intake writes them into the metadata of the one file it makes of a folder.

    Returns:
        None where there is none of them.
    Raises:
        CheckpointError: A configuration cannot be read, or asks for another noise schedule.
    """
    if "unet/config.json" not in texts:
        return None
    try:
        unet, vae = config_in(texts, "unet"), config_in(texts, "vae")
        schedule = config_in(texts, "scheduler", "scheduler_config.json")
        encoders = [config_in(texts, name) for name in ("text_encoder", "text_encoder_2")]
        if schedule.get("beta_schedule", SCALED_LINEAR) != SCALED_LINEAR:
            raise ValueError(f"its noise schedule is {schedule['beta_schedule']}; the engine knows {SCALED_LINEAR}")
        return Beside(
            heads=_heads(unet),
            prediction="v" if schedule.get("prediction_type") == "v_prediction" else "eps" if schedule else None,
            latent_scale=_number(vae.get("scaling_factor")),
            first_beta=_number(schedule.get("beta_start")),
            last_beta=_number(schedule.get("beta_end")),
            zero_terminal_snr=bool(schedule.get("rescale_betas_zero_snr")),
            size_embedding_width=_positive(unet.get("addition_time_embed_dim")),
            unet_groups=_positive(unet.get("norm_num_groups")),
            vae_groups=_positive(vae.get("norm_num_groups")),
            text=tuple(text_of_config(encoder) for encoder in encoders if encoder),
        )
    except (TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(f"The configuration of the folder cannot be used: {error}.") from error


def config_in(texts: Mapping[str, str], part: str, name: str = "config.json") -> Mapping[str, Any]:
    """A part's configuration; empty where there is none."""
    return _mapping(json.loads(texts.get(f"{part}/{name}", "{}")))


def _heads(unet: Mapping[str, Any]) -> int | tuple[int, ...] | None:
    """diffusers calls the number of heads ``attention_head_dim`` unless it calls it by its name."""
    heads = unet.get("num_attention_heads") or unet.get("attention_head_dim")
    return tuple(int(count) for count in heads) if isinstance(heads, list) else _positive(heads)


def _mapping(value: Any) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError(f"{value!r} is no mapping")
    return value


def _positive(value: Any) -> int | None:
    """-1 stands for nothing in these files."""
    return int(value) if value is not None and int(value) > 0 else None


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
