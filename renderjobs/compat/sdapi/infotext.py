"""Recipe → infotext, the text that A1111 writes into every picture. Pure; the worker's output stage and this door use it.

Source: the order of keys in ``create_infotext``, stable-diffusion-webui 1.10.1 ``modules/processing.py``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from gpuworker.contract import ControlUnit, Recipe, Settings
from gpuworker.contract.prompts import embedding_names_in, strip_network_tags
from gpuworker.contract.samplers import AUTOMATIC, SAMPLERS_BY_NAME, SamplerInfo, effective_schedule, schedule_named

VERSION = "v1.10.1"
"""The A1111 release whose behaviour a picture follows; clients compare it."""
TAKES_ETA = frozenset(
    {
        "DPM++ SDE", "DPM++ 2M SDE", "DPM++ 2M SDE Heun", "DPM++ 2S a", "DPM++ 3M SDE", "Euler a", "DPM2 a", "DPM fast",
        "DPM adaptive", "DDIM", "DDIM CFG++",
    }
)  # fmt: skip
"""Samplers whose function has an ``eta`` argument; A1111 writes no eta for the others, whatever was asked for."""
TAKES_CHURN = frozenset({"Euler", "Heun", "DPM2"})
TAKES_SIGMA_NOISE = frozenset(
    {"DPM fast", "DPM2 a", "DPM++ 2S a", "DPM++ SDE", "DPM++ 2M SDE", "DPM++ 2M SDE Heun", "DPM++ 3M SDE"}
)
"""Samplers that A1111 hands these options to. Source: ``sampler_extra_params``, A1111 1.10.1 ``sd_samplers_kdiffusion.py``."""
SCHEDULE_TYPE = "Schedule type"
ORIGINAL = 1
PARTS = re.compile(r"\bAND\b")
WEIGHT_OF_A_PART = re.compile(r":\s*+[-+]?(?:\d++\.?|\d*+\.\d++)$")
MASKED_CONTENT = {0: "fill", 2: "latent noise", 3: "latent nothing"}
EDITING, INPAINTING = 8, 9
"""Input channels of checkpoints that see a picture."""


def infotext_of(recipe: Recipe) -> str:
    """Prompt, negative prompt and one line of ``Key: value`` pairs."""
    pairs = ", ".join(pair(key, value) for key, value in parameters_of(recipe))
    negative = f"\nNegative prompt: {recipe.negative_prompt}" if recipe.negative_prompt else ""
    return f"{recipe.prompt}{negative}\n{pairs}".strip()


def parameters_of(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """The pairs in A1111's order; what has its neutral value is left out as A1111 leaves it out.

    A parameter that a part of the run reports takes the place of the fixed one of its name.
    """
    extra = {**extra_parameters_of(recipe), **prompts_of_hires(recipe)}
    for key, value in fixed_parameters_of(recipe).items():
        shown = extra.pop(key, value)
        if shown is not None:
            yield key, str(shown)
    yield from ((key, str(value)) for key, value in extra.items() if value is not None)
    yield "Version", VERSION


def fixed_parameters_of(recipe: Recipe) -> dict[str, Any]:
    """Name → value, None where A1111 writes none."""
    sampler, settings, given = SAMPLERS_BY_NAME[recipe.sampler], recipe.settings, recipe.img2img
    resized = recipe.seed_resize_from_w > 0 and recipe.seed_resize_from_h > 0
    merging = (
        settings.token_merging_ratio_img2img or settings.token_merging_ratio if given else settings.token_merging_ratio
    )
    merging_hr = (settings.token_merging_ratio_hr or settings.token_merging_ratio) if recipe.hires else 0
    varied = recipe.subseed_strength != 0
    return {
        "Steps": recipe.steps,
        "Sampler": sampler.name,
        SCHEDULE_TYPE: recipe.schedule,
        "CFG scale": float(recipe.cfg_scale),
        "Image CFG scale": as_float(given.image_cfg_scale)
        if given and recipe.checkpoint.input_channels == EDITING
        else None,
        "Seed": recipe.seed,
        "Size": f"{recipe.width}x{recipe.height}",
        "Model hash": recipe.checkpoint.short_hash,
        "Model": recipe.checkpoint.name,
        "VAE hash": recipe.vae.short_hash if recipe.vae else None,
        "VAE": f"{recipe.vae.name}.safetensors" if recipe.vae else None,
        "Variation seed": recipe.subseed if varied else None,
        "Variation seed strength": float(recipe.subseed_strength) if varied else None,
        "Seed resize from": f"{recipe.seed_resize_from_w}x{recipe.seed_resize_from_h}" if resized else None,
        "Denoising strength": float(recipe.strength) if recipe.hires or given else None,
        "Conditional mask weight": settings.inpainting_mask_weight if uses_inpainting_conditioning(recipe) else None,
        "Clip skip": recipe.clip_skip if recipe.clip_skip > 1 else None,
        "ENSD": recipe.ensd if recipe.ensd and sampler.uses_ensd and recipe.eta != 0 else None,
        "Token merging ratio": merging or None,
        "Token merging ratio hr": merging_hr or None,
        "RNG": settings.randn_source if settings.randn_source != "GPU" else None,
        "Tiling": True if recipe.tiling else None,
    }


def uses_inpainting_conditioning(recipe: Recipe) -> bool:
    """Whether the network sees a picture and its mask; without one it is shown a grey one, all of it to be drawn."""
    return recipe.checkpoint.input_channels == INPAINTING


def extra_parameters_of(recipe: Recipe) -> dict[str, Any]:
    """A1111's ``extra_generation_params``: what the parts of a run report, in the order in which they come to run.

    What A1111 keeps as a function there is None here.
    """
    return {
        **dict(recipe.notes),
        **control_parameters(recipe),
        **soft_parameters(recipe),
        **picture_parameters(recipe),
        **hires_parameters(recipe),
        **network_parameters(recipe),
        **prompt_parameters(recipe),
        **sampling_parameters(recipe),
        **refiner_parameters(recipe),
    }


def control_parameters(recipe: Recipe) -> dict[str, Any]:
    return {f"ControlNet {index}": unit_text(unit) for index, unit in enumerate(recipe.control)}


def unit_text(unit: ControlUnit) -> str:
    values = {
        "Module": unit.module,
        "Model": unit.model,
        "Weight": unit.weight,
        "Resize Mode": unit.resize_mode,
        "Processor Res": unit.processor_res,
        "Threshold A": unit.threshold_a,
        "Threshold B": unit.threshold_b,
        "Guidance Start": unit.guidance_start,
        "Guidance End": unit.guidance_end,
        "Pixel Perfect": unit.pixel_perfect,
        "Control Mode": unit.control_mode,
    }
    if any(mark in str(value) for value in values.values() for mark in ",:"):
        # QUIRK(sd-webui-controlnet 1.1.455): what could not be read again is not written at all.
        return ""
    return ", ".join(f"{name}: {value}" for name, value in values.items())


def soft_parameters(recipe: Recipe) -> dict[str, Any]:
    soft = recipe.inpaint.soft if recipe.inpaint else None
    if soft is None:
        return {}
    values = {
        "schedule bias": soft.power,
        "preservation strength": soft.scale,
        "transition contrast boost": soft.detail,
        "mask influence": soft.mask_influence,
        "difference threshold": soft.difference_threshold,
        "difference contrast": soft.difference_contrast,
    }
    named = {f"Soft inpainting {name}": as_sent(value) for name, value in values.items()}
    return {"Denoising strength": float(recipe.strength), "Soft inpainting enabled": True, **named}


def picture_parameters(recipe: Recipe) -> dict[str, Any]:
    if recipe.img2img is None:
        return {}
    found: dict[str, Any] = {"Denoising strength": float(recipe.strength)}
    if inpaint := recipe.inpaint:
        if inpaint.invert:
            found["Mask mode"] = "Inpaint not masked"
        if inpaint.blur_x or inpaint.blur_y:
            # QUIRK(A1111 1.10): two blurs are no blur anybody can write down.
            found["Mask blur"] = inpaint.blur_x if inpaint.blur_x == inpaint.blur_y else None
        if inpaint.full_res:
            found |= {"Inpaint area": "Only masked", "Masked area padding": inpaint.padding}
        if inpaint.fill != ORIGINAL:
            found["Masked content"] = MASKED_CONTENT[inpaint.fill]
    return found


def hires_parameters(recipe: Recipe) -> dict[str, Any]:
    hires = recipe.hires
    if hires is None:
        return {}
    found: dict[str, Any] = {"Denoising strength": float(recipe.strength)}
    if hires.checkpoint:
        found["Hires checkpoint"] = f"{hires.checkpoint.name} [{hires.checkpoint.short_hash}]"
    if hires.sampler:
        found["Hires sampler"] = hires.sampler
    found |= {"Hires prompt": None, "Hires negative prompt": None, "Hires schedule type": hires_schedule(recipe)}
    if hires.resize_x or hires.resize_y:
        found["Hires resize"] = f"{hires.resize_x}x{hires.resize_y}"
    else:
        found["Hires upscale"] = float(hires.scale)
    if hires.steps:
        found["Hires steps"] = hires.steps
    if hires.upscaler is not None:
        found["Hires upscaler"] = hires.upscaler
    return found


def hires_schedule(recipe: Recipe) -> str | None:
    """Only where the second pass has a schedule of its own and it is another than the first one's."""
    hires, sampler = recipe.hires, sampler_of_hires(recipe)
    if hires is None or not sampler.uses_sigmas:
        return None
    label = effective_schedule(sampler, schedule_named(hires.schedule or recipe.schedule)).label
    return label if label not in (AUTOMATIC, first_schedule(recipe)) else None


