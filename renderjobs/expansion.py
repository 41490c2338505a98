"""RenderRequest → one recipe per image. Pure: no database, no clock; randomness only through the given generator."""

from __future__ import annotations

import hashlib
import json
from random import Random

from gpuworker.contract import Recipe
from renderjobs.request import RenderRequest

A1111_RANDOM_SEED_MAX = 4294967293
"""A1111 draws random seeds from 0 to this number (modules/processing.py, ``get_fixed_seed``)."""


def seeds_of(request: RenderRequest, random: Random) -> list[tuple[int, int]]:
    """(seed, subseed) of every image: consecutive seeds, or one seed and consecutive subseeds under variation."""
    seed = random.randint(0, A1111_RANDOM_SEED_MAX) if request.seed == -1 else request.seed
    subseed = random.randint(0, A1111_RANDOM_SEED_MAX) if request.subseed == -1 else request.subseed
    varied = request.subseed_strength != 0
    return [(seed if varied else seed + index, subseed + index) for index in range(request.images_total)]


def recipe_of(
    request: RenderRequest, *, seed: int, subseed: int, checkpoint_sha256: str, checkpoint_name: str
) -> Recipe:
    """The full parameter set of one image."""
    return Recipe(
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        seed=seed,
        subseed=subseed,
        subseed_strength=request.subseed_strength,
        seed_resize_from_w=request.seed_resize_from_w,
        seed_resize_from_h=request.seed_resize_from_h,
        sampler=request.sampler,
        schedule=request.schedule,
        steps=request.steps,
        cfg_scale=request.cfg_scale,
        width=request.width,
        height=request.height,
        clip_skip=request.clip_skip,
        eta=request.eta,
        s_churn=request.s_churn,
        s_tmin=request.s_tmin,
        s_tmax=request.s_tmax,
        s_noise=request.s_noise,
        ensd=request.ensd,
        emphasis=request.emphasis,
        tiling=request.tiling,
        checkpoint_sha256=checkpoint_sha256,
        checkpoint_name=checkpoint_name,
    )


def pass_digest(recipe: Recipe) -> str:
    """A short text that two images share if and only if they may be denoised together."""
    return hashlib.sha256(json.dumps(recipe.pass_key).encode()).hexdigest()[:32]
