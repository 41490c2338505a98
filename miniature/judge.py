"""Does the miniature follow its prompt? Fixed prompts, four seeds each, measured from pixels: `python -m miniature.judge`.

Colours: the ground's and every figure's (or sky's and ground's) median colour is nearest to the asked one. Shape: of all
shapes, fitted to the place and size of what was drawn, the asked one covers it best, and it stands where it was asked to.
Layout of a landscape: the horizon is where the ground's colour begins, sun or moon is the brightest spot on the asked side.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from gpuworker.contract import Recipe, Rendered, RenderSpec, Weights, WeightsFile
from miniature.scenes import (
    GROUNDS,
    HORIZON,
    LIGHT_POSITIONS,
    PALETTE,
    POSITIONS,
    SHAPES,
    SKIES,
    Canvas,
    Figure,
    Scene,
)

SEEDS = (11, 22, 33, 44)
STEPS, CFG_SCALE, SAMPLER, SIZE_PX = 20, 5.0, "Euler a", 64
PLACE_TOLERANCE = 0.12
"""Of the picture's width, between the asked and the found centre of a figure."""
HORIZON_TOLERANCE = 0.08
FIGURE_SHARE = (0.02, 0.5)
"""A mask outside these shares of its region is no figure."""


@dataclass(frozen=True)
class Case:
    prompt: str
    scene: Scene


def _one(colour: str, shape: str, position: str, ground: str, prompt: str) -> Case:
    return Case(prompt, Scene(figures=(Figure(shape, colour, position),), ground=ground))


def _two(first: tuple[str, str, str], second: tuple[str, str, str], ground: str, prompt: str) -> Case:
    figures = tuple(Figure(shape, colour, position) for colour, shape, position in (first, second))
    return Case(prompt, Scene(figures=figures, ground=ground))


def _land(ground: str, sky: str, light: str | None, prompt: str) -> Case:
    return Case(prompt, Scene(ground=ground, sky=sky, light=light))


CASES = (
    _one("red", "circle", "center", "blue", "a red circle on a blue background"),
    _one("orange", "circle", "left", "black", "an orange ball on the left, black background"),
    _one("yellow", "circle", "bottom", "purple", "a yellow disc at the bottom on purple ground"),
    _one("green", "square", "center", "white", "a green square in the middle on a white background"),
    _one("cyan", "square", "right", "red", "a cyan box on the right, red background"),
    _one("blue", "square", "top", "yellow", "a blue square at the top on a yellow background"),
    _one("purple", "triangle", "center", "green", "a purple triangle, green background"),
    _one("pink", "triangle", "left", "blue", "a pink triangle on the left on blue"),
    _one("white", "triangle", "bottom", "black", "a white triangle at the bottom on black ground"),
    _one("black", "ring", "center", "orange", "a black ring in front of an orange background"),
    _one("red", "ring", "right", "white", "a red ring at the right on white"),
    _one("yellow", "ring", "top", "blue", "one yellow ring on top, blue background"),
    _one("green", "cross", "center", "pink", "a green cross in the center, pink background"),
    _one("white", "cross", "left", "red", "a white cross on the left side on red"),
    _one("blue", "cross", "bottom", "white", "a blue cross at the bottom on a white background"),
    _one("black", "circle", "right", "cyan", "a picture of a black circle on the right on a cyan background"),
    _two(("red", "circle", "left"), ("blue", "square", "right"), "white",
         "a red circle on the left and a blue square on the right on a white background"),
    _two(("yellow", "circle", "top"), ("green", "square", "bottom"), "black", "a yellow ball above a green box on black"),
    _land("meadow", "day", "left", "a green meadow under a blue sky, the sun on the left"),
    _land("meadow", "sunset", "right", "green hills at sunset, the sun on the right"),
    _land("desert", "day", "right", "a sandy desert by day, a sun on the right"),
    _land("sea", "sunset", None, "the sea in the evening"),
    _land("sea", "night", "left", "the ocean at night, the moon on the left"),
    _land("snow", "night", "right", "a snowy field under a dark night sky, with the moon on the right"),
    _land("snow", "day", None, "white snow on a sunny day"),
)  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    colours: bool
    shape: bool


def judged(picture: np.ndarray, scene: Scene) -> Verdict:
    """Measure one picture, uint8 (h, w, 3), against its scene."""
    pixels = picture.astype(float)
    return judged_landscape(pixels, scene) if scene.is_landscape else judged_figures(pixels, scene)


