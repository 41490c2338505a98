"""X/Y/Z plot: one picture for every combination of three axes' values, as a grid with a legend.

Source: ``scripts/xyz_grid.py``, stable-diffusion-webui 1.10.1.
"""

from __future__ import annotations

import csv
import io
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from PIL import Image

from renderjobs.compat.sdapi.errors import HandlerError
from renderjobs.compat.sdapi.scripts.axes import SEED_AXES, Axis, Draft, axes_of, values_of
from renderjobs.compat.sdapi.scripts.base import (
    Answer,
    Cell,
    Drawn,
    Plan,
    Run,
    Shown,
    Surroundings,
    extended,
    first_of,
    fixed_seed,
    fixed_seeds,
    never_run,
    pictures_per_cell,
    together,
)
from renderjobs.compat.sdapi.scripts.sheets import Label, annotated, largest, sheet_of

TITLE = "X/Y/Z plot"
DEFAULTS: Mapping[str, Any] = {
    "x_type": 1, "x_values": "", "x_dropdown": [], "y_type": 0, "y_values": "", "y_dropdown": [], "z_type": 0, "z_values": "",
    "z_dropdown": [], "draw_legend": True, "include_lone_images": False, "include_sub_grids": False, "no_fixed_seeds": False,
    "vary_seeds_x": False, "vary_seeds_y": False, "vary_seeds_z": False, "margin_size": 0, "csv_mode": False,
}  # fmt: skip
MOST_CELLS = 10_000
"""Of a plot, and so of an axis: small pictures would let A1111's limit, which counts pixels, pass millions."""

OPTIONS_IN_TEXTS: Mapping[str, tuple[tuple[str, ...], Any]] = {
    "Conditional mask weight": (("inpainting_mask_weight",), None),
    "Clip skip": (("CLIP_stop_at_last_layers",), 1),
    "Token merging ratio": (("token_merging_ratio",), 0),
    "Token merging ratio hr": (("token_merging_ratio_hr", "token_merging_ratio"), 0),
    "RNG": (("randn_source",), "GPU"),
}
"""What infotexts read from options: the options, the first that is set, and the value that is not written."""


@dataclass(frozen=True, slots=True)
class Dimension:
    """One axis with the values asked for."""

    axis: Axis
    text: str
    """The values as infotexts repeat them."""
    values: tuple[Any, ...]

    def __len__(self) -> int:
        return len(self.values)

    def labels(self) -> list[list[Label]]:
        return [[Label(self.axis.legend(self.axis.label, value))] for value in self.values]


Place = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Plot:
    """A grid about to be drawn: its axes, its cells in the order of drawing, and what is shown of them."""

    dimensions: tuple[Dimension, Dimension, Dimension]
    arguments: Mapping[str, Any]
    values: Mapping[str, Any]
    options: Mapping[str, Any]
    places: tuple[Place, ...]
    cells: tuple[Cell, ...]

    def index(self, place: Place) -> int:
        """Where a cell stands in the answer: row by row, grid by grid."""
        xs, ys, _ = self.dimensions
        return place[0] + place[1] * len(xs) + place[2] * len(xs) * len(ys)


def plan(
    tab: str, values: Mapping[str, Any], arguments: Mapping[str, Any], around: Surroundings, random: Random
) -> Plan:
    """Raises: ValueError, RuntimeError, TypeError: An argument is none that A1111 takes."""
    plot = plotted(tab, values, arguments, around, random)
    per_cell = pictures_per_cell(plot.cells[0].changes) if plot.cells else 0
    return Plan(title=TITLE, images_total=per_cell * len(plot.cells), start=lambda: run(plot), shares_notes=True)


def plotted(
    tab: str, values: Mapping[str, Any], arguments: Mapping[str, Any], around: Surroundings, random: Random
) -> Plot:
    fixed = {} if arguments["no_fixed_seeds"] else fixed_seeds(values, random)
    asked = {**values, **fixed}
    dimensions = [dimension(tab, arguments, letter, around) for letter in "xyz"]
    refuse_too_large(dimensions, asked, around.options)
    if fixed:
        dimensions = [with_fixed_seeds(each, random) for each in dimensions]
    places = tuple(drawing_order(dimensions))
    shared = {**fixed, **per_cell(asked, around.options)}
    cells = tuple(cell_at(place, dimensions, asked, shared, arguments, around) for place in places)
    xs, ys, zs = dimensions
    return Plot((xs, ys, zs), arguments, asked, around.options, places, cells)


def dimension(tab: str, arguments: Mapping[str, Any], letter: str, around: Surroundings) -> Dimension:
    axis = axes_of(tab)[arguments[f"{letter}_type"] or 0]
    text, words = arguments[f"{letter}_values"], []
    if axis.dropdown and not arguments["csv_mode"]:
        words = list(arguments[f"{letter}_dropdown"] or ())
        text = as_csv(words)
    elif not axis.nothing:
        words = from_csv(text)
    found = [0] if axis.nothing else values_of(axis, words, most=MOST_CELLS)
    if axis.confirm:
        axis.confirm(found, around)
    return Dimension(axis, text, tuple(found))


