"""B1, B2, B3, B10 and the time of B11: the engine at the size of real models, on a card. Weights are random: they take as long.

Every size is a parameter, so that a machine without a card can run the same lines small (``tests/engine/test_card_benchmarks.py``).
"""

from __future__ import annotations

import io
import json
import struct
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.engine_pairs import StockPipeline
from benchmarks.pairs import Ratio, measured
from gpuworker.contract import NetworkUse, Recipe, Rendered, RenderSpec, Weights, WeightsFile
from gpuworker.engine.models.shelf import ModelShelf
from tests.engine.ldm import FULL_SIZE, Shapes

PEAK_FLOPS = 790e12
"""Practical dense bf16 of the reference card, an H200."""
ENCODERS = 4
TILE_VALUES = 2**24 + 1
RANK = 16
LORA_CHANGES = 50
MOST_IMAGES = 16
PLENTY = 1 << 40


@dataclass(frozen=True)
class Asked:
    """A model and what is drawn with it."""

    family: str
    shapes: Shapes
    side_px: int
    steps: int
    images: int
    floor: float
    """Of the rate against a stock pipeline."""
    part_of_peak: float
    """Floor of B3."""


SD1 = Asked("sd1", FULL_SIZE["sd1"].shapes(), 512, 20, 64, floor=3, part_of_peak=0.35)
SDXL = Asked("sdxl", FULL_SIZE["sdxl"].shapes(), 1024, 30, 16, floor=1.7, part_of_peak=0.45)


def is_there() -> bool:
    return torch.cuda.is_available()


def card_sd1() -> list[Ratio]:
    """B1 and its part of B3."""
    return list(against_stock("B1", SD1))


def card_sdxl() -> list[Ratio]:
    """B2 and its part of B3."""
    return list(against_stock("B2", SDXL))


def against_stock(name: str, asked: Asked, *, device: str = "cuda", pairs: int = 5) -> Iterator[Ratio]:
    with written(asked) as files:
        bench = Bench(asked, files, device)
        stock = StockPipeline(bench.renderer, bench.spec(bench.recipes()[:1]))
        ratio = measured(
            name=name,
            meaning=f"{asked.family}, {asked.images} images of {asked.side_px} px: our rate ÷ a stock pipeline's with Pillow",
            goal=f"≥ {asked.floor}",
            above=lambda: bench.drawn_by(stock),
            below=bench.drawn,
            pairs=pairs,
            notes={"steps": asked.steps, "card": bench.renderer.device_name, "build": bench.renderer.build},
        )
        notes = {
            **ratio.notes,
            "micro_batch": bench.size(),
            "milliseconds_per_image_and_call": {size: ns / 1e6 for size, ns in bench.times().items()},
            "largest_difference_of_the_first": bench.difference(stock),
        }
        yield replace(ratio, notes=notes)
        flops = flops_per_image(asked)
        part = flops * asked.images / ratio.below_seconds / PEAK_FLOPS
        yield alone(
            f"B3-{asked.family}",
            f"part of {PEAK_FLOPS / 1e12:.0f} TFLOP/s, from exact FLOPs",
            f"≥ {asked.part_of_peak}",
            part,
            ratio.below_seconds,
            {**ratio.notes, "tera_flops_per_image": flops / 1e12},
        )


def card_checkpoint_changes() -> list[Ratio]:
    """B10."""
    return list(changes_of(SDXL))


def changes_of(asked: Asked, *, device: str = "cuda", pairs: int = 5) -> Iterator[Ratio]:
    """One checkpoint for another: both on the card; and one of them in the machine's memory."""
    with written(asked, asked) as files:
        bench = Bench(asked, files, device)
        engine, names = bench.renderer, list(files)
        for label, resident_bytes, floor_seconds in (("resident", PLENTY, 0.05), ("parked", 1, 2.0)):
            # With room for one byte, one checkpoint is on the card at a time.
            engine.shelf = ModelShelf(
                engine.device, engine.shelf.dtype, resident_bytes, max_host_bytes=PLENTY, parks=True
            )
            times = []
            for index in range(2 * pairs + 2):
                engine.shelf.begin()
                started = bench.now()
                bench.load(names[index % 2])
                times.append(bench.now() - started)
            median = sorted(times[2:])[pairs]
            notes = {"card": bench.renderer.device_name, "first_loads_seconds": [round(one, 3) for one in times[:2]]}
            meaning = f"change of an {asked.family} checkpoint that is {label}, in units of {floor_seconds} s"
            yield alone(f"B10-{label}", meaning, "≤ 1", median / floor_seconds, median, notes)


