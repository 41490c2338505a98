"""Where weights are (H8): loaded, parked, read ahead. The CPU plays the card; what leaves it is parked all the same."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from gpuworker.contract import Recipe, Rendered, RenderSpec, Weights, WeightsFile
from gpuworker.engine import CheckpointError, DiffusersRenderer
from gpuworker.engine.models import host_memory
from gpuworker.engine.models.host_memory import HostMemory, replace_tensors, tensors_of
from gpuworker.engine.models.shelf import ModelShelf
from tests.engine.ldm import write_checkpoint
from tests.engine.test_compiling import MINIATURE, lora, recipe

NAMES = "123"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, WeightsFile]:
    folder = tmp_path_factory.mktemp("weights")
    return {name * 64: WeightsFile(write_checkpoint(folder / f"{name}.safetensors", seed=int(name))) for name in NAMES}


@pytest.fixture
def one_bytes(files) -> int:
    return files["1" * 64].path.stat().st_size


def named(name: str) -> Weights:
    return Weights(name=name, sha256=name * 64)


def parking(resident_bytes: int, host_bytes: int) -> ModelShelf:
    cpu = torch.device("cpu")
    return ModelShelf(cpu, torch.float32, resident_bytes, max_host_bytes=host_bytes, parks=True)


class Use:
    """Passes that each need one checkpoint, and what was read from the disk for them."""

    def __init__(self, shelf: ModelShelf, files: dict[str, WeightsFile], monkeypatch: pytest.MonkeyPatch) -> None:
        self.shelf, self.files, self.read = shelf, files, list[str]()
        really_read = host_memory.read_separately

        def noted(path: Path) -> Any:
            self.read.append(path.stem)
            return really_read(path)

        monkeypatch.setattr(host_memory, "read_separately", noted)

    def __call__(self, name: str) -> Any:
        self.shelf.begin()
        return self.shelf.checkpoint(self.spec(name), named(name))

    def spec(self, name: str) -> RenderSpec:
        return RenderSpec((recipe(checkpoint=named(name)),), self.files)

    def parked(self) -> list[str]:
        return [one["sha256"][0] for one in self.shelf.report() if one["kind"] == "checkpoint, parked"]


def test_h8_what_left_the_card_comes_back_without_being_read(files, one_bytes, monkeypatch):
    use = Use(parking(one_bytes * 3 // 2, 10 * one_bytes), files, monkeypatch)
    first = use("1")
    weights = [tensor.clone() for tensor in tensors_of([first.checkpoint.unet])]
    use("2")
    assert use.parked() == ["1"] and use.shelf.host.used_bytes >= one_bytes * 0.9
    back = use("1")
    assert back is first and use.read == ["1", "2"] and use.parked() == ["2"]
    assert all(map(torch.equal, weights, tensors_of([back.checkpoint.unet])))


def test_h8_what_was_parked_longest_ago_goes_first_and_the_bytes_stay_within_the_limit(files, one_bytes, monkeypatch):
    use = Use(parking(one_bytes // 2, one_bytes * 3 // 2), files, monkeypatch)
    for name in "123":
        use(name)
        assert use.shelf.host.used_bytes <= use.shelf.host.max_bytes
    assert use.parked() == ["2"]
    use("2")
    use("1")
    assert use.read == ["1", "2", "3", "1"]


def test_h8_nothing_is_parked_that_is_larger_than_the_limit(files, one_bytes, monkeypatch):
    use = Use(parking(one_bytes // 2, one_bytes // 2), files, monkeypatch)
    use("1")
    use("2")
    assert use.parked() == [] and use.shelf.host.used_bytes == 0


def test_h8_what_the_running_pass_holds_is_not_moved_from_under_it(files, one_bytes, monkeypatch):
    """A refiner's checkpoint may push out the one that began: it goes on being used, as it is."""
    use = Use(parking(one_bytes // 2, 10 * one_bytes), files, monkeypatch)
    begun = use("1")
    addresses = [tensor.data_ptr() for tensor in tensors_of([begun.checkpoint.unet])]
    use.shelf.checkpoint(use.spec("2"), named("2"))  # in the same pass
    assert use.parked() == [] and addresses == [tensor.data_ptr() for tensor in tensors_of([begun.checkpoint.unet])]


def test_h8_a_checkpoint_is_parked_without_its_lora_and_draws_the_same_when_it_is_back(files):
    renderer = DiffusersRenderer()
    miniature = MINIATURE / "renderkiln-miniature.safetensors"
    renderer.shelf = parking(miniature.stat().st_size * 5 // 2, 1 << 30)  # of half precision in the file
    with_lora, plain = recipe(networks=lora(1.0)), recipe()

    def drawn(one: Recipe) -> bytes:
        used = {use.sha256: WeightsFile(MINIATURE / f"{use.name}.safetensors") for use in one.weights()}
        spec = RenderSpec((one,), used)
        (made,) = renderer.render(spec, on_step=lambda *_: None, should_stop=lambda: False)
        assert isinstance(made, Rendered)
        return made.picture.pixels

    before = [drawn(plain), drawn(with_lora)]
    renderer.shelf.begin()
    renderer.shelf.checkpoint(RenderSpec((recipe(checkpoint=named("1")),), files), named("1"))
    assert [one["kind"] for one in renderer.shelf.report() if "parked" in one["kind"]] == ["checkpoint, parked"]
    assert [drawn(plain), drawn(with_lora)] == before and before[0] != before[1]


def test_i11_what_a_pass_does_not_need_makes_room_when_it_does_not_fit(files, one_bytes, monkeypatch):
    use = Use(parking(10 * one_bytes, 10 * one_bytes), files, monkeypatch)
    use("1")
    use("2")
    use.shelf.drop_unused()
    assert use.parked() == ["1"] and [one["sha256"][0] for one in use.shelf.report()] == ["2", "1"]


def test_h8_a_file_that_was_read_ahead_is_not_read_again_and_is_handed_over(files, one_bytes, monkeypatch):
    """On a machine without a card too, where its tensors become the model's own: nothing is in memory twice."""
    shelf = ModelShelf(torch.device("cpu"), torch.float32, 10 * one_bytes)
    use = Use(shelf, files, monkeypatch)
    use("1")
    shelf.read_ahead(use.spec("2"), named("2"))
    shelf.read_ahead(use.spec("2"), named("2"))
    assert use.read == ["1", "2"] and shelf.host.used_bytes == one_bytes
    (ahead,) = [shelf.host._ahead]
    tensors = ahead[2].result()
    address = tensors["model.diffusion_model.input_blocks.0.0.weight"].data_ptr()
    assert use("2").checkpoint.unet.conv_in.weight.data_ptr() == address
    assert use.read == ["1", "2"] and shelf.host.used_bytes == 0 and not tensors
    shelf.read_ahead(use.spec("1"), named("1"))
    assert use.read == ["1", "2"], "it is loaded"


def test_h8_what_was_read_ahead_stays_while_another_file_is_needed_and_counts_in_the_one_memory(
    files, one_bytes, monkeypatch
):
    shelf = ModelShelf(torch.device("cpu"), torch.float32, one_bytes * 5 // 2)
    use = Use(shelf, files, monkeypatch)
    use("1")
    shelf.read_ahead(use.spec("2"), named("2"))
    use("3")
    assert [one["sha256"][0] for one in shelf.report()] == ["3"]
    use("2")
    assert use.read == ["1", "2", "3"]


def test_h8_without_a_card_nothing_is_read_ahead_that_does_not_fit_beside_what_is_loaded(files, one_bytes, monkeypatch):
    shelf = ModelShelf(torch.device("cpu"), torch.float32, one_bytes * 3 // 2)
    use = Use(shelf, files, monkeypatch)
    use("1")
    shelf.read_ahead(use.spec("2"), named("2"))
    use("2")
    assert use.read == ["1", "2"] and shelf.report()[-1]["sha256"][0] == "2" and use.parked() == []


def test_h8_reading_ahead_makes_room_among_what_is_parked_and_keeps_one_file(files, one_bytes, monkeypatch):
    use = Use(parking(one_bytes // 2, one_bytes * 5 // 2), files, monkeypatch)
    for name in "12":
        use(name)
    assert use.parked() == ["1"]
    use.shelf.read_ahead(use.spec("3"), named("3"))
    assert use.parked() == ["1"] and use.shelf.host.used_bytes <= use.shelf.host.max_bytes
    use.shelf.host.max_bytes = use.shelf.host._parked.max_bytes = one_bytes * 3 // 2
    use.shelf.host.read_ahead(files["2" * 64].path)
    assert use.parked() == [] and use.shelf.host.used_bytes == one_bytes


def test_h8_who_needs_a_file_that_is_being_read_waits_for_it(files, monkeypatch):
    host, path = HostMemory(1 << 30, pinned=False), files["1" * 64].path
    reading, go_on = threading.Event(), threading.Event()
    really_read = host_memory.read_separately

    def slowly(path: Path) -> Any:
        reading.set()
        assert go_on.wait(100)
        return really_read(path)

    monkeypatch.setattr(host_memory, "read_separately", slowly)
    ahead = threading.Thread(target=host.read_ahead, args=(path,))
    ahead.start()
    assert reading.wait(100)
    threading.Timer(0.1, go_on.set).start()
    assert len(host.read(path)) > 100
    ahead.join()


def test_h8_a_damaged_file_that_was_read_ahead_is_refused_as_any(tmp_path):
    host, path = HostMemory(1 << 30, pinned=False), tmp_path / "broken.safetensors"
    path.write_bytes(b"no weights at all")
    host.read_ahead(path)
    with pytest.raises(CheckpointError, match="not a complete safetensors file"):
        host.read(path)


def test_h8_tensors_that_share_memory_share_it_again_and_modules_stay_who_they_are():
    first, second = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
    second.weight = torch.nn.Parameter(first.weight.detach())
    both = torch.nn.Sequential(first, second)
    assert len(tensors_of([both])) == 3
    with torch.inference_mode():
        replace_tensors([both], torch.clone)
    assert both[0] is first and first.weight.data_ptr() == second.weight.data_ptr()
    assert not first.weight.is_inference() and not first.weight.requires_grad