def judged_figures(pixels: np.ndarray, scene: Scene) -> Verdict:
    edge = np.concatenate([pixels[:3].reshape(-1, 3), pixels[-3:].reshape(-1, 3)])
    ground = np.median(edge, axis=0)
    colours, shapes = [nearest(ground, PALETTE) == scene.ground], []
    drawn = np.linalg.norm(pixels - ground, axis=-1) > 60
    for figure in scene.figures:
        region = drawn & half_of(figure, pixels.shape[0], pairs=len(scene.figures) == 2)
        share = region.mean()
        if not FIGURE_SHARE[0] < share < FIGURE_SHARE[1]:
            return Verdict(colours=False, shape=False)
        colours.append(nearest(np.median(pixels[eroded(region)], axis=0), PALETTE) == figure.colour)
        shapes.append(shape_of(region) == figure.shape and stands_at(region, figure.position))
    return Verdict(colours=all(colours), shape=all(shapes))


def half_of(figure: Figure, size: int, *, pairs: bool) -> np.ndarray:
    """Where a figure of a pair may be; everywhere for a single one."""
    axis = (np.arange(size) + 0.5) / size
    x, y = np.meshgrid(axis, axis)
    halves = {"left": x < 0.5, "right": x > 0.5, "top": y < 0.5, "bottom": y > 0.5}
    return halves[figure.position] if pairs else np.ones((size, size), bool)


def eroded(mask: np.ndarray) -> np.ndarray:
    """The inside of a mask, where no edge blurs the colour; the mask itself when nothing is inside."""
    inner = mask.copy()
    for axis in (0, 1):
        for shift in (-1, 1):
            inner &= np.roll(mask, shift, axis)
    return inner if inner.any() else mask


def nearest(colour: np.ndarray, palette: dict[str, tuple[int, int, int]]) -> str:
    return min(palette, key=lambda name: float(np.linalg.norm(colour - np.array(palette[name]))))


def centre_of(mask: np.ndarray) -> tuple[float, float]:
    """The middle of the mask's box, in picture widths; the box is the same for every shape, its centre of mass is not."""
    rows, columns = np.nonzero(mask.sum(1) > 1)[0], np.nonzero(mask.sum(0) > 1)[0]
    size = mask.shape[0]
    return (columns[0] + columns[-1] + 1) / 2 / size, (rows[0] + rows[-1] + 1) / 2 / size


def stands_at(mask: np.ndarray, position: str) -> bool:
    return bool(np.hypot(*np.subtract(centre_of(mask), POSITIONS[position])) < PLACE_TOLERANCE)


def shape_of(mask: np.ndarray) -> str:
    """The shape that covers the mask best, each at its own best size near the mask's centre."""
    return max(SHAPES, key=lambda name: best_overlap(mask, name))


def best_overlap(mask: np.ndarray, name: str) -> float:
    x, y = centre_of(mask)
    canvas = Canvas(mask.shape[0])
    return max(
        overlap(mask, canvas.shape(name, x, y + dy, radius)[..., 0] > 0.5)
        for radius in np.arange(0.1, 0.42, 0.01)
        for dy in (-0.02, 0.0, 0.02)
    )


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union."""
    return float((one & other).sum() / max(1, (one | other).sum()))


def judged_landscape(pixels: np.ndarray, scene: Scene) -> Verdict:
    assert scene.sky is not None
    size = pixels.shape[0]
    skies = {name: tuple(np.array(top) * 0.7 + np.array(low) * 0.3) for name, (top, low) in SKIES.items()}
    dim = 0.65 if scene.sky == "night" else 1.0
    grounds = {name: tuple(dim * channel for channel in colour) for name, colour in GROUNDS.items()}
    sky = np.median(pixels[: size // 3].reshape(-1, 3), axis=0)
    ground = np.median(pixels[-size // 4 :].reshape(-1, 3), axis=0)
    colours = nearest(sky, skies) == scene.sky and nearest(ground, grounds) == scene.ground
    return Verdict(colours=colours, shape=horizon_is_right(pixels, ground, scene) and light_is_right(pixels, scene))


def horizon_is_right(pixels: np.ndarray, ground: np.ndarray, scene: Scene) -> bool:
    """The ground's colour begins near the horizon and reaches the bottom."""
    assert scene.sky is not None
    lowest_sky = np.array(SKIES[scene.sky][1])
    limit = min(45.0, 0.5 * float(np.linalg.norm(lowest_sky - ground)))
    rows = np.median(pixels, axis=1)
    beneath = np.linalg.norm(rows - ground, axis=-1) < limit
    first = 0 if beneath.all() else len(beneath) - int(np.argmin(beneath[::-1]))
    return abs(first / len(beneath) - HORIZON) < HORIZON_TOLERANCE


