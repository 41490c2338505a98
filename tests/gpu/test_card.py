"""What only a card can show: exact mode (X2), compiled networks (X1), weights that leave it and come back, memory that is full."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.on_card import write
from gpuworker.contract import Recipe, Rendered, RenderSpec, Weights, WeightsFile
from gpuworker.contract.samplers import SAMPLERS_BY_NAME
from gpuworker.engine import DiffusersRenderer
from gpuworker.engine.models.shelf import ModelShelf
from tests.engine.ldm import TINY
from tests.engine.test_compiling import lora, recipe

pytestmark = pytest.mark.gpu
MINIATURE = Path(__file__).resolve().parents[2] / "miniature"
SAMPLERS = [name for name, info in SAMPLERS_BY_NAME.items() if info.implemented]
FAMILIES = ("miniature", "sd1", "sdxl")


@pytest.fixture(scope="module")
def renderer(device: str) -> DiffusersRenderer:
    return DiffusersRenderer(device=device, dtype="auto")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, WeightsFile]:
    """By hash: what ``recipe`` names, and one small checkpoint of random weights for each family."""
    folder = tmp_path_factory.mktemp("weights")
    shipped = {
        use.sha256: WeightsFile(MINIATURE / f"{use.name}.safetensors") for use in recipe(networks=lora(1)).weights()
    }
    random = {
        hash_of(family): WeightsFile(write(folder / f"{family}.safetensors", TINY[family].shapes()))
        for family in FAMILIES[1:]
    }
    return {**shipped, **random}


def hash_of(family: str) -> str:
    return str(FAMILIES.index(family)) * 64


def of_family(family: str, **changes: object) -> Recipe:
    one = recipe(**changes)
    return one if family == "miniature" else replace(one, checkpoint=Weights(name=family, sha256=hash_of(family)))


def outcomes(
    renderer: DiffusersRenderer, files: dict[str, WeightsFile], recipes: Sequence[Recipe]
) -> list[bytes | str]:
    """Pixels, or why there are none: random weights may well draw a single colour."""
    spec = RenderSpec(tuple(recipes), files)
    made = renderer.render(spec, on_step=lambda *_: None, should_stop=lambda: False)
    return [one.picture.pixels if isinstance(one, Rendered) else one.code for one in made]  # type: ignore[union-attr]


def drawn(renderer: DiffusersRenderer, files: dict[str, WeightsFile], recipes: Sequence[Recipe]) -> list[np.ndarray]:
    made = outcomes(renderer, files, recipes)
    assert all(isinstance(one, bytes) for one in made), made
    return [np.frombuffer(one, np.uint8).astype(np.int16) for one in made]  # type: ignore[arg-type]


def difference(ones: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> int:
    return max(int(np.abs(one - other).max()) for one, other in zip(ones, others, strict=True))


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_x2_an_exact_image_has_the_same_bytes_alone_in_any_slot_and_in_any_company(renderer, files, family, sampler):
    mixed = [
        of_family(family, sampler=sampler, exact=True, steps=4, seed=seed, prompt=prompt, cfg_scale=scale)
        for seed, prompt, scale in ((3, "a house", 4.0), (4, "a [cat:dog:0.5] AND snow:0.5", 7.0), (5, "a, " * 60, 7.0))
    ]
    together, turned = outcomes(renderer, files, mixed), outcomes(renderer, files, mixed[::-1])[::-1]
    alone = [outcomes(renderer, files, [one])[0] for one in mixed]
    full = outcomes(renderer, files, [*mixed, *(replace(mixed[0], seed=seed) for seed in range(10, 15))])[:3]
    assert together == turned == alone == full and any(isinstance(one, bytes) for one in together)


def test_x1_a_compiled_shape_differs_by_rounding_and_a_lora_makes_no_other_graph(device, renderer, files):
    compiled = DiffusersRenderer(device=device, dtype="auto", compile_shapes=["64x64x2"])
    pair = [recipe(steps=8), recipe(steps=8, seed=2)]
    assert difference(drawn(compiled, files, pair), drawn(renderer, files, pair)) <= 2
    for weight in (0.5, 1.0):
        drawn(compiled, files, [replace(one, networks=lora(weight)) for one in pair])
    assert compiled.compiled.report()["graphs"] == 1 and "failed" not in compiled.compiled.counts


def test_h8_weights_that_left_the_card_come_back_as_they_were(device, files):
    renderer = DiffusersRenderer(device=device, dtype="auto")
    renderer.shelf = ModelShelf(renderer.device, renderer.shelf.dtype, 1, max_host_bytes=1 << 32, parks=True)
    before = drawn(renderer, files, [recipe()])
    drawn(renderer, files, [of_family("sd1")])
    assert "checkpoint, parked" in {one["kind"] for one in renderer.shelf.report()}
    assert difference(drawn(renderer, files, [recipe()]), before) == 0


def test_h5_a_pass_of_more_images_takes_more_memory_and_less_time_for_each(renderer, files):
    told = {}
    for count in (1, 1, 8, 8):  # the first of each pays for more than itself
        drawn(renderer, files, [recipe(steps=8, seed=seed) for seed in range(count)])
        told[count] = renderer.measured
    assert told[8].image_call_ns < told[1].image_call_ns
    assert told[8].peak_bytes > told[1].peak_bytes or renderer.device.type == "cpu"
    assert renderer.room_bytes() > told[8].peak_bytes


@pytest.fixture
def nearly_full(device: str, renderer: DiffusersRenderer) -> Iterator[None]:
    """All but a little of the card's memory is taken by somebody else."""
    if device == "cpu":
        yield
        return
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    taken = torch.empty(free - 200 * 1024**2, dtype=torch.uint8, device=device)
    yield
    del taken
    torch.cuda.empty_cache()


def test_f7_a_pass_that_does_not_fit_says_so_and_a_smaller_one_is_drawn(device, renderer, files, nearly_full):
    from gpuworker.engine import OutOfMemoryError

    if device != "cpu":
        with pytest.raises(OutOfMemoryError):
            drawn(renderer, files, [recipe(width=2048, height=2048, seed=seed) for seed in range(8)])
    assert len(drawn(renderer, files, [recipe()])) == 1
