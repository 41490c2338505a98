"""A job's request and lock → one recipe per image. Pure: no database, no clock; randomness only through the given generator."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
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
    if request.seeds:
        return [(own, subseed + index) for index, own in enumerate(request.seeds)]
    varied = request.subseed_strength != 0
    return [(seed if varied else seed + index, subseed + index) for index in range(request.images_total)]


LATENT_NOISE = 2
"""Of A1111's four masked contents."""
OF_TEXTS = ("prompt", "negative_prompt", "networks", "embeddings", "hires")
"""Fields of a recipe that follow from an image's texts."""


def lock_of(recipe: AnyRecipe, own: Sequence[Recipe] = ()) -> dict[str, Any]:
    """What all images of a job share, as it is stored.

    Args:
        own: One recipe per image, where images have their own texts.
    """
    lock = {"kind": recipe.kind, "recipe": recipe.to_json()}
    if own:
        plain = [each.to_json() for each in own]
        lock["own"] = [{name: each[name] for name in OF_TEXTS} for each in plain]
    return lock


def recipe_from(lock: Mapping[str, Any], index: int = 0) -> AnyRecipe:
    """Of an image, without its seeds and its own picture."""
    own = lock["own"][index] if "own" in lock else {}
    return KINDS[lock["kind"]].from_json({**lock["recipe"], **own})


def recipe_of(shared: AnyRecipe, request: RenderRequest, *, index: int, seed: int, subseed: int) -> AnyRecipe:
    """The full parameter set of one image.

    Args:
        shared: From the lock, pinned.
        request: As it was asked for; several input pictures are taken in turn.
    """
    match shared:
        case Recipe():
            own = _with_own_picture(shared, request, index)
            fill_seed = _fill_seed(own, request, index, seed)
            return replace(own, seed=seed, subseed=subseed, fill_seed=fill_seed)
        case ExtrasRecipe():
            return replace(shared, picture=(shared.picture, *request.more_pictures)[index])
        case DetectRecipe():
            return request.detect[index]


def _fill_seed(recipe: Recipe, request: RenderRequest, index: int, seed: int) -> int | None:
    """QUIRK(A1111 1.10): each pass of a job fills the mask with the noise of the first pass' seeds."""
    if recipe.inpaint is None or recipe.inpaint.fill != LATENT_NOISE or index < request.batch_size:
        return None
    first = index % request.batch_size
    if request.seeds:
        return request.seeds[first]
    return seed if request.subseed_strength else seed - index + first


def _with_own_picture(shared: Recipe, request: RenderRequest, index: int) -> Recipe:
    if shared.img2img is None or len(request.img2img) < 2:
        return shared
    own = request.img2img[index % len(request.img2img)]
    return replace(shared, img2img=replace(own, upscaler=shared.img2img.upscaler))


def pass_digest(recipe: AnyRecipe) -> str:
    """A short text that two images share if and only if they may be denoised together."""
    return hashlib.sha256(recipe.pass_key.encode()).hexdigest()[:32]
