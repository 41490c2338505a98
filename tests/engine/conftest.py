"""A random checkpoint, the renderer that has loaded it, and short ways to render with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from gpuworker.contract import ImageOutcome, Recipe, RenderSpec, Weights, WeightsFile
from gpuworker.engine import DiffusersRenderer
from tests.engine.ldm import write_checkpoint


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Small networks are slower on many threads, and their sums depend on the number."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


RANDOM, OTHER = Weights(name="random", sha256="0" * 64), Weights(name="other", sha256="1" * 64)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> dict[str, WeightsFile]:
    """The files of a spec whose recipes name ``RANDOM`` and ``OTHER``, random checkpoints of one architecture."""
    folder = tmp_path_factory.mktemp("weights")
    return {
        use.sha256: WeightsFile(write_checkpoint(folder / f"{use.name}.safetensors", seed=seed))
        for seed, use in enumerate((RANDOM, OTHER))
    }


@pytest.fixture(scope="session")
def renderer() -> DiffusersRenderer:
    return DiffusersRenderer()


@pytest.fixture
def recipe_of() -> Callable[..., Recipe]:
    def build(**changes: Any) -> Recipe:
        fields: dict[str, Any] = {
            "prompt": "a red car",
            "negative_prompt": "blurry",
            "seed": 7,
            "subseed": 0,
            "sampler": "Euler a",
            "steps": 2,
            "cfg_scale": 7.0,
            "width": 64,
            "height": 64,
            "checkpoint": RANDOM,
        }
        return Recipe(**{**fields, **changes})

    return build


@pytest.fixture
def render(renderer: DiffusersRenderer, checkpoint: dict[str, WeightsFile]) -> Callable[..., list[ImageOutcome]]:
    def run(
        *recipes: Recipe,
        on_step: Callable[[int, int], None] = lambda done, total: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> list[ImageOutcome]:
        spec = RenderSpec(recipes, checkpoint)
        return list(renderer.render(spec, on_step=on_step, should_stop=should_stop))

    return run