def sampler_of_hires(recipe: Recipe) -> SamplerInfo:
    named = recipe.hires.sampler if recipe.hires else None
    return SAMPLERS_BY_NAME.get(named or recipe.sampler, SAMPLERS_BY_NAME[recipe.sampler])


def prompts_of_hires(recipe: Recipe) -> dict[str, Any]:
    """The hires prompts, which infotexts name where they differ."""
    hires = recipe.hires
    if hires is None:
        return {}
    prompt, negative = hires.prompt or recipe.prompt, hires.negative_prompt or recipe.negative_prompt
    return {
        "Hires prompt": prompt if prompt != recipe.prompt else None,
        "Hires negative prompt": negative if negative != recipe.negative_prompt else None,
    }


def network_parameters(recipe: Recipe) -> dict[str, Any]:
    networks = [*recipe.networks, *((recipe.hires.networks if recipe.hires else None) or ())]
    hashes = {network.weights.name: network.listed_hash for network in networks if network.kind == "lora"}
    listed = ", ".join(f"{name}: {value}" for name, value in hashes.items() if value)
    return {"Lora hashes": listed} if listed else {}


def prompt_parameters(recipe: Recipe) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if used := ", ".join(embeddings_used(recipe)):
        found["TI hashes"] = used
    if recipe.emphasis != "Original" and any(mark in recipe.prompt + recipe.negative_prompt for mark in "(["):
        found["Emphasis"] = recipe.emphasis
    return found


