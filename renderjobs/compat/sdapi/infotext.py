"""Recipe → infotext, the text that A1111 writes into every picture. Pure; the worker's output stage and this door use it.

Source: the order of keys in ``create_infotext``, stable-diffusion-webui 1.10.1 ``modules/processing.py``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from gpuworker.contract import Recipe
from gpuworker.contract.samplers import AUTOMATIC, SAMPLERS_BY_NAME, effective_schedule, schedule_named

VERSION = "v1.10.1"
"""The A1111 release whose behaviour a picture follows; clients compare it."""
TAKES_ETA = frozenset(
    {
        "DPM++ SDE", "DPM++ 2M SDE", "DPM++ 2M SDE Heun", "DPM++ 2S a", "DPM++ 3M SDE", "Euler a", "DPM2 a", "DPM fast",
        "DPM adaptive", "DDIM", "DDIM CFG++",
    }
)  # fmt: skip
"""Samplers whose function has an ``eta`` argument; A1111 writes no eta for the others, whatever was asked for."""
SCHEDULE_TYPE = "Schedule type"


def infotext_of(recipe: Recipe) -> str:
    """Prompt, negative prompt and one line of ``Key: value`` pairs."""
    pairs = ", ".join(pair(key, value) for key, value in parameters_of(recipe))
    negative = f"\nNegative prompt: {recipe.negative_prompt}" if recipe.negative_prompt else ""
    return f"{recipe.prompt}{negative}\n{pairs}".strip()


def parameters_of(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """The pairs in A1111's order; what has its neutral value is left out as A1111 leaves it out."""
    sampler = SAMPLERS_BY_NAME[recipe.sampler]
    extra = extra_parameters_of(recipe)
    yield "Steps", str(recipe.steps)
    yield "Sampler", sampler.name
    yield SCHEDULE_TYPE, extra.pop(SCHEDULE_TYPE, recipe.schedule)
    yield "CFG scale", str(float(recipe.cfg_scale))
    yield "Seed", str(recipe.seed)
    yield "Size", f"{recipe.width}x{recipe.height}"
    yield "Model hash", recipe.checkpoint_short_hash
    yield "Model", recipe.checkpoint_name
    if recipe.subseed_strength:
        yield "Variation seed", str(recipe.subseed)
        yield "Variation seed strength", str(recipe.subseed_strength)
    if recipe.seed_resize_from_w > 0 and recipe.seed_resize_from_h > 0:
        yield "Seed resize from", f"{recipe.seed_resize_from_w}x{recipe.seed_resize_from_h}"
    if recipe.clip_skip > 1:
        yield "Clip skip", str(recipe.clip_skip)
    if recipe.ensd and sampler.uses_ensd and recipe.eta != 0:
        yield "ENSD", str(recipe.ensd)
    if recipe.tiling:
        yield "Tiling", "True"
    yield from ((key, str(value)) for key, value in extra.items())
    yield "Version", VERSION


def extra_parameters_of(recipe: Recipe) -> dict[str, Any]:
    """A1111's ``extra_generation_params``: what the parts of a run report, in the order in which they come to run."""
    sampler = SAMPLERS_BY_NAME[recipe.sampler]
    # Samplers that walk over timesteps ask for no sigmas, so no schedule of theirs reports itself.
    asked = schedule_named(recipe.schedule if sampler.uses_sigmas else AUTOMATIC)
    schedule = effective_schedule(sampler, asked).label
    extra: dict[str, Any] = {}
    if recipe.emphasis != "Original" and any(mark in recipe.prompt + recipe.negative_prompt for mark in "(["):
        extra["Emphasis"] = recipe.emphasis
    if schedule != AUTOMATIC:
        extra[SCHEDULE_TYPE] = schedule
    if schedule == "Beta":
        # QUIRK(A1111 1.10): its parser calls these "Beta scheduler alpha" and "… beta".
        extra |= {"Beta schedule alpha": 0.6, "Beta schedule beta": 0.6}
    neutral_eta, eta_key = (1.0, "Eta") if sampler.uses_sigmas else (0.0, "Eta DDIM")
    if sampler.name in TAKES_ETA and recipe.eta is not None and recipe.eta != neutral_eta:
        extra[eta_key] = recipe.eta
    return extra


def pair(key: str, value: str) -> str:
    return key if key == value else f"{key}: {quoted(value)}"


def quoted(value: str) -> str:
    """A value that holds a separator is written as a JSON string."""
    return json.dumps(value, ensure_ascii=False) if any(mark in value for mark in ",:\n") else value
