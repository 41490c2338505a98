"""Recipe → infotext, the text that A1111 writes into every picture. Pure; the worker's output stage and this door use it.

Source: the order of keys in ``create_infotext``, stable-diffusion-webui 1.10.1 ``modules/processing.py``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from gpuworker.contract import Recipe
from gpuworker.contract.samplers import SAMPLERS_BY_NAME, effective_schedule, schedule_named

VERSION = "v1.10.1"
"""The A1111 release whose behaviour a picture follows; clients compare it."""


def infotext_of(recipe: Recipe) -> str:
    """Prompt, negative prompt and one line of ``Key: value`` pairs."""
    pairs = ", ".join(pair(key, value) for key, value in parameters_of(recipe))
    negative = f"\nNegative prompt: {recipe.negative_prompt}" if recipe.negative_prompt else ""
    return f"{recipe.prompt}{negative}\n{pairs}".strip()


def parameters_of(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """The pairs in A1111's order; what has its neutral value is left out as A1111 leaves it out."""
    sampler = SAMPLERS_BY_NAME[recipe.sampler]
    yield "Steps", str(recipe.steps)
    yield "Sampler", sampler.name
    yield "Schedule type", effective_schedule(sampler, schedule_named(recipe.schedule)).label
    yield "CFG scale", str(float(recipe.cfg_scale))
    yield "Seed", str(recipe.seed)
    yield "Size", f"{recipe.width}x{recipe.height}"
    yield "Model hash", recipe.checkpoint_short_hash
    yield "Model", recipe.checkpoint_name
    if recipe.subseed_strength:
        yield "Variation seed", str(recipe.subseed)
        yield "Variation seed strength", plain(recipe.subseed_strength)
    if recipe.seed_resize_from_w > 0 and recipe.seed_resize_from_h > 0:
        yield "Seed resize from", f"{recipe.seed_resize_from_w}x{recipe.seed_resize_from_h}"
    if recipe.clip_skip > 1:
        yield "Clip skip", str(recipe.clip_skip)
    if recipe.ensd and "uses_ensd" in sampler.options and recipe.eta != 0:
        yield "ENSD", str(recipe.ensd)
    if recipe.tiling:
        yield "Tiling", "True"
    if recipe.emphasis != "Original" and any(mark in recipe.prompt for mark in "(["):
        yield "Emphasis", recipe.emphasis
    neutral_eta, eta_key = (1.0, "Eta") if sampler.uses_sigmas else (0.0, "Eta DDIM")
    if recipe.eta is not None and recipe.eta != neutral_eta:
        yield eta_key, plain(recipe.eta)
    if recipe.schedule == "Beta":
        yield "Beta schedule alpha", "0.6"
        yield "Beta schedule beta", "0.6"
    yield "Version", VERSION


def pair(key: str, value: str) -> str:
    return key if key == value else f"{key}: {quoted(value)}"


def quoted(value: str) -> str:
    """A value that holds a separator is written as a JSON string."""
    return json.dumps(value, ensure_ascii=False) if any(mark in value for mark in ",:\n") else value


def plain(number: float) -> str:
    """1.0 → ``1.0``, 0.30 → ``0.3``: the shortest form Python prints."""
    return str(number)