def card_lora_changes() -> list[Ratio]:
    """B11's time."""
    return [time_of_lora_changes(SD1)]


def time_of_lora_changes(asked: Asked, *, device: str = "cuda", changes: int = LORA_CHANGES) -> Ratio:
    with written(asked) as files:
        bench = Bench(asked, files, device)
        loaded = bench.load(next(iter(files)))
        lora = Weights(name="lora", sha256="e" * 64)
        path = write(Path(tempfile.mkdtemp(dir=files.folder)) / "lora.safetensors", lora_shapes(loaded.checkpoint.unet))
        spec = replace(bench.spec(bench.recipes()[:1]), weights={**bench.files, lora.sha256: WeightsFile(path)})
        modules = [id(module) for module in loaded.checkpoint.unet.modules()]
        times = []
        for index in range(changes + 1):
            use = NetworkUse(kind="lora", weights=lora, te=1.0, unet=1 - index / (2 * changes))
            started = bench.now()
            warnings = loaded.networks.use(bench.renderer.shelf.active_networks(spec, (use,)))
            times.append(bench.now() - started)
            assert not warnings, warnings
        assert modules == [id(module) for module in loaded.checkpoint.unet.modules()], "Modules were replaced."
        median = sorted(times[1:])[changes // 2]
        notes = {"card": bench.renderer.device_name, "milliseconds_per_change": round(1000 * median, 2), "rank": RANK}
        meaning = f"one of {changes} LoRA changes in {asked.family}, in units of 250 ms"
        return alone("B11-time", meaning, "≤ 1", median / 0.25, median, notes)


def alone(name: str, meaning: str, goal: str, ratio: float, seconds: float, notes: dict[str, Any]) -> Ratio:
    """A figure with no other side but its limit."""
    return Ratio(name, meaning, goal, ratio, ratio, ratio, 1, seconds, seconds, notes)


# --- one model on one device -----------------------------------------------------------------------------------------


class Bench:
    """The engine with one model, and the loop a worker has around it: learned micro-batches, PNG in other threads."""

    def __init__(self, asked: Asked, files: Files, device: str) -> None:
        from gpuworker.engine import DiffusersRenderer

        self.asked = asked
        self.files = dict(files)
        self.renderer: Any = DiffusersRenderer(device=device, dtype="auto")
        self.profile: dict[int, Any] = {}

    def recipes(self) -> list[Recipe]:
        return [
            Recipe(
                prompt="a red circle on a blue background",
                negative_prompt="",
                seed=index,
                subseed=0,
                sampler="Euler",
                steps=self.asked.steps,
                cfg_scale=7.0,
                width=self.asked.side_px,
                height=self.asked.side_px,
                checkpoint=Weights(name="random", sha256=next(iter(self.files))),
            )
            for index in range(self.asked.images)
        ]

    def spec(self, recipes: Sequence[Recipe]) -> RenderSpec:
        return RenderSpec(tuple(recipes), self.files)

    def load(self, sha256: str) -> Any:
        weights = Weights(name="random", sha256=sha256)
        return self.renderer.shelf.checkpoint(self.spec(self.recipes()[:1]), weights)

    def size(self) -> int:
        from fleet.profiles import next_size

        return next_size(self.profile, MOST_IMAGES, room_bytes=self.renderer.room_bytes())

    def times(self) -> dict[int, int]:
        return {size: found.image_call_ns for size, found in sorted(self.profile.items())}

    def drawn(self) -> None:
        """All images, as a worker makes them; the first run learns."""
        from fleet.profiles import Measured, sizes_up_to
        from gpuworker.encoding import png_of

        todo = self.recipes()
        with ThreadPoolExecutor(ENCODERS) as encoders:
            while todo:
                part = todo[: self.size()]
                for picture in self.pictures(part):
                    encoders.submit(png_of, picture, {})
                told = self.renderer.measured
                if told and len(part) in sizes_up_to(MOST_IMAGES):
                    known = self.profile.get(len(part), Measured())
                    self.profile[len(part)] = known.with_pass(told.image_call_ns, told.peak_bytes)
                todo = todo[len(part) :]

    def pictures(self, recipes: Sequence[Recipe]) -> Iterator[Any]:
        for outcome in self.renderer.render(self.spec(recipes), on_step=lambda *_: None, should_stop=lambda: False):
            assert isinstance(outcome, Rendered), outcome
            yield outcome.picture

    def drawn_by(self, stock: StockPipeline) -> None:
        """All images, one call each, saved as Pillow does by default."""
        for recipe in self.recipes():
            Image.fromarray(stock.picture(recipe)).save(io.BytesIO(), "PNG")

    def difference(self, stock: StockPipeline) -> int:
        """Between both sides' first picture, in levels of 255."""
        first = self.recipes()[0]
        (ours,) = self.pictures([first])
        theirs = torch.from_numpy(stock.picture(first).astype("int16"))
        mine = torch.frombuffer(bytearray(ours.pixels), dtype=torch.uint8).view(theirs.shape).to(torch.int16)
        return int((mine - theirs).abs().max())

    def now(self) -> float:
        if self.renderer.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def flops_per_image(asked: Asked) -> float:
    """Multiplications and additions of all denoiser calls, both halves, and of the decoder; counted on no device."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    from gpuworker.engine.models.families import architecture_of

    plan, side = architecture_of(asked.shapes), asked.side_px // 8
    with torch.device("meta"), FlopCounterMode(display=False) as counted:
        unet: Any = UNet2DConditionModel(**plan.unet)
        width = unet.config.projection_class_embeddings_input_dim
        labels = torch.empty(1, width) if width else None
        context = torch.empty(1, 77, unet.config.cross_attention_dim)
        unet(torch.empty(1, unet.config.in_channels, side, side), torch.empty(1), context, class_labels=labels)
        call = counted.get_total_flops()
        vae: Any = AutoencoderKL(**plan.vae)
        vae.decode(torch.empty(1, vae.config.latent_channels, side, side))
    return 2 * asked.steps * call + (counted.get_total_flops() - call)


# --- files -----------------------------------------------------------------------------------------------------------


class Files(dict[str, WeightsFile]):
    """sha-256, or what stands for it → file; all in one folder."""

    folder: Path


@contextmanager
def written(*models: Asked) -> Iterator[Files]:
    """A checkpoint of random weights for each."""
    with tempfile.TemporaryDirectory(prefix="renderkiln-weights-") as folder:
        files = Files()
        files.folder = Path(folder)
        for number, asked in enumerate(models):
            files[str(number) * 64] = WeightsFile(write(files.folder / f"{number}.safetensors", asked.shapes))
        yield files


def write(path: Path, shapes: Shapes) -> Path:
    """Half precision, of a size that keeps signals as large as they are: pictures come out, not one colour."""
    tile = torch.randn(TILE_VALUES, generator=torch.Generator().manual_seed(0))
    header, begin = {}, 0
    for name, shape in shapes.items():
        end = begin + 2 * prod(shape)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [begin, end]}
        begin = end
    described = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(described)) + described)
        for name, shape in shapes.items():
            file.write(_values(name, shape, tile))
    return path


def _values(name: str, shape: tuple[int, ...], tile: torch.Tensor) -> memoryview:
    count = prod(shape)
    if len(shape) < 2:
        values = torch.full((count,), float(name.endswith("weight") or not shape))
    else:
        enough = tile if count <= len(tile) else tile.repeat(-(-count // len(tile)))
        values = enough[:count] / prod(shape[1:]) ** 0.5
    return values.half().view(torch.uint8).numpy().data


def lora_shapes(unet: Any) -> Shapes:
    """Of every projection in the attentions, as trainers name them."""
    shapes: Shapes = {}
    for name, module in unet.named_modules():
        if isinstance(module, torch.nn.Linear) and (".attn1." in name or ".attn2." in name):
            inner = f"lora_unet_{name.replace('.', '_')}"
            shapes[f"{inner}.lora_down.weight"] = (RANK, module.in_features)
            shapes[f"{inner}.lora_up.weight"] = (module.out_features, RANK)
    return shapes


BENCHMARKS: dict[Callable[[], list[Ratio]], str] = {
    card_sd1: "B1, B3", card_sdxl: "B2, B3", card_checkpoint_changes: "B10", card_lora_changes: "B11",
}  # fmt: skip
"""And what they are called in the tables."""
