"""Grids of pictures as A1111 lays them out, with legends, and pictures cut into overlapping tiles and put together again.

Pure: PIL and numpy; knows nothing of requests.

Source: ``image_grid``, ``draw_grid_annotations``, ``draw_prompt_matrix``, ``split_grid`` and ``combine_grid``,
stable-diffusion-webui 1.10.1 ``modules/images.py``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

STRIKE_WIDTH_PX = 4
MOST_TILE_PIXELS = 128_000_000
"""Of all tiles of a picture together, which are in memory at once."""


def sheet_of(
    pictures: Sequence[Image.Image], options: Mapping[str, Any], *, rows: int | None = None, batch_size: int = 1
) -> Image.Image:
    """Row by row; a cell has the largest width and height, smaller pictures stand in its middle."""
    rows = min(len(pictures), rows or rows_of(len(pictures), options, batch_size))
    columns = math.ceil(len(pictures) / rows)
    width, height = largest(pictures)
    sheet = Image.new("RGB", (columns * width, rows * height), options["grid_background_color"])
    for index, picture in enumerate(pictures):
        left, top = index % columns * width, index // columns * height
        sheet.paste(picture, (left + (width - picture.width) // 2, top + (height - picture.height) // 2))
    return sheet


def rows_of(count: int, options: Mapping[str, Any], batch_size: int) -> int:
    """Rows by the options: a number, one per batch, or as square as it gets."""
    if options["n_rows"] > 0:
        return int(options["n_rows"])
    if options["n_rows"] == 0:
        return batch_size
    if options["grid_prevent_empty_spots"]:
        return max(rows for rows in range(1, math.isqrt(count) + 1) if count % rows == 0)
    return round(math.sqrt(count))


def largest(pictures: Sequence[Image.Image]) -> tuple[int, int]:
    return max(picture.width for picture in pictures), max(picture.height for picture in pictures)


@dataclass(frozen=True, slots=True)
class Label:
    """A text of a legend; one that does not apply is struck through."""

    text: str = ""
    active: bool = True


@dataclass(frozen=True, slots=True)
class Line:
    """A label's words that fit beside one another, measured in pixels."""

    label: Label
    width: int
    height: int
    room: int
    """Pixels there are for it."""


