"""Outpainting mk2 and Poor man's outpainting: a picture is drawn on beyond its edges.

The first fills what is new with noise that has the picture's spectrum and colours, one side after another; the second draws
the tiles that reach beyond the picture, all at once.

Source: ``scripts/outpainting_mk_2.py`` and ``scripts/poor_mans_outpainting.py``, stable-diffusion-webui 1.10.1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from renderjobs.compat.sdapi.scripts.base import (
    Answer,
    Cell,
    Drawn,
    Plan,
    Run,
    Surroundings,
    first_of,
    fixed_seed,
    never_run,
    pictures_per_cell,
)
from renderjobs.compat.sdapi.scripts.matched_noise import matched_noise
from renderjobs.compat.sdapi.scripts.pictures import ALONE, first_picture, info_of_last
from renderjobs.compat.sdapi.scripts.sheets import Tile, Tiling, sheet_of, tiled

MK2_TITLE, POOR_MANS_TITLE = "Outpainting mk2", "Poor man's outpainting"
SIDES = ("left", "right", "up", "down")
MK2_DEFAULTS: Mapping[str, Any] = {
    "info": "", "pixels": 128, "mask_blur": 8, "directions": list(SIDES), "falloff": 1.0, "color_variation": 0.05,
}  # fmt: skip
POOR_MANS_DEFAULTS: Mapping[str, Any] = {"pixels": 128, "mask_blur": 4, "inpainting_fill": 0, "directions": list(SIDES)}
FILL, ORIGINAL = 0, 1
"""``inpainting_fill`` that spreads the colours around the mask, and that keeps what is under it."""
MOST_PIXELS = 8_000_000
"""Of the picture with its border: matched noise needs some 200 bytes for each."""
SIDE_FACTOR = 64
"""The sides of the whole are rounded up to multiples of this many pixels; what is new grows by it."""


@dataclass(frozen=True, slots=True)
class Border:
    """Pixels to add on each side."""

    left: int
    right: int
    up: int
    down: int

    @classmethod
    def around(cls, picture: Image.Image, pixels: int, directions: Sequence[str]) -> Border:
        """Raises: ValueError: The whole would be too large."""
        left, right, up, down = (pixels if side in directions else 0 for side in SIDES)
        left, right = shares(left, right, picture.width)
        up, down = shares(up, down, picture.height)
        size = rounded_up(picture.width + left + right), rounded_up(picture.height + up + down)
        if size[0] * size[1] > MOST_PIXELS:
            raise ValueError(f"A picture of {size[0]} x {size[1]} pixels is too large to be outpainted.")
        return cls(left, right, up, down)


def shares(before: int, after: int, side: int) -> tuple[int, int]:
    """What is added before and after a side, so that the whole is a multiple of ``SIDE_FACTOR``."""
    added = rounded_up(side + before + after) - side
    if before > 0:
        before = before * added // (before + after)
    return before, added - before if after > 0 else 0


def rounded_up(pixels: int) -> int:
    return math.ceil(pixels / SIDE_FACTOR) * SIDE_FACTOR


def black_box(size: tuple[int, int], box: tuple[float, float, float, float], mode: str) -> Image.Image:
    """A white mask with a black rectangle, its last column and row included, as PIL counts them."""
    mask = Image.new(mode, size, "white")
    left, top, right, bottom = box
    if right >= left and bottom >= top:
        ImageDraw.Draw(mask).rectangle(box, fill="black")
    return mask


@dataclass(frozen=True, slots=True)
class Extension:
    """A picture with new space on one side, about to be drawn there."""

    side: str
    whole: Image.Image
    """With noise where it is new; sides are multiples of ``SIDE_FACTOR``."""
    size: tuple[int, int]
    """Of the whole without what only fills it up."""
    part: Image.Image
    """What is drawn."""
    mask: Image.Image
    latent_mask: Image.Image

    def with_drawn(self, picture: Image.Image) -> Image.Image:
        left = 0 if self.side == "left" else self.whole.width - picture.width
        top = 0 if self.side == "up" else self.whole.height - picture.height
        whole = self.whole.copy()
        whole.paste(picture, (left, top))
        return whole.crop((0, 0, *self.size))


@dataclass(frozen=True, slots=True)
class Mk2:
    """Arguments of Outpainting mk2, with what it needs of the request."""

    largest: tuple[int, int]
    """Width and height of the request: at most so much is drawn at a time across the side that grows."""
    blur_x: int
    blur_y: int
    falloff: float
    color_variation: float

    def extended(self, picture: Image.Image, side: str, pixels: int) -> Extension:
        """Lay a picture on a larger one and fill the rest with matched noise."""
        across = side in ("left", "right")
        size = (picture.width + pixels, picture.height) if across else (picture.width, picture.height + pixels)
        canvas = rounded_up(size[0]), rounded_up(size[1])
        whole = Image.new("RGB", canvas)
        whole.paste(picture, (pixels if side == "left" else 0, pixels if side == "up" else 0))
        mask = self.mask(side, pixels, canvas, size, blurs=1)
        drawn = (min(self.largest[0], size[0]), canvas[1]) if across else (canvas[0], min(self.largest[1], size[1]))
        left = 0 if side == "left" else canvas[0] - drawn[0]
        top = 0 if side == "up" else canvas[1] - drawn[1]
        box = (left, top, left + drawn[0], top + drawn[1])
        whole = self.noised(whole, mask)
        latent_mask = self.mask(side, pixels, drawn, size, blurs=2)
        return Extension(side, whole, size, whole.crop(box), mask.crop(box), latent_mask)

    def mask(
        self, side: str, pixels: int, canvas: tuple[int, int], size: tuple[int, int], *, blurs: int
    ) -> Image.Image:
        """White where the picture is new and for so many blurs within what is known."""
        x, y = pixels + self.blur_x * blurs, pixels + self.blur_y * blurs
        box = (
            x if side == "left" else 0,
            y if side == "up" else 0,
            canvas[0] - x if side == "right" else size[0],
            canvas[1] - y if side == "down" else size[1],
        )
        return black_box(canvas, box, "RGB")

    def noised(self, whole: Image.Image, mask: Image.Image) -> Image.Image:
        pixels, under = (np.asarray(picture) / 255.0 for picture in (whole, mask))
        noise = matched_noise(pixels, under, falloff=self.falloff, color_variation=self.color_variation)
        return Image.fromarray((noise * 255.0).astype(np.uint8))


def mk2_plan(
    tab: str, values: Mapping[str, Any], arguments: Mapping[str, Any], around: Surroundings, random: Random
) -> Plan:
    picture = first_picture(values, around).convert("RGB")
    border = Border.around(picture, int(arguments["pixels"]), arguments["directions"])
    blur = int(arguments["mask_blur"])
    script = Mk2(
        largest=(values["width"], values["height"]),
        blur_x=blur if border.left or border.right else 0,
        blur_y=blur if border.up or border.down else 0,
        falloff=float(arguments["falloff"]),
        color_variation=float(arguments["color_variation"]),
    )
    sides = [(side, pixels) for side in SIDES if (pixels := getattr(border, side)) > 0]
    total = pictures_per_cell(values) * len(sides)
    return Plan(
        title=MK2_TITLE,
        images_total=total,
        start=lambda: mk2_run(script, picture, sides, values, around.options),
    )


def mk2_run(
    script: Mk2,
    picture: Image.Image,
    sides: Sequence[tuple[str, int]],
    values: Mapping[str, Any],
    options: Mapping[str, Any],
) -> Run:
    """One side after another; the repetitions do not depend on one another, so a step is one side of all of them."""
    count = max(1, values["batch_size"])
    pictures = [picture] * pictures_per_cell(values)
    drawn: list[Drawn] = []
    for side, pixels in sides:
        extensions = extended_all(script, pictures, side, pixels)
        cells = tuple(mk2_cell(script, extensions[start : start + count]) for start in range(0, len(extensions), count))
        step = yield cells
        drawn += step
        made = [drawing for cell, own in zip(cells, step, strict=True) for drawing in completed(cell, own)]
        pictures = [extension.with_drawn(drawing) for extension, drawing in zip(extensions, made, strict=True)]
    shown = [*pictures]
    if options["return_grid"] and (len(pictures) > 1 or not options["grid_only_if_multiple"]):
        shown.insert(0, sheet_of(pictures, options))
    info = info_of_last(drawn, len(shown)) if drawn else never_run(values, [None] * len(shown))
    return Answer(shown=tuple(shown), info=info, described=len(drawn) - 1 if drawn else None)


def completed(cell: Cell, made: Drawn) -> list[Image.Image]:
    """The pictures of a batch; where one is missing, what it would have begun with."""
    pictures = list(made.pictures)[: len(cell.init_images)]
    return [*pictures, *cell.init_images[len(pictures) :]]


def extended_all(script: Mk2, pictures: Sequence[Image.Image], side: str, pixels: int) -> list[Extension]:
    """Equal pictures, as all are before the first side is drawn, are extended once."""
    once = {id(picture): picture for picture in pictures}
    known = {key: script.extended(picture, side, pixels) for key, picture in once.items()}
    return [known[id(picture)] for picture in pictures]


def mk2_cell(script: Mk2, batch: Sequence[Extension]) -> Cell:
    first = batch[0]
    changes = {
        "n_iter": 1,
        "batch_size": len(batch),
        "width": first.part.width,
        "height": first.part.height,
        "mask_blur": None,
        "mask_blur_x": script.blur_x * 4,
        "mask_blur_y": script.blur_y * 4,
        "inpaint_full_res": False,
        "inpainting_fill": ORIGINAL,
    }
    pictures = tuple(extension.part for extension in batch)
    return Cell(changes=changes, init_images=pictures, mask=first.mask, latent_mask=first.latent_mask)


def poor_mans_plan(
    tab: str, values: Mapping[str, Any], arguments: Mapping[str, Any], around: Surroundings, random: Random
) -> Plan:
    """Raises: ZeroDivisionError: The border is as wide as a tile."""
    picture = first_picture(values, around).convert("RGB")
    pixels, blur = int(arguments["pixels"]), int(arguments["mask_blur"])
    border = Border.around(picture, pixels, arguments["directions"])
    whole = Image.new("RGB", (picture.width + border.left + border.right, picture.height + border.up + border.down))
    whole = whole.crop((0, 0, rounded_up(whole.width), rounded_up(whole.height)))
    whole.paste(picture, (border.left, border.up))

    def cut(given: Image.Image) -> Tiling:
        return tiled(given, width=values["width"], height=values["height"], overlap=pixels)

    tiling = cut(whole)
    masks, latent_masks = (cut(inner_box(whole.size, border, within)).tiles() for within in (blur * 2, blur // 2))
    changes = {
        **ALONE,
        "mask_blur": blur * 2,
        "inpainting_fill": fill_of(arguments["inpainting_fill"]),
        "inpaint_full_res": False,
    }
    seed = fixed_seed(values["seed"], random)
    open_places = [place for place, tile in enumerate(tiling.tiles()) if reaches_out(tile, tiling, border)]
    cells = tuple(
        Cell(
            changes={**changes, "seed": seed + number},
            init_images=(tiling.tiles()[place].picture,),
            mask=masks[place].picture,
            latent_mask=latent_masks[place].picture,
        )
        for number, place in enumerate(open_places)
    )
    return Plan(
        title=POOR_MANS_TITLE, images_total=len(cells), start=lambda: poor_mans_run(cells, tiling, open_places, values)
    )


def fill_of(given: Any) -> int:
    """QUIRK(A1111 1.10): its page sends the place of a label; the label itself, ``original`` among them, means the first one."""
    try:
        return int(given)
    except ValueError:
        return FILL


def inner_box(size: tuple[int, int], border: Border, within: int) -> Image.Image:
    """Black where the picture stays; on the sides that grow that begins so many pixels within it."""
    box = (
        border.left + (within if border.left else 0),
        border.up + (within if border.up else 0),
        size[0] - border.right - (within if border.right else 0),
        size[1] - border.down - (within if border.down else 0),
    )
    return black_box(size, box, "L")


def reaches_out(tile: Tile, tiling: Tiling, border: Border) -> bool:
    """Whether a tile has something of the border, so that it is drawn."""
    width, height = tiling.size
    beside = tile.x < border.left or tile.x + tiling.width > width - border.right
    return beside or tile.y < border.up or tile.y + tiling.height > height - border.down


def poor_mans_run(
    cells: tuple[Cell, ...], tiling: Tiling, open_places: Sequence[int], values: Mapping[str, Any]
) -> Run:
    drawn = (yield cells) if cells else ()
    pictures = [tile.picture for tile in tiling.tiles()]
    for place, cell in zip(open_places, drawn, strict=True):
        pictures[place] = first_of(cell.pictures) or Image.new("RGB", pictures[place].size)
    joined = tiling.filled(pictures).joined()
    info = info_of_last(drawn, 1) if drawn else never_run(values, [None])
    return Answer(shown=(joined,), info=info, described=len(drawn) - 1 if drawn else None)
