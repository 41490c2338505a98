"""A1111's txt2img fields → the canonical RenderRequest. Pure. What would change the picture and is not supported is refused."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from gpuworker.contract.samplers import resolve_sampler
from renderjobs.compat.sdapi.errors import HandlerError, WireError, field_detail
from renderjobs.compat.sdapi.wire import OURS, TXT2IMG
from renderjobs.request import RenderRequest

SAME_NAME = (
    "seed", "subseed", "subseed_strength", "seed_resize_from_w", "seed_resize_from_h", "batch_size", "n_iter", "steps",
    "cfg_scale", "width", "height", "tiling", "eta", "s_churn", "s_tmin", "s_tmax", "s_noise",
)  # fmt: skip
OPTIONS = {
    "sd_model_checkpoint": "checkpoint",
    "CLIP_stop_at_last_layers": "clip_skip",
    "eta_noise_seed_delta": "ensd",
    "emphasis": "emphasis",
    "tiling": "tiling",
    "s_churn": "s_churn",
    "s_tmin": "s_tmin",
    "s_tmax": "s_tmax",
    "s_noise": "s_noise",
}
"""Options of ``override_settings`` that take part in a picture → canonical names."""
WITHOUT_EFFECT = re.compile(
    r"samples_save|grid_save|save_|return_|outdir_|directories_|live_preview|show_progress|do_not_show|jpeg_quality|"
    r"webp_lossless|grid_only_if_multiple|grid_save_to_dirs|grid_extended_filename|add_.*_to_info|enable_pnginfo|"
    r"sd_checkpoint_cache|sd_checkpoints_|persistent_cond_cache|batch_cond_uncond|disable_weights_auto_swap|"
    r"use_scale_latent|export_for_4chan|samples_log|samples_filename|multiple_tqdm"
)
"""Options that are about A1111's own files, pages or speed, and those of the contact sheet that the answer honours."""
OF_THE_GRID = re.compile(r"n_rows|grid_")
"""Options of the contact sheet's looks: without effect unless one is asked for."""
SAME_PICTURE = {"sd_vae": (None, "", "Automatic", "None")}
"""Option → values that mean the same here: the checkpoint's own VAE is the only one."""
NEUTRAL = {
    "enable_hr": (None, False),
    "restore_faces": (None, False),
    "refiner_checkpoint": (None, "", "None", "none"),
    "s_min_uncond": (None, 0),
    "script_name": (None, ""),
    "infotext": (None, ""),
    "firstphase_width": (None, 0),
    "firstphase_height": (None, 0),
    "init_images": (None, []),
    "mask": (None, ""),
}
"""Fields whose other values this version cannot honour; passing them over would give another picture than was asked for."""
EXTRA_NETWORK = re.compile(r"<\w+:[^>]+>")
COMMENT_LINE = re.compile(r"(^|\n)#[^\n]*(\n|$)")
COMMENT_TAIL = re.compile(r"#[^\n]*(\n|$)")
HOSTED_OPTIONS = ("sd_model_checkpoint", "sd_vae")
"""Options that hosted webuis take as entries of ``alwayson_scripts``: a text, or ``{"args": [text]}``."""
HOSTED_IGNORED = ("save_dir", "id_task", "uid")
"""Entries of ``alwayson_scripts`` by which hosted webuis name folders and tasks of their own."""


def to_request(values: Mapping[str, Any], *, options: Mapping[str, Any]) -> RenderRequest:
    """Build the canonical request.

    Args:
        values: All fields of ``wire.TXT2IMG`` and ``wire.OURS``, coerced.
        options: Every option this door knows, with its default.
    Raises:
        WireError: A feature that this version does not have is asked for.
        HandlerError: An unknown option or script, as A1111 answers it.
        InvalidRequestError: A value is out of range.
    """
    refuse_unsupported(values)
    # A null means the default, where A1111 would answer 500.
    canonical: dict[str, Any] = {
        name: TXT2IMG[name].default if values[name] is None else values[name] for name in SAME_NAME
    }
    names = {name: name for name in SAME_NAME}
    canonical["prompt"], canonical["negative_prompt"] = (
        without_comments(values[name] or "") for name in ("prompt", "negative_prompt")
    )
    overrides = values["override_settings"] or {}
    apply_options(overrides, options, canonical, names, values)
    apply_options(hosted_options(values["alwayson_scripts"]), options, canonical, names, values, "alwayson_scripts")
    if checkpoint := values["sd_model_checkpoint"]:
        canonical["checkpoint"], names["checkpoint"] = checkpoint, "sd_model_checkpoint"
    resolved = resolve_sampler(values["sampler_name"] or values["sampler_index"], values["scheduler"])
    canonical["sampler"], canonical["schedule"] = resolved.sampler.name, resolved.schedule.label
    if canonical["eta"] is None:
        option = "eta_ancestral" if resolved.sampler.uses_sigmas else "eta_ddim"
        canonical["eta"], names["eta"] = overrides.get(option), f"override_settings.{option}"
    return RenderRequest.build(canonical, names=names)