def embeddings_used(recipe: Recipe) -> Iterator[str]:
    """QUIRK(A1111 1.10): each text that is encoded lists what it used, once for every text encoder, before the ones that were
    encoded earlier: the parts of the prompt from the last to the first, then the negative prompt. What only the hires prompts use
    comes too late to be listed."""
    by_name = {use.weights.name: use for use in recipe.embeddings}
    parts = [part.rstrip() for part in PARTS.split(strip_network_tags(recipe.prompt))]
    different = dict.fromkeys(WEIGHT_OF_A_PART.sub("", part).rstrip() for part in parts)
    for text in (*reversed(different), strip_network_tags(recipe.negative_prompt)):
        names = sorted(embedding_names_in(text, by_name), key=text.lower().find)
        uses = [by_name[name] for name in names]
        for _ in range(uses[0].encoders if uses else 0):
            yield from (f"{use.weights.name}: {use.listed_hash}" for use in uses)


def first_schedule(recipe: Recipe) -> str:
    """The first pass' schedule, ``Automatic`` resolved. Samplers that walk over timesteps ask for no sigmas, so none of theirs
    reports itself."""
    sampler = SAMPLERS_BY_NAME[recipe.sampler]
    return effective_schedule(sampler, schedule_named(recipe.schedule if sampler.uses_sigmas else AUTOMATIC)).label


def sampling_parameters(recipe: Recipe) -> dict[str, Any]:
    sampler, settings = SAMPLERS_BY_NAME[recipe.sampler], recipe.settings
    schedule = first_schedule(recipe)
    found: dict[str, Any] = {}
    if recipe.img2img and recipe.img2img.noise_multiplier != 1.0:
        found["Noise multiplier"] = float(recipe.img2img.noise_multiplier)
    if settings.use_downcasted_alpha_bar:
        found["Downcast alphas_cumprod"] = True
    if settings.sd_noise_schedule != "Default":
        found["Noise Schedule"] = settings.sd_noise_schedule
    if sampler.uses_sigmas and settings.always_discard_next_to_last_sigma and not sampler.discard_next_to_last:
        found["Discard penultimate sigma"] = True
    if schedule != AUTOMATIC:
        found |= {SCHEDULE_TYPE: schedule, **schedule_parameters(schedule, settings)}
    if sampler.uses_sigmas and settings.sgm_noise_multiplier and recipe.img2img is None:
        found["SGM noise multiplier"] = True
    if settings.img2img_extra_noise and recipe.img2img:
        found["Extra noise"] = settings.img2img_extra_noise
    found |= {**eta_parameters(sampler, recipe.eta), **churn_parameters(sampler.name, settings)}
    if settings.skip_early_cond:
        found["Skip Early CFG"] = settings.skip_early_cond
    if settings.s_min_uncond:
        found["NGMS"] = settings.s_min_uncond
        if settings.s_min_uncond_all:
            found["NGMS all steps"] = True
    if settings.pad_cond_uncond:
        found["Pad conds"] = True
    return found | second_pass_parameters(recipe)


