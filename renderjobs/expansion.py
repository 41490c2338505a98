"""A job's request and lock → one recipe per image. Pure: no database, no clock; randomness only through the given generator."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from random import Random
from typing import Any

from gpuworker.contract import AnyRecipe, DetectRecipe, ExtrasRecipe, Recipe
from renderjobs.request import RenderRequest

A1111_RANDOM_SEED_MAX = 4294967293
"""A1111 draws random seeds from 0 to this number (modules/processing.py, ``get_fixed_seed``)."""
KINDS: dict[str, type[Any]] = {kind.kind: kind for kind in (Recipe, ExtrasRecipe, DetectRecipe)}


def seeds_of(request: RenderRequest, random: Random) -> list[tuple[int, int]]:
    """(seed, subseed) of every image: consecutive seeds, or one seed and consecutive subseeds under variation."""
    seed = random.randint(0, A1111_RANDOM_SEED_MAX) if request.seed == -1 else request.seed
    subseed = random.randint(0, A1111_RANDOM_SEED_MAX) if request.subseed == -1 else request.subseed
    varied = request.subseed_strength != 0
    return [(seed if varied else seed + index, subseed + index) for index in range(request.images_total)]


def lock_of(recipe: AnyRecipe) -> dict[str, Any]:
    """What all images of a job share, as it is stored."""
    return {"kind": recipe.kind, "recipe": recipe.to_json()}


def recipe_from(lock: Mapping[str, Any]) -> AnyRecipe:
    return KINDS[lock["kind"]].from_json(lock["recipe"])


def recipe_of(shared: AnyRecipe, request: RenderRequest, *, index: int, seed: int, subseed: int) -> AnyRecipe:
    """The full parameter set of one image.

    Args:
        shared: Of all images of the job, pinned.
        request: As it was asked for; several input pictures are taken in turn.
    """
    match shared:
        case Recipe():
            return replace(_with_own_picture(shared, request, index), seed=seed, subseed=subseed)
        case ExtrasRecipe():
            return replace(shared, picture=(shared.picture, *request.more_pictures)[index])
        case DetectRecipe():
            return request.detect[index]


def _with_own_picture(shared: Recipe, request: RenderRequest, index: int) -> Recipe:
    if shared.img2img is None or len(request.img2img) < 2:
        return shared
    own = request.img2img[index % len(request.img2img)]
    return replace(shared, img2img=replace(own, upscaler=shared.img2img.upscaler))


def pass_digest(recipe: AnyRecipe) -> str:
    """A short text that two images share if and only if they may be denoised together."""
    return hashlib.sha256(recipe.pass_key.encode()).hexdigest()[:32]
