"""SD upscale: enlarge a picture, draw it anew tile by tile, and put the tiles together.

Source: ``scripts/sd_upscale.py``, stable-diffusion-webui 1.10.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import Any

from PIL import Image

from renderjobs.compat.sdapi.scripts.base import (
    Answer,
    Cell,
    Drawn,
    Enlargement,
    Plan,
    Run,
    Surroundings,
    fixed_seeds,
    never_run,
)
from renderjobs.compat.sdapi.scripts.pictures import first_picture, flattened, info_of_last
from renderjobs.compat.sdapi.scripts.sheets import Tiling, tile_counts, tiled

TITLE = "SD upscale"
DEFAULTS: Mapping[str, Any] = {"info": "", "overlap": 64, "upscaler": 0, "scale_factor": 2.0}
NO_UPSCALER = "None"
SIDE_FACTOR = 8
"""An upscaler's target sides are multiples of this many pixels."""


def plan(
    tab: str, values: Mapping[str, Any], arguments: Mapping[str, Any], around: Surroundings, random: Random
) -> Plan:
    """Raises: ValueError, IndexError: There is no such upscaler. ZeroDivisionError: The overlap is as large as a tile."""
    upscaler = upscaler_of(arguments["upscaler"], around)
    overlap, scale = int(arguments["overlap"]), float(arguments["scale_factor"])
    picture = flattened(first_picture(values, around), around.options["img2img_background_color"])
    seeds = fixed_seeds(values, random)
    notes = {"SD upscale overlap": arguments["overlap"], "SD upscale upscaler": upscaler}

    tile = {"width": values["width"], "height": values["height"], "overlap": overlap}

    def start() -> Run:
        return run(picture, upscaler, scale, tile, values, seeds, notes)

    size = picture.size if upscaler == NO_UPSCALER else enlarged_size(picture, scale)
    columns, rows = tile_counts(size, **tile)
    return Plan(title=TITLE, images_total=columns * rows * max(1, values["n_iter"]), start=start)


def upscaler_of(given: Any, around: Surroundings) -> str:
    """By its place in the list, or its name in any case."""
    if not isinstance(given, str):
        return around.upscalers[given]
    names = [name.lower() for name in around.upscalers]
    return around.upscalers[names.index(given.lower())]


def enlarged_size(picture: Image.Image, scale: float) -> tuple[int, int]:
    """Source: ``Upscaler.upscale``, stable-diffusion-webui 1.10.1 ``modules/upscaler.py``."""
    width, height = (int(side * scale // SIDE_FACTOR * SIDE_FACTOR) for side in picture.size)
    return width, height


def run(
    picture: Image.Image,
    upscaler: str,
    scale: float,
    tile: Mapping[str, int],
    values: Mapping[str, Any],
    seeds: Mapping[str, int],
    notes: Mapping[str, Any],
) -> Run:
    """All tiles of all repetitions in one step: none depends on another."""
    if upscaler != NO_UPSCALER:
        (enlarged,) = yield (Enlargement(picture=picture, upscaler=upscaler, scale=scale),)
        if not len(enlarged.pictures):
            return Answer(shown=(), info=never_run(values, []), described=None)
        picture = enlarged.pictures[0]
    tiling = tiled(picture, **tile)
    cells = cells_of(tiling, values, seeds, notes)
    drawn = yield cells
    tiles = [picture for cell, made in zip(cells, drawn, strict=True) for picture in completed(cell, made)]
    per_repetition = len(tiling.tiles())
    joined = tuple(
        tiling.filled(tiles[start : start + per_repetition]).joined() for start in range(0, len(tiles), per_repetition)
    )
    described = len(cells) - (1 if upscaler == NO_UPSCALER else 0)
    return Answer(shown=joined, info=info_of_last(drawn, len(joined)), described=described)


def completed(cell: Cell, made: Drawn) -> list[Image.Image]:
    """The pictures of a batch of tiles, black ones in place of those that are missing."""
    pictures = list(made.pictures)[: len(cell.init_images)]
    return pictures + [Image.new("RGB", tile.size) for tile in cell.init_images[len(pictures) :]]


def cells_of(
    tiling: Tiling, values: Mapping[str, Any], seeds: Mapping[str, int], notes: Mapping[str, Any]
) -> tuple[Cell, ...]:
    """Tiles in batches, repeated n_iter times.

    QUIRK(A1111 1.10): the seed goes up by one per batch, not by one per tile, and by one per repetition.
    """
    tiles = [tile.picture for tile in tiling.tiles()]
    size = max(1, values["batch_size"])
    batches = [tuple(tiles[start : start + size]) for start in range(0, len(tiles), size)]
    return tuple(
        Cell(
            changes={"n_iter": 1, "batch_size": len(batch), **seeds, "seed": seeds["seed"] + repetition + number},
            notes=notes,
            init_images=batch,
        )
        for repetition in range(max(1, values["n_iter"]))
        for number, batch in enumerate(batches)
    )
