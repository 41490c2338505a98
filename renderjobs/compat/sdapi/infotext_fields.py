"""Parameters of an infotext → fields of a request: what the ``infotext`` field of txt2img and img2img stands for. Pure.

A1111 fills fewer fields for img2img, swaps the sides of ``seed_resize_from`` and switches the second pass on for every picture that
names a denoising strength; here the request comes out as the picture was made.

Source: ``apply_infotext`` of ``modules/api/api.py``, the paste fields of ``modules/ui.py`` and ``modules/processing_scripts``, and
``get_override_settings`` of ``modules/infotext_utils.py``, A1111 1.10.1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gpuworker.contract.samplers import AUTOMATIC, effective_schedule, resolve_sampler
from renderjobs.choices import JobKind
from renderjobs.compat.sdapi.infotext_parser import SAME_SAMPLER, SAME_SCHEDULER, Style, parse_infotext

BOTH = {
    "prompt": "Prompt",
    "negative_prompt": "Negative prompt",
    "styles": "Styles array",
    "steps": "Steps",
    "cfg_scale": "CFG scale",
    "width": "Size-1",
    "height": "Size-2",
    "batch_size": "Batch size",
    "denoising_strength": "Denoising strength",
    "seed": "Seed",
    "subseed": "Variation seed",
    "subseed_strength": "Variation seed strength",
    "seed_resize_from_w": "Seed resize from-1",
    "seed_resize_from_h": "Seed resize from-2",
    "refiner_checkpoint": "Refiner",
    "refiner_switch_at": "Refiner switch at",
}
"""Field → key, for both kinds of request."""
OF_HIRES = {
    "hr_scale": "Hires upscale",
    "hr_upscaler": "Hires upscaler",
    "hr_second_pass_steps": "Hires steps",
    "hr_resize_x": "Hires resize-1",
    "hr_resize_y": "Hires resize-2",
    "hr_checkpoint_name": "Hires checkpoint",
    "hr_prompt": "Hires prompt",
    "hr_negative_prompt": "Hires negative prompt",
}
OF_PICTURES = {"image_cfg_scale": "Image CFG scale", "initial_noise_multiplier": "Noise multiplier"}
MASK_MODES = {"Inpaint masked": 0, "Inpaint not masked": 1}
MASKED_CONTENTS = {"fill": 0, "original": 1, "latent noise": 2, "latent nothing": 3}
INPAINT_AREAS = {"Whole picture": False, "Only masked": True}
OPTIONS = {
    "Model hash": "sd_model_checkpoint",
    "VAE": "sd_vae",
    "Clip skip": "CLIP_stop_at_last_layers",
    "Emphasis": "emphasis",
    "RNG": "randn_source",
    "Tiling": "tiling",
    "Hires refiner": "hires_fix_refiner_pass",
    "VAE Encoder": "sd_vae_encode_method",
    "VAE Decoder": "sd_vae_decode_method",
    "Conditional mask weight": "inpainting_mask_weight",
    "Extra noise": "img2img_extra_noise",
    "NGMS": "s_min_uncond",
    "NGMS all steps": "s_min_uncond_all",
    "Token merging ratio": "token_merging_ratio",
    "Token merging ratio hr": "token_merging_ratio_hr",
    "Pad conds": "pad_cond_uncond",
    "Pad conds v0": "pad_cond_uncond_v0",
    "FP8 weight": "fp8_storage",
    "Cache FP16 weight for LoRA": "cache_fp16_weight",
    "Old prompt editing timelines": "use_old_scheduling",
    "Downcast alphas_cumprod": "use_downcasted_alpha_bar",
    "Refiner switch by sampling steps": "refiner_switch_by_sample_steps",
    "Face restoration": "face_restoration",
    "Eta": "eta_ancestral",
    "Eta DDIM": "eta_ddim",
    "Sigma churn": "s_churn",
    "Sigma tmin": "s_tmin",
    "Sigma tmax": "s_tmax",
    "Sigma noise": "s_noise",
    "Schedule min sigma": "sigma_min",
    "Schedule max sigma": "sigma_max",
    "Schedule rho": "rho",
    "ENSD": "eta_noise_seed_delta",
    "Discard penultimate sigma": "always_discard_next_to_last_sigma",
    "SGM noise multiplier": "sgm_noise_multiplier",
    "UniPC variant": "uni_pc_variant",
    "UniPC skip type": "uni_pc_skip_type",
    "UniPC order": "uni_pc_order",
    "UniPC lower order final": "uni_pc_lower_order_final",
    "Noise Schedule": "sd_noise_schedule",
    "Skip Early CFG": "skip_early_cond",
    # A1111 writes the first spelling and reads the second.
    "Beta schedule alpha": "beta_dist_alpha",
    "Beta schedule beta": "beta_dist_beta",
    "Beta scheduler alpha": "beta_dist_alpha",
    "Beta scheduler beta": "beta_dist_beta",
}
"""Key → option."""


def with_infotext(
    body: Mapping[str, Any], *, kind: str, options: Mapping[str, Any], styles: Iterable[Style] = ()
) -> dict[str, Any]:
    """The body of a request, filled from its ``infotext``; what the caller said itself stays.

    Args:
        options: Every option with its present value.
    """
    text = body.get("infotext")
    if not isinstance(text, str) or not text:
        return dict(body)
    fields = request_fields_of(parse_infotext(text, styles), kind=kind, options=options)
    if "sampler_index" in body:
        fields.pop("sampler_name", None)
    given = body.get("override_settings")
    if given is not None and not isinstance(given, Mapping):
        del fields["override_settings"]  # refused at its own field
        return {**fields, **body}
    return {**fields, **body, "override_settings": {**fields["override_settings"], **(given or {})}}


def request_fields_of(
    parameters: Mapping[str, Any], *, kind: str = JobKind.TXT2IMG, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Wire field → value, ``override_settings`` among them. Texts stay texts; the wire's own coercion makes numbers of them.

    Args:
        options: Every option with its present value; one that has it already is left out.
    """
    names = BOTH | (OF_HIRES if kind == JobKind.TXT2IMG else OF_PICTURES)
    found = {field: parameters[key] for field, key in names.items() if parameters.get(key) is not None}
    found |= sampler_fields(parameters)
    if kind == JobKind.TXT2IMG:
        found |= hires_fields(parameters)
    else:
        found |= mask_fields(parameters)
    return {**found, "override_settings": override_settings_of(parameters, options)}


