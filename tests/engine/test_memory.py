"""Memory of a renderer that goes on and on: flat, whatever it is asked for."""

from __future__ import annotations

import ctypes
import gc
from itertools import cycle, islice
from pathlib import Path

import pytest

from gpuworker.contract import Hires, Refiner
from tests.engine.conftest import OTHER

WARM_UP = 64
BYTES_PER_RENDER = 4096
"""A leaked picture of 64 × 64 pixels alone would be three times that."""


class AllocatorState(ctypes.Structure):
    """``struct mallinfo2`` of glibc."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        )
    ]


def mixed(recipe_of):
    """Prompts and seeds never repeat, so that caches fill up to their limits and no further."""
    kinds = cycle(
        (
            {},
            {"sampler": "DPM++ 2M SDE", "steps": 1},
            {"sampler": "DDIM", "tiling": True},
            {"hires": Hires(scale=1.5, steps=1), "denoising_strength": 0.5},
            {"hires": Hires(scale=1.25, steps=1, upscaler="Lanczos"), "denoising_strength": 0.5},
            {"refiner": Refiner(checkpoint=OTHER, switch_at=0.5)},
            {"checkpoint": OTHER, "clip_skip": 2},
            {"width": 96, "prompt": "a, " * 90},
        )
    )
    for number, changes in enumerate(kinds):
        yield recipe_of(**{"prompt": f"picture {number}", "seed": number, "steps": 2, **changes})


def resident_bytes() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def allocated_bytes() -> int:
    """What somebody has asked for and not given back. Pages that the allocator keeps, or takes early, are not in it."""
    gc.collect()
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype = AllocatorState
    state = libc.mallinfo2()
    return int(state.uordblks + state.hblkhd)


def leak_per_render(render, recipe_of, *, stretches: int = 3, renders: int = 16) -> float:
    """Bytes that each render of the best stretch left behind: a cache is full some time, a leak never is."""
    recipes = mixed(recipe_of)
    for recipe in islice(recipes, WARM_UP):
        render(recipe)
    left = []
    for _ in range(stretches):
        before = allocated_bytes()
        for recipe in islice(recipes, renders):
            render(recipe)
        left.append((allocated_bytes() - before) / renders)
    return min(left)


def growth_per_render(render, recipe_of, renders: int) -> float:
    """Bytes of resident memory that the later half of the renders added, each."""
    recipes = mixed(recipe_of)
    for recipe in islice(recipes, WARM_UP + renders // 2):
        render(recipe)
    before = resident_bytes()
    for recipe in islice(recipes, renders // 2):
        render(recipe)
    return (resident_bytes() - before) / (renders // 2)


@pytest.fixture(autouse=True)
def little_room_for_texts(renderer, monkeypatch) -> None:
    """The product's limit holds many thousands of prompts: none would be let go within these tests."""
    monkeypatch.setattr(renderer.prompts.cache, "max_bytes", 256 * 1024)


def test_i24_memory_is_flat_over_mixed_renders(render, recipe_of):
    assert leak_per_render(render, recipe_of) < BYTES_PER_RENDER


@pytest.mark.slow
def test_i24_memory_is_flat_over_a_thousand_mixed_renders(render, recipe_of):
    assert growth_per_render(render, recipe_of, 1000) < BYTES_PER_RENDER


def test_a_renderer_tells_which_files_it_has_loaded_and_how_large_they_are(renderer, render, recipe_of):
    recipe = recipe_of(seed=1, steps=1)
    render(recipe)
    told = renderer.report()
    loaded = {(one["kind"], one["sha256"]): one["bytes"] for one in told["weights"]}
    assert loaded["checkpoint", recipe.checkpoint.sha256] > 100_000
    assert sum(loaded.values()) <= told["weights_limit"]