def light_is_right(pixels: np.ndarray, scene: Scene) -> bool:
    """The spot that stands out of its row in the upper sky is on the asked side; nothing stands out when none was asked."""
    size = pixels.shape[0]
    band = pixels[int(0.08 * size) : int(0.34 * size)]
    contrast = (band - np.median(band, axis=1, keepdims=True)).mean(axis=-1)
    spot = contrast > 25
    if scene.light is None:
        return bool(spot.mean() < 0.03)
    if spot.mean() < 0.02:
        return False
    x = (np.nonzero(spot)[1].mean() + 0.5) / size
    return abs(x - LIGHT_POSITIONS[scene.light]) < PLACE_TOLERANCE


def rendered(
    checkpoint: Path, cases: tuple[Case, ...] = CASES, *, seeds: tuple[int, ...] = SEEDS
) -> Iterator[np.ndarray]:
    """Pictures of every case and seed, in order, through the product's engine."""
    from gpuworker.engine import DiffusersRenderer

    weights = Weights(name=checkpoint.stem, sha256=hashlib.sha256(checkpoint.read_bytes()).hexdigest())
    files = {weights.sha256: WeightsFile(checkpoint)}
    renderer = DiffusersRenderer(device="auto", dtype="auto")
    for case in cases:
        recipes = tuple(
            Recipe(
                prompt=case.prompt,
                negative_prompt="",
                seed=seed,
                subseed=0,
                sampler=SAMPLER,
                steps=STEPS,
                cfg_scale=CFG_SCALE,
                width=SIZE_PX,
                height=SIZE_PX,
                checkpoint=weights,
            )
            for seed in seeds
        )
        for outcome in renderer.render(RenderSpec(recipes, files), on_step=lambda *_: None, should_stop=lambda: False):
            assert isinstance(outcome, Rendered), outcome
            picture = outcome.picture
            yield np.frombuffer(picture.pixels, np.uint8).reshape(picture.height, picture.width, 3)


def picture_sheet(
    pictures: list[np.ndarray], cases: tuple[Case, ...], *, columns: int = 5, cell_px: int = 244
) -> Image.Image:
    """Each case's seeds as a square of pictures above its prompt."""
    text_px, side = 34, cell_px // 2 - 4
    rows = -(-len(cases) // columns)
    sheet = Image.new("RGB", (columns * cell_px, rows * (cell_px + text_px)), "white")
    draw = ImageDraw.Draw(sheet)
    for number, case in enumerate(cases):
        left, top = number % columns * cell_px, number // columns * (cell_px + text_px)
        for place, picture in enumerate(pictures[number * len(SEEDS) : (number + 1) * len(SEEDS)]):
            tile = Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC)
            sheet.paste(tile, (left + 3 + place % 2 * (side + 2), top + 3 + place // 2 * (side + 2)))
        for line, words in enumerate(textwrap.wrap(case.prompt, 40)[:2]):
            draw.text((left + 4, top + cell_px - 2 + line * 15), words, fill="black", font_size=12)
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    default = Path(__file__).resolve().parent / "renderkiln-miniature.safetensors"
    parser.add_argument("--checkpoint", type=Path, default=default)
    parser.add_argument("--out", type=Path, default=Path("var/miniature"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    pictures = list(rendered(args.checkpoint))
    verdicts = [judged(picture, CASES[index // len(SEEDS)].scene) for index, picture in enumerate(pictures)]
    for number, case in enumerate(CASES):
        own = verdicts[number * len(SEEDS) : (number + 1) * len(SEEDS)]
        print(f"colours {sum(v.colours for v in own)}/4  shape {sum(v.shape for v in own)}/4  {case.prompt}")
    figures = {
        "prompts": len(CASES),
        "pictures": len(verdicts),
        "colours_right": round(sum(v.colours for v in verdicts) / len(verdicts), 4),
        "shape_or_layout_right": round(sum(v.shape for v in verdicts) / len(verdicts), 4),
        "steps": STEPS,
        "cfg_scale": CFG_SCALE,
        "sampler": SAMPLER,
    }
    print(json.dumps(figures))
    (args.out / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")
    picture_sheet(pictures, CASES).save(args.out / "grid.png", optimize=True)


if __name__ == "__main__":
    main()