def sampler_fields(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Old texts have the schedule in the sampler's name (``DPM++ 2M Karras``)."""
    asked = parameters.get("Schedule type", AUTOMATIC)
    if "Sampler" not in parameters:
        return {"scheduler": asked} if asked != AUTOMATIC else {}
    name, schedule = split_sampler(parameters["Sampler"], asked)
    return {"sampler_name": name, "scheduler": schedule}


def split_sampler(name: str, schedule: str) -> tuple[str, str]:
    """Sampler and schedule as a page shows them: the sampler's own default is ``Automatic``."""
    resolved = resolve_sampler(name, None if schedule == AUTOMATIC else schedule)
    own = effective_schedule(resolved.sampler, resolve_sampler(resolved.sampler.name, None).schedule)
    return resolved.sampler.name, AUTOMATIC if resolved.schedule == own else resolved.schedule.label


def hires_fields(parameters: Mapping[str, Any]) -> dict[str, Any]:
    resized = any(str(parameters.get(f"Hires resize-{side}", 0)) != "0" for side in (1, 2))
    has_pass = resized or "Hires upscale" in parameters or "Hires upscaler" in parameters
    found = {"enable_hr": True} if has_pass and "Denoising strength" in parameters else {}
    sampler, schedule = (
        parameters.get("Hires sampler", SAME_SAMPLER),
        parameters.get("Hires schedule type", SAME_SCHEDULER),
    )
    if sampler != SAME_SAMPLER:
        name, split = split_sampler(sampler, AUTOMATIC if schedule == SAME_SCHEDULER else schedule)
        sampler, schedule = name, schedule if split == AUTOMATIC else split
    return {**found, "hr_sampler_name": sampler, "hr_scheduler": schedule}


def mask_fields(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Only where something tells of a mask: a whole picture and its original content are what the parser takes for granted."""
    found: dict[str, Any] = {
        "inpainting_mask_invert": MASK_MODES.get(parameters.get("Mask mode", "Inpaint masked")),
        "inpainting_fill": MASKED_CONTENTS.get(parameters.get("Masked content", "original")),
        "inpaint_full_res": INPAINT_AREAS.get(parameters.get("Inpaint area", "Whole picture")),
    }
    if "Mask blur" not in parameters and tuple(found.values()) == (0, 1, False):
        return {}
    found |= {
        "mask_blur": parameters.get("Mask blur"),
        "inpaint_full_res_padding": parameters.get("Masked area padding"),
    }
    return {field: value for field, value in found.items() if value is not None}


def override_settings_of(parameters: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Options that differ from their present values; the checkpoint only where ``disable_weights_auto_swap`` is off."""
    found = {}
    for key, option in OPTIONS.items():
        if key not in parameters or (option == "sd_model_checkpoint" and options["disable_weights_auto_swap"]):
            continue
        value = cast(parameters[key], options[option])
        if value != options[option]:
            found[option] = value
    return found


def cast(value: Any, default: Any) -> Any:
    """A text as the option's type; what cannot be read as one stays, so that it is refused as a bad option is."""
    if isinstance(default, bool):
        return value not in (False, "False", "")
    if isinstance(default, int | float):
        try:
            number = float(value)
        except ValueError:
            return value
        return int(number) if number.is_integer() else number
    return value