def apply_options(
    overrides: Mapping[str, Any],
    options: Mapping[str, Any],
    canonical: dict[str, Any],
    names: dict[str, str],
    values: Mapping[str, Any],
    field: str = "override_settings",
) -> None:
    """Put options into ``canonical``; a field of the request itself wins over the option of its name."""
    for option, value in overrides.items():
        where = f"{field}.{option}"
        if option not in options:
            raise HandlerError(500, repr(option), error="KeyError")
        if name := OPTIONS.get(option):
            if values.get(option) is None and value is not None:
                canonical[name], names[name] = as_type_of(value, options[option]), where
        elif option in ("eta_ancestral", "eta_ddim"):
            continue  # read where the sampler is known
        elif not without_effect(option, value, options, values):
            message = f"Option {option!r} with the value {value!r} is not supported by this version."
            raise WireError(field_detail(where, message, "value_error.unsupported"))


def without_effect(option: str, value: Any, options: Mapping[str, Any], values: Mapping[str, Any]) -> bool:
    """Whether the answer is the same with and without this option."""
    if value is None or value == options[option] or value in SAME_PICTURE.get(option, ()):
        return True
    no_grid = not values["save_images"] and OF_THE_GRID.match(option)
    return bool(WITHOUT_EFFECT.match(option) or no_grid)


def as_type_of(value: Any, default: Any) -> Any:
    """``"2"`` for a numeric option is meant as 2."""
    if isinstance(value, str) and isinstance(default, (int, float)) and not isinstance(default, bool):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def refuse_unsupported(values: Mapping[str, Any]) -> None:
    details = [
        field_detail(name, f"{name} is not supported by this version.", "value_error.unsupported")
        for name, neutral in NEUTRAL.items()
        if values[name] not in neutral
    ]
    scripts = [name for name in values["alwayson_scripts"] if name not in (*HOSTED_OPTIONS, *HOSTED_IGNORED)]
    if scripts:
        raise HandlerError(422, f"Script '{scripts[0]}' not found")
    if EXTRA_NETWORK.search(values["prompt"] or ""):
        message = "Extra networks such as <lora:name> are not supported by this version."
        details.append(field_detail("prompt", message, "value_error.unsupported"))
    if details:
        raise WireError(*details)


def hosted_options(scripts: Mapping[str, Any]) -> dict[str, str]:
    """The options among ``alwayson_scripts``.

    Raises:
        WireError: One is no text.
    """
    found = {}
    for name in HOSTED_OPTIONS:
        value = scripts.get(name)
        if isinstance(value, Mapping):
            arguments = value.get("args")
            value = arguments[0] if isinstance(arguments, list) and arguments else None
        if value is not None and not isinstance(value, str):
            raise WireError(field_detail(f"alwayson_scripts.{name}", "str type expected", "type_error.str"))
        if value:
            found[name] = value
    return found


def ignored_fields(body: Mapping[str, Any], values: Mapping[str, Any]) -> list[str]:
    """What was sent and has no effect, for the caller to see."""
    unknown = [name for name in body if name not in TXT2IMG and name not in OURS]
    return unknown + [f"alwayson_scripts.{name}" for name in HOSTED_IGNORED if name in values["alwayson_scripts"]]


def grid_wanted(values: Mapping[str, Any], options: Mapping[str, Any], images: int) -> bool:
    """Whether A1111 would put its contact sheet before the pictures."""
    chosen = {**options, **(values["override_settings"] or {})}
    enough = images > 1 or (images == 1 and not chosen["grid_only_if_multiple"])
    return bool(values["save_images"] and chosen["return_grid"] and enough)


def without_comments(prompt: str) -> str:
    """A ``#`` begins a comment to the end of the line.

    Source: ``strip_comments``, stable-diffusion-webui 1.10.1 ``modules/processing_scripts/comments.py``.
    """
    return COMMENT_TAIL.sub("\n", COMMENT_LINE.sub("\n", prompt))
