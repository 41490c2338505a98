"""Stable Diffusion 3 and Flux: where the parts of such a file lie, and what a picture drawn with one may ask for.

These models predict flows, not noise; they are drawn with one sampler and a schedule of their own, and read prompts as plain text.
What they cannot do is refused, never passed over: by doors before anything is stored, by the engine before it draws.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from gpuworker.contract.recipe import Recipe
from gpuworker.contract.samplers import AUTOMATIC

FLOW_FAMILIES = {"sd3": "Stable Diffusion 3", "flux": "Flux"}
"""Family → what people call it."""
SIDE_MULTIPLE = 16
"""Pixels: latents are taken in patches of two."""
SAMPLER = "Euler"
TRANSFORMER = "transformer."
FLOW_VAE = "vae."
TEXT, SECOND_TEXT, THIRD_TEXT = "text_encoder.", "text_encoder_2.", "text_encoder_3."
FLOW_PREFIXES: dict[str, dict[str, str]] = {
    "sd3": {
        "model.diffusion_model.": TRANSFORMER,
        "first_stage_model.": FLOW_VAE,
        "text_encoders.clip_l.transformer.": TEXT,
        "text_encoders.clip_g.transformer.": SECOND_TEXT,
        "text_encoders.t5xxl.transformer.": THIRD_TEXT,
    },
    "flux": {
        "model.diffusion_model.": TRANSFORMER,
        "first_stage_model.": FLOW_VAE,
        "text_encoders.clip_l.transformer.": TEXT,
        "text_encoders.t5xxl.transformer.": SECOND_TEXT,
    },
}
"""Family → prefixes in single files, as their publishers and other programs write them → those of diffusers."""
NEEDED_PARTS: dict[str, dict[str, str]] = {
    "sd3": {
        TRANSFORMER: "the denoiser",
        FLOW_VAE: "the VAE",
        TEXT: "the first CLIP text encoder",
        SECOND_TEXT: "the second CLIP text encoder",
    },
    "flux": {
        TRANSFORMER: "the denoiser",
        FLOW_VAE: "the VAE",
        TEXT: "the CLIP text encoder",
        SECOND_TEXT: "the T5 text encoder",
    },
}
"""Family → prefix → name. Stable Diffusion 3 draws without its third encoder, a T5, too."""
T5_PREFIXES = {"sd3": THIRD_TEXT, "flux": SECOND_TEXT}


def flow_names(names: Iterable[str], family: str) -> dict[str, str]:
    """Every name → the same with diffusers' prefix; a name without a known prefix stays."""
    prefixes = FLOW_PREFIXES[family]
    return {name: _renamed(name, prefixes) for name in names}


def _renamed(name: str, prefixes: dict[str, str]) -> str:
    return next((new + name.removeprefix(old) for old, new in prefixes.items() if name.startswith(old)), name)


# --- what cannot be asked for ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Refusal:
    """A field of a recipe that these models cannot follow."""

    field: str
    """Of the recipe, or of its ``img2img`` with that word and a dot in front."""
    value: Any
    message: str
    """One sentence for people."""


NOT_AVAILABLE = {
    "networks": "LoRA and hypernetworks are",
    "embeddings": "Textual inversion is",
    "control": "ControlNet is",
    "hires": "Hires fix is",
    "refiner": "A refiner is",
    "vae": "A separate VAE is",
    "clip_skip": "CLIP skip is",
    "tiling": "Tiling is",
    "s_churn": "Churn is",
}
"""Field that may only be what it is when nobody asks for it → what is not available, and its verb."""
NOT_AVAILABLE_IN_IMG2IMG = {"inpaint": "Inpainting is", "noise_multiplier": "An initial noise multiplier is"}
RESIZE_LATENTS = 3


def refusals(recipe: Recipe, family: str) -> Iterator[Refusal]:
    """What the recipe asks for in vain; nothing when it can be drawn."""
    name = FLOW_FAMILIES[family]
    yield from _not_available(recipe, NOT_AVAILABLE, name, "")
    if recipe.img2img:
        yield from _not_available(recipe.img2img, NOT_AVAILABLE_IN_IMG2IMG, name, "img2img.")
        if recipe.img2img.resize_mode == RESIZE_LATENTS:
            yield Refusal(
                "img2img.resize_mode", RESIZE_LATENTS, f"Latents are not resized for {name}; modes 0, 1 and 2 are."
            )
    if recipe.sampler != SAMPLER:
        yield Refusal("sampler", recipe.sampler, f"{name} is sampled with {SAMPLER}, not with {recipe.sampler!r}.")
    if recipe.schedule != AUTOMATIC:
        yield Refusal("schedule", recipe.schedule, f"{name} has a schedule of its own, which {AUTOMATIC} stands for.")
    for side in ("width", "height"):
        if (pixels := getattr(recipe, side)) % SIDE_MULTIPLE or pixels < SIDE_MULTIPLE:
            yield Refusal(side, pixels, f"{side} is {pixels}; for {name} it must be a multiple of {SIDE_MULTIPLE}.")
    if family == "flux" and recipe.negative_prompt.strip():
        message = "Flux is guided without a negative prompt; leave it empty."
        yield Refusal("negative_prompt", recipe.negative_prompt, message)


def _not_available(record: Any, features: Mapping[str, str], name: str, place: str) -> Iterator[Refusal]:
    defaults = {field.name: field.default for field in fields(record)}
    for field, what in features.items():
        if (value := getattr(record, field)) != defaults[field]:
            yield Refusal(place + field, value, f"{what} not available for {name}.")
