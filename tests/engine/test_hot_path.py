"""The step loop: nothing in it waits for the card, or walks through a network's modules (H2)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from gpuworker.contract import ImageOutcome, Recipe, Rendered
from gpuworker.contract.samplers import SAMPLERS_BY_NAME
from gpuworker.engine import DiffusersRenderer
from gpuworker.engine.sampling.samplers import SOLVERS
from tests.engine.conftest import RANDOM

READS = {"item", "tolist", "cpu", "numpy", "nonzero", "__bool__", "__int__", "__float__", "__index__"}
LOOPS = [name for name, info in SAMPLERS_BY_NAME.items() if info.implemented and not SOLVERS[name].adaptive]


class OnCard(TorchFunctionMode):
    """Takes what a network answers, and all that is computed from it, for values on a card; notes what brings one back."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[str] = []
        self.calls = 0
        self.looping = True

    def answered(self, network: Any, inputs: Any, answer: Any) -> None:
        self.calls += 1
        for tensor in tree_leaves(answer):
            tensor.on_card = True

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = tree_leaves((args, kwargs))
        on_card = any(isinstance(value, torch.Tensor) and hasattr(value, "on_card") for value in given)
        if on_card and self.looping and func.__name__ in READS:
            self.reads.append(func.__name__)
        answer = func(*args, **(kwargs or {}))
        if on_card:
            for value in tree_leaves(answer):
                if isinstance(value, torch.Tensor):
                    value.on_card = True  # type: ignore[attr-defined]
        return answer


@pytest.fixture
def unet(
    renderer: DiffusersRenderer, render: Callable[..., list[ImageOutcome]], recipe_of: Callable[..., Recipe]
) -> Any:
    render(recipe_of(steps=1))
    loaded = [value for (kind, *_), value in renderer.shelf._kept._values.items() if kind == "checkpoint"]
    return next(one for one in loaded if RANDOM.sha256 in one.key).checkpoint.unet


@pytest.fixture
def card(unet: Any) -> Iterator[OnCard]:
    card = OnCard()
    handle = unet.register_forward_hook(card.answered)
    yield card
    handle.remove()


@pytest.mark.parametrize("sampler", LOOPS)
def test_h2_no_step_reads_a_value_back_from_the_card(render, recipe_of, card, sampler):
    def on_step(done: int, total: int) -> None:
        card.looping = done < total

    with card:
        (outcome,) = render(recipe_of(sampler=sampler, steps=3), on_step=on_step)
    assert isinstance(outcome, Rendered) and card.calls >= 3 and card.reads == []


def test_h2_what_is_read_in_a_step_is_seen(render, recipe_of, card, unet):
    """The test above would notice."""
    handle = unet.register_forward_hook(lambda network, inputs, answer: float(answer[0].mean()) and None)
    with card:
        render(recipe_of(steps=3))
    handle.remove()
    assert "__float__" in card.reads


def test_h2_no_step_walks_through_the_modules_of_the_network(render, recipe_of, unet, monkeypatch):
    visited: list[str] = []
    modules = torch.nn.Module.named_modules

    def watched(self: torch.nn.Module, *rest: Any, **more: Any) -> Iterator[tuple[str, torch.nn.Module]]:
        for name, module in modules(self, *rest, **more):
            if self is unet and not rest:
                visited.append(name)
            yield name, module

    monkeypatch.setattr(torch.nn.Module, "named_modules", watched)
    render(recipe_of(steps=2))
    of_two = len(visited)
    render(recipe_of(steps=12))
    per_step = (len(visited) - 2 * of_two) / 10
    assert per_step < 5  # a network's first weight says its type; it has hundreds of modules


def test_h5_a_pass_tells_its_time_by_images_and_calls_and_one_that_is_stopped_tells_nothing(
    renderer, render, recipe_of
):
    outcomes = render(*(recipe_of(seed=seed, steps=3, sampler="Heun") for seed in range(2)))
    calls = 2 * (2 * 3 - 1)  # of two images; Heun's last step has one call, the others two
    told, spent_ns = renderer.measured, 1000 * sum(outcome.gpu_us for outcome in outcomes)
    assert 0 < told.image_call_ns * calls < spent_ns and told.peak_bytes >= 0
    render(recipe_of(), should_stop=lambda: True)
    assert renderer.measured is None