class Lettering:
    """Wraps, measures and draws the texts of one legend.

    The font is the one that comes with Pillow, so no file of another licence is shipped; A1111 takes Roboto.
    """

    def __init__(self, size: int, options: Mapping[str, Any]) -> None:
        self.size = max(1, size)
        self.spacing = size // 2
        self.colours = {
            True: ImageColor.getcolor(options["grid_text_active_color"], "RGB"),
            False: ImageColor.getcolor(options["grid_text_inactive_color"], "RGB"),
        }
        self.ruler = ImageDraw.Draw(Image.new("RGB", (1, 1)))

    def font(self, size: int) -> Any:
        return ImageFont.load_default(size)

    def lines(self, labels: Sequence[Label], room: int) -> list[Line]:
        return [self.measured(part, room) for label in labels for part in self.wrapped(label, room)]

    def wrapped(self, label: Label, room: int) -> list[Label]:
        font, lines = self.font(self.size), [""]
        for word in label.text.split():
            line = f"{lines[-1]} {word}".strip()
            if self.ruler.textlength(line, font=font) <= room:
                lines[-1] = line
            else:
                lines.append(word)
        return [replace(label, text=line) for line in lines]

    def measured(self, label: Label, room: int) -> Line:
        left, top, right, bottom = self.ruler.textbbox((0, 0), label.text, font=self.font(self.size))
        return Line(label, round(right - left), round(bottom - top), room)

    def draw(self, draw: ImageDraw.ImageDraw, x: float, y: float, lines: Sequence[Line]) -> None:
        """Lines below one another, centred about ``x``."""
        for line in lines:
            middle, text = y + line.height / 2, line.label.text
            draw.text((x, middle), text, font=self.fitting(line), fill=self.colours[line.label.active], anchor="mm")
            if not line.label.active:
                across = (x - line.width // 2, y + line.height // 2, x + line.width // 2, y + line.height // 2)
                draw.line(across, fill=self.colours[False], width=STRIKE_WIDTH_PX)
            y += line.height + self.spacing

    def fitting(self, line: Line) -> Any:
        """The font, smaller where a single word is wider than its room."""
        size = self.size
        while size > 1 and self.ruler.textlength(line.label.text, font=self.font(size)) > line.room:
            size -= 1
        return self.font(size)


def annotated(
    sheet: Image.Image,
    cell: tuple[int, int],
    columns: Sequence[Sequence[Label]],
    rows: Sequence[Sequence[Label]],
    options: Mapping[str, Any],
    *,
    margin: int = 0,
) -> Image.Image:
    """A sheet with a legend above and at its left; cells ``margin`` pixels apart."""
    width, height = cell
    lettering = Lettering((width + height) // 25, options)
    left = width * 3 // 4 if any(label.text for labels in rows for label in labels) else 0
    above = [lettering.lines(labels, width) for labels in columns]
    beside = [lettering.lines(labels, left) for labels in rows]
    # QUIRK(A1111 1.10): a column's height leaves out the space after its last line, a row's the space after each.
    heights_above = [sum(line.height + lettering.spacing for line in lines) - lettering.spacing for lines in above]
    heights_beside = [sum(line.height for line in lines) for lines in beside]
    top = max(heights_above) + 2 * lettering.spacing if sum(heights_above) else 0

    size = (sheet.width + left + margin * (len(columns) - 1), sheet.height + top + margin * (len(rows) - 1))
    result = Image.new("RGB", size, options["grid_background_color"])
    for row in range(len(rows)):
        for column in range(len(columns)):
            box = (width * column, height * row, width * (column + 1), height * (row + 1))
            result.paste(sheet.crop(box), (left + (width + margin) * column, top + (height + margin) * row))
    draw = ImageDraw.Draw(result)
    for column, lines in enumerate(above):
        x = left + (width + margin) * column + width / 2
        lettering.draw(draw, x, top / 2 - heights_above[column] / 2, lines)
    for row, lines in enumerate(beside):
        y = top + (height + margin) * row + height / 2 - heights_beside[row] / 2
        lettering.draw(draw, left / 2, y, lines)
    return result


def matrix_labels(parts: Sequence[str]) -> tuple[list[list[Label]], list[list[Label]]]:
    """Labels of columns and rows for every combination of the parts: the first half varies along a row."""
    boundary = math.ceil(len(parts) / 2)

    def combinations(own: Sequence[str]) -> list[list[Label]]:
        chosen = range(1 << len(own))
        return [[Label(part, bool(number & (1 << bit))) for bit, part in enumerate(own)] for number in chosen]

    return combinations(parts[:boundary]), combinations(parts[boundary:])


@dataclass(frozen=True, slots=True)
class Tile:
    x: int
    y: int
    picture: Image.Image


@dataclass(frozen=True, slots=True)
class Tiling:
    """A picture as rows of overlapping tiles of one size."""

    rows: tuple[tuple[Tile, ...], ...]
    width: int
    height: int
    """Of a tile; pixels."""
    size: tuple[int, int]
    """Of the whole."""
    overlap: int

    def tiles(self) -> list[Tile]:
        return [tile for row in self.rows for tile in row]

    def filled(self, pictures: Sequence[Image.Image]) -> Tiling:
        """The same tiles with other pictures, in the order of ``tiles``; what is missing is black."""
        given = iter(pictures)
        black = Image.new("RGB", (self.width, self.height))
        rows = tuple(tuple(replace(tile, picture=next(given, black)) for tile in row) for row in self.rows)
        return replace(self, rows=rows)

    def joined(self) -> Image.Image:
        """The whole picture; neighbours fade into one another over the overlap."""
        whole = Image.new("RGB", self.size)
        for row in self.rows:
            strip = Image.new("RGB", (self.size[0], self.height))
            for tile in row:
                laid(strip, tile.picture, (tile.x, 0), self.overlap, across=True)
            laid(whole, strip, (0, row[0].y), self.overlap, across=False)
        return whole


def laid(under: Image.Image, picture: Image.Image, place: tuple[int, int], overlap: int, *, across: bool) -> None:
    """Paste a picture so that its first ``overlap`` columns (or rows) fade in; the first picture of all has no edge to fade."""
    x, y = place
    if (x if across else y) == 0 or overlap == 0:
        under.paste(picture, place)
        return
    width, height = picture.size
    ramp = (np.arange(overlap, dtype=np.float32) * 255 / overlap).astype(np.uint8)
    if across:
        edge, rest, further = (0, 0, overlap, height), (overlap, 0, width, height), (x + overlap, y)
        mask = np.tile(ramp, (height, 1))
    else:
        edge, rest, further = (0, 0, width, overlap), (0, overlap, width, height), (x, y + overlap)
        mask = np.tile(ramp[:, None], (1, width))
    under.paste(picture.crop(edge), place, mask=Image.fromarray(mask))
    under.paste(picture.crop(rest), further)


def tiled(picture: Image.Image, *, width: int, height: int, overlap: int) -> Tiling:
    """Cut a picture into the fewest tiles that overlap by at least ``overlap``, evenly spread.

    Raises: as ``tile_counts``.
    """
    columns, rows = tile_counts(picture.size, width=width, height=height, overlap=overlap)
    xs, ys = starts(picture.width, width, columns), starts(picture.height, height, rows)
    cut = tuple(tuple(Tile(x, y, picture.crop((x, y, x + width, y + height))) for x in xs) for y in ys)
    return Tiling(cut, width, height, picture.size, overlap)


def tile_counts(size: tuple[int, int], *, width: int, height: int, overlap: int) -> tuple[int, int]:
    """Columns and rows of ``tiled``.

    Raises:
        ZeroDivisionError: A tile is as wide or high as the overlap.
        IndexError: It is smaller.
        ValueError: The overlap is negative, or the tiles would take too much memory.
    """
    columns = math.ceil((size[0] - overlap) / (width - overlap))
    rows = math.ceil((size[1] - overlap) / (height - overlap))
    if columns < 1 or rows < 1:
        raise IndexError("list index out of range")
    if overlap < 0:
        raise ValueError(f"A tile overlap of {overlap} is not accepted; it begins at 0.")
    if columns * rows * width * height > MOST_TILE_PIXELS:
        raise ValueError(f"{columns} x {rows} tiles of {width} x {height} pixels are too many.")
    return columns, rows


def starts(whole: int, tile: int, count: int) -> list[int]:
    step = (whole - tile) / (count - 1) if count > 1 else 0
    places = [int(index * step) for index in range(count)]
    return [whole - tile if place + tile >= whole else place for place in places]