def from_csv(text: str) -> list[str]:
    rows = csv.reader(io.StringIO(text), skipinitialspace=True)
    return [word.strip() for word in itertools.chain.from_iterable(rows)]


def as_csv(words: Sequence[str]) -> str:
    text = io.StringIO()
    csv.writer(text).writerow(words)
    return text.getvalue().strip()


def refuse_too_large(dimensions: Sequence[Dimension], values: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    cells = math.prod(len(each) for each in dimensions)
    megapixels = round(cells * values["width"] * values["height"] / 1000000)
    most = options["img_max_size_mp"]
    if megapixels >= most:
        raise AssertionError(
            f"Error: Resulting grid would be too large ({megapixels} MPixels) (max configured size is {most:g} MPixels)"
        )
    if cells > MOST_CELLS:
        raise HandlerError(422, f"A plot of more than {MOST_CELLS} cells is not accepted.")


def with_fixed_seeds(given: Dimension, random: Random) -> Dimension:
    if given.axis.label not in SEED_AXES:
        return given
    return Dimension(given.axis, given.text, tuple(fixed_seed(value, random) for value in given.values))


def drawing_order(dimensions: Sequence[Dimension]) -> Iterator[Place]:
    """Z outside, X inside, but the slowest axis outermost: a checkpoint is loaded once."""
    costs = [each.axis.cost for each in dimensions]
    slowest = [axis for axis, cost in enumerate(costs) if cost == max(costs)]
    outer = slowest[0] if len(slowest) == 1 else 2
    first, second = (axis for axis in range(3) if axis != outer)
    middle, inner = (first, second) if len(slowest) == 1 and costs[first] > costs[second] else (second, first)
    order = (outer, middle, inner)
    for walked in itertools.product(*(range(len(dimensions[axis])) for axis in order)):
        place = dict(zip(order, walked, strict=True))
        yield place[0], place[1], place[2]


def per_cell(values: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """How many pictures a cell is drawn with: a grid shows one, so the others are made only where they are kept."""
    if not values["save_images"]:
        alone = {"batch_size": 1, "n_iter": 1}
        several = values.get("init_images") and len(values["init_images"]) > 1
        return {**alone, "init_images": values["init_images"][:1]} if several else alone
    batch_size = values["batch_size"] if options["return_grid"] else 1
    return {"batch_size": batch_size, "n_iter": values["n_iter"]}


def cell_at(
    place: Place,
    dimensions: Sequence[Dimension],
    values: Mapping[str, Any],
    shared: Mapping[str, Any],
    arguments: Mapping[str, Any],
    around: Surroundings,
) -> Cell:
    draft = Draft(values, dict(shared))
    for index, each in zip(place, dimensions, strict=True):
        each.axis.apply(draft, each.values[index], each.values, around)
    if further := varied(place, dimensions, arguments):
        draft["seed"] = draft["seed"] + further
    return Cell(changes=draft.changes, options=draft.options)


def varied(place: Place, dimensions: Sequence[Dimension], arguments: Mapping[str, Any]) -> int:
    """How far a cell's seed is from the first cell's: the axes whose seeds vary are counted through."""
    further, stride = 0, 1
    for letter, index, each in zip("xyz", place, dimensions, strict=True):
        if arguments[f"vary_seeds_{letter}"]:
            further += index * stride
            stride *= len(each)
    return further


def run(plot: Plot) -> Run:
    if not plot.cells:
        # An axis without values makes no cell; A1111 answers without pictures and without an error.
        return Answer(shown=(), info=never_run(plot.values, []), described=None)
    drawn = yield plot.cells
    return answer(plot, drawn)


def answer(plot: Plot, drawn: Sequence[Drawn]) -> Answer:
    """The grid of all, the grid of every Z value, the pictures; ``info`` counts them differently, as A1111 does."""
    order = sorted(range(len(drawn)), key=lambda number: plot.index(plot.places[number]))
    z_count = len(plot.dimensions[2])
    firsts = order[:: len(order) // z_count]
    sub_grids = firsts if plot.arguments["include_sub_grids"] else []
    pictures, stored = pictures_of(plot, drawn, order)
    whole, *parts = grids(plot, pictures)
    shown: list[Shown | Image.Image] = [whole, *(parts if sub_grids else ())]
    if plot.arguments["include_lone_images"]:
        shown += stored
    # QUIRK(A1111 1.10): prompts and seeds have an entry for every part of the grid and none for the whole.
    listed = [*sub_grids, *order]
    prompts = [prompt_of(plot, number) if drawn[number].pictures else None for number in listed]
    infotexts = [first_of(drawn[number].infotexts) for number in order]
    texts = [
        extended(
            text_of_grid(plot, order[0], infotexts[0]), {**described(plot, "xy"), **described(plot, "z", title=False)}
        ),
        *(
            extended(text_of_grid(plot, number, first_of(drawn[number].infotexts)), described(plot, "xy"))
            for number in sub_grids
        ),
    ]
    info = {
        "prompt": prompts[0],
        "all_prompts": prompts,
        **of_first_cell(plot, drawn[0]),
        "all_seeds": [first_of(drawn[number].seeds) for number in listed],
        "batch_size": plot.values["batch_size"],
        "extra_generation_params": together(drawn),
        "index_of_first_image": 1,
        "infotexts": [*texts, *infotexts],
    }
    return Answer(shown=tuple(shown), info=info, described=0)


def text_of_grid(plot: Plot, number: int, infotext: str | None) -> str | None:
    """A cell's infotext as a grid repeats it.

    QUIRK(A1111 1.10): it is written when the options of the axes are back at what they were before.
    """
    changed = plot.cells[number].options
    before = {**plot.options, **(plot.values["override_settings"] or {})}
    for name, (options, neutral) in OPTIONS_IN_TEXTS.items():
        if infotext and not changed.keys().isdisjoint(options):
            value = next((before[option] for option in options if before[option]), neutral)
            head, separator, parameters = infotext.rpartition("\nSteps: ")
            shown = "" if value == neutral else f", {name}: {value}"
            infotext = head + separator + re.sub(rf", {name}: [^,]*", shown, parameters, count=1)
    return infotext


def prompt_of(plot: Plot, number: int) -> str:
    """The prompt as the axes made it, without styles."""
    return plot.cells[number].changes.get("prompt", plot.values["prompt"])


def of_first_cell(plot: Plot, first: Drawn) -> dict[str, Any]:
    """Lists of a batch of which a grid shows one picture."""
    count = pictures_per_cell(plot.values)
    negative = first_of(first.negative_prompts)
    return {"negative_prompt": negative, "all_negative_prompts": [negative] * count, "seed": first_of(first.seeds)}


def pictures_of(
    plot: Plot, drawn: Sequence[Drawn], order: Sequence[int]
) -> tuple[list[Image.Image], list[Shown | Image.Image]]:
    """Of every cell the picture that the grids hold, and the same as it is shown alone; black where there is none."""
    found: list[Image.Image | None] = []
    stored: list[Shown | Image.Image | None] = []
    for number in order:
        pictures = drawn[number].pictures
        if len(pictures) and grid_in_cell(plot, number, len(pictures)):
            sheet = sheet_of(pictures, plot.options, batch_size=plot.cells[number].changes["batch_size"])
            found.append(sheet)
            stored.append(sheet)
        else:
            found.append(first_of(pictures))
            stored.append(Shown(number, 0) if len(pictures) else None)
    black = Image.new("RGB", found[0].size if found[0] else (plot.values["width"], plot.values["height"]))
    return [picture or black for picture in found], [shown or black for shown in stored]


def grid_in_cell(plot: Plot, number: int, count: int) -> bool:
    """Whether a cell's own pictures come with a contact sheet, which is then the first of them."""
    options = {**plot.options, **(plot.values["override_settings"] or {}), **plot.cells[number].options}
    enough = count > 1 or not options["grid_only_if_multiple"]
    return bool(plot.values["save_images"] and options["return_grid"] and enough)


def grids(plot: Plot, pictures: Sequence[Image.Image]) -> list[Image.Image]:
    """The grid of all Z values, then the grid of each."""
    xs, ys, zs = plot.dimensions
    legend = plot.arguments["draw_legend"]
    parts, per_part = [], len(xs) * len(ys)
    for start in range(0, len(pictures), per_part):
        own = pictures[start : start + per_part]
        part = sheet_of(own, plot.options, rows=len(ys))
        if legend:
            margin = plot.arguments["margin_size"]
            part = annotated(part, largest(own), xs.labels(), ys.labels(), plot.options, margin=margin)
        parts.append(part)
    whole = sheet_of(parts, plot.options, rows=1)
    if legend:
        whole = annotated(whole, largest(parts), zs.labels(), [[Label()]], plot.options)
    return [whole, *parts]


def described(plot: Plot, letters: str, *, title: bool = True) -> dict[str, Any]:
    """The infotext parameters by which a grid can be asked for again."""
    found: dict[str, Any] = {"Script": TITLE} if title else {}
    for letter in letters:
        each = plot.dimensions["xyz".index(letter)]
        if each.axis.nothing:
            continue
        name = letter.upper()
        found |= {f"{name} Type": each.axis.label, f"{name} Values": each.text}
        if each.axis.label in SEED_AXES and not plot.arguments["no_fixed_seeds"]:
            found[f"Fixed {name} Values"] = ", ".join(str(value) for value in each.values)
    return found
