"""Compiled networks (H6): canonical shapes alone, the same pictures, nothing anew for a LoRA, and no picture lost to a compiler."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gpuworker.contract import NetworkUse, Recipe, Rendered, RenderSpec, Weights, WeightsFile
from gpuworker.engine import DiffusersRenderer
from gpuworker.engine.compiling import CanonicalShape, CompiledShapes

MINIATURE = Path(__file__).resolve().parents[2] / "miniature"
STEPS = 2


class Backend:
    """Runs the graphs it is given as they are, and counts them: what a compiler would have to compile."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, example: list[torch.Tensor]) -> Callable[..., Any]:
        self.graphs += 1
        return graph.forward


@pytest.fixture(autouse=True)
def compiler_forgets():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture(scope="module")
def eager() -> DiffusersRenderer:
    return DiffusersRenderer()


def compiling(backend: Any, *shapes: CanonicalShape, **limits: int) -> DiffusersRenderer:
    renderer = DiffusersRenderer()
    renderer.compiled = CompiledShapes(shapes or [CanonicalShape(64, 64, 1)], backend=backend, **limits)
    return renderer


def weights(stem: str) -> Weights:
    return Weights(name=stem, sha256=sha256((MINIATURE / f"{stem}.safetensors").read_bytes()).hexdigest())


def recipe(**changes: Any) -> Recipe:
    fields: dict[str, Any] = {
        "prompt": "a red circle", "negative_prompt": "", "seed": 1, "subseed": 0, "sampler": "Euler", "steps": STEPS,
        "cfg_scale": 7.0, "width": 64, "height": 64, "checkpoint": weights("renderkiln-miniature"),
    }  # fmt: skip
    return Recipe(**{**fields, **changes})


def lora(weight: float) -> tuple[NetworkUse, ...]:
    return (NetworkUse(kind="lora", weights=weights("miniature-moonlight"), te=weight, unet=weight),)


def drawn(renderer: DiffusersRenderer, *recipes: Recipe) -> list[np.ndarray]:
    used = {use.sha256: WeightsFile(MINIATURE / f"{use.name}.safetensors") for one in recipes for use in one.weights()}
    outcomes = renderer.render(RenderSpec(recipes, used), on_step=lambda *_: None, should_stop=lambda: False)
    made = [outcome.picture for outcome in outcomes if isinstance(outcome, Rendered)]
    assert len(made) == len(recipes)
    return [np.frombuffer(one.pixels, np.uint8).astype(np.int16) for one in made]


def difference(one: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> int:
    return max(int(np.abs(left - right).max()) for left, right in zip(one, other, strict=True))


def test_h6_a_canonical_shape_has_one_graph_whatever_lora_and_guidance_come(eager):
    backend = Backend()
    renderer = compiling(backend)
    merged = [recipe(seed=2, networks=lora(weight)) for weight in (1.0, 0.4)]
    for one in (recipe(), *merged, recipe(prompt="a box")):
        assert difference(drawn(renderer, one), drawn(eager, one)) == 0
    assert (backend.graphs, renderer.compiled.report()) == (1, {"graphs": 1, "compiled": 4 * STEPS})
    drawn(renderer, recipe(cfg_scale=1.0))  # without the unconditional half: half the rows
    assert (backend.graphs, renderer.compiled.report()["graphs"]) == (2, 2)


@pytest.mark.parametrize(
    "other",
    [{"width": 72}, {"tiling": True}, {"exact": True}, {"settings": "merging"}],
    ids=["another size", "wrapped edges", "exact mode", "merged tokens"],
)
def test_h6_what_is_not_canonical_runs_as_it_is(eager, other):
    backend, one = Backend(), recipe()
    if other == {"settings": "merging"}:
        other = {"settings": replace(one.settings, token_merging_ratio=0.5)}
    one = replace(one, **other)
    assert difference(drawn(compiling(backend), one), drawn(eager, one)) == 0
    assert backend.graphs == 0


def test_h6_pictures_of_another_micro_batch_are_counted(eager):
    renderer, three = compiling(Backend()), [recipe(seed=seed) for seed in range(3)]
    assert difference(drawn(renderer, *three), drawn(eager, *three)) == 0

    assert renderer.compiled.report() == {"graphs": 0, "eager": STEPS}


def test_a_compiler_that_fails_costs_no_picture_and_is_not_asked_twice(eager, caplog):
    def broken(graph: torch.fx.GraphModule, example: list[torch.Tensor]) -> Callable[..., Any]:
        raise RuntimeError("no compiler on this machine")

    renderer = compiling(broken)
    with caplog.at_level(logging.ERROR):
        assert difference(drawn(renderer, recipe()), drawn(eager, recipe())) == 0
        drawn(renderer, recipe(seed=2))
    assert renderer.compiled.report() == {"graphs": 0, "failed": 1, "eager": 2 * STEPS}
    assert len([one for one in caplog.records if "could not be compiled" in one.message]) == 1


def test_h6_a_shape_beyond_the_limit_is_an_error_of_the_log_and_runs_as_it_is(eager, caplog):
    renderer = compiling(Backend(), CanonicalShape(64, 64, 1), CanonicalShape(72, 64, 1), max_graphs=1)
    with caplog.at_level(logging.ERROR):
        for one in (recipe(), recipe(width=72), recipe(width=72, seed=2)):
            assert difference(drawn(renderer, one), drawn(eager, one)) == 0
    assert renderer.compiled.report() == {"graphs": 1, "compiled": STEPS, "over_limit": 1, "eager": 2 * STEPS}
    assert len([one for one in caplog.records if "runs uncompiled" in one.message]) == 1


def test_h5_a_pass_in_which_a_network_was_compiled_is_no_example_for_others():
    renderer = compiling(Backend())
    told = []
    for seed in range(2):
        drawn(renderer, recipe(seed=seed))
        told.append(renderer.measured is not None)
    assert told == [False, True]


@pytest.mark.parametrize("text", ["512x512", "512x512x0", "500x512x1", "axbxc", "512x512x8x1", "-8x8x1"])
def test_a_shape_that_is_none_is_refused(text):
    with pytest.raises(ValueError):
        CanonicalShape.from_text(text)


@pytest.mark.slow
def test_x1_what_torch_compiles_differs_by_rounding_alone(eager):
    """With the real compiler: a minute or more on the CPU."""
    renderer = DiffusersRenderer(compile_shapes=["64x64x2"])
    batch = [recipe(steps=20), recipe(steps=20, seed=2)]
    assert difference(drawn(renderer, *batch), drawn(eager, *batch)) <= 2
    assert renderer.compiled.report() == {"graphs": 1, "compiled": 20}