def schedule_parameters(schedule: str, settings: Settings) -> dict[str, Any]:
    """The numbers of a schedule that was chosen by name."""
    found: dict[str, Any] = {}
    if settings.sigma_min:
        found["Schedule min sigma"] = as_sent(settings.sigma_min)
    if settings.sigma_max:
        found["Schedule max sigma"] = as_sent(settings.sigma_max)
    rho = schedule_named(schedule).default_rho
    if rho != -1 and settings.rho not in (0, rho):
        found["Schedule rho"] = as_sent(settings.rho)
    if schedule == "Beta":
        # QUIRK(A1111 1.10): its parser calls these "Beta scheduler alpha" and "… beta".
        found |= {"Beta schedule alpha": settings.beta_dist_alpha, "Beta schedule beta": settings.beta_dist_beta}
    return found


def second_pass_parameters(recipe: Recipe) -> dict[str, Any]:
    """What the second pass of hires fix reports beside what the first one did."""
    if recipe.hires is None:
        return {}
    sampler, settings, schedule = sampler_of_hires(recipe), recipe.settings, hires_schedule(recipe)
    found = schedule_parameters(schedule, settings) if schedule else {}
    if settings.img2img_extra_noise:
        found["Extra noise"] = settings.img2img_extra_noise
    return {**found, **eta_parameters(sampler, recipe.eta), **churn_parameters(sampler.name, settings)}


def eta_parameters(sampler: SamplerInfo, eta: float | None) -> dict[str, Any]:
    neutral, key = (1.0, "Eta") if sampler.uses_sigmas else (0.0, "Eta DDIM")
    return {key: eta} if sampler.name in TAKES_ETA and eta not in (None, neutral) else {}


def churn_parameters(sampler: str, settings: Settings) -> dict[str, Any]:
    """Only what options say is written down; A1111 has no words for the request's own fields."""
    named: dict[str, Any] = {}
    if sampler in TAKES_CHURN:
        named = {"Sigma churn": settings.s_churn, "Sigma tmin": settings.s_tmin, "Sigma tmax": settings.s_tmax}
    if sampler in TAKES_CHURN or sampler in TAKES_SIGMA_NOISE:
        named["Sigma noise"] = settings.s_noise if settings.s_noise != 1.0 else 0
    return {name: as_sent(value) for name, value in named.items() if value}


def refiner_parameters(recipe: Recipe) -> dict[str, Any]:
    refiner, settings = recipe.refiner, recipe.settings
    if refiner is None or refiner.checkpoint.sha256 == recipe.checkpoint.sha256 or not refiner_takes_over(recipe):
        return {}
    found: dict[str, Any] = {}
    if settings.refiner_switch_by_sample_steps:
        found["Refiner switch by sampling steps"] = True
    if recipe.hires and settings.hires_fix_refiner_pass != "second pass":
        found["Hires refiner"] = settings.hires_fix_refiner_pass
    found["Refiner"] = f"{refiner.checkpoint.name} [{refiner.checkpoint.short_hash}]"
    found["Refiner switch at"] = as_float(refiner.switch_at)
    return found


def refiner_takes_over(recipe: Recipe) -> bool:
    """Whether a step begins at the refiner's share of them or behind it; none does where that is the whole or steps are few."""
    given, passes = recipe.img2img, recipe.settings.hires_fix_refiner_pass
    steps = [recipe.steps] if recipe.hires is None or passes != "second pass" else []
    if given and not recipe.settings.img2img_fix_steps:
        steps = [int(min(recipe.strength, 0.999) * recipe.steps) + 1]
    if recipe.hires and passes != "first pass":
        steps.append(recipe.hires_steps)
    switch_at = recipe.refiner.switch_at if recipe.refiner else None
    return switch_at is None or any((count - 1) / count >= switch_at for count in steps)


def as_float(value: float | None) -> float | None:
    """Fields of a request are decimals to A1111, however they came: 2.0 and not 2."""
    return None if value is None else float(value)


def as_sent(value: float) -> float | int:
    """A1111 writes options as they came: 10 and not 10.0."""
    return int(value) if float(value).is_integer() else value


def pair(key: str, value: str) -> str:
    return key if key == value else f"{key}: {quoted(value)}"


def quoted(value: str) -> str:
    """A value that holds a separator is written as a JSON string."""
    return json.dumps(value, ensure_ascii=False) if any(mark in value for mark in ",:\n") else value
