"""Loopback: every picture is drawn from the one before it, with a denoising strength that follows a curve.

Source: ``scripts/loopback.py``, stable-diffusion-webui 1.10.1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any

from PIL import Image

from renderjobs.compat.sdapi.errors import HandlerError
from renderjobs.compat.sdapi.scripts.base import (
    Answer,
    Cell,
    Drawn,
    Plan,
    Run,
    Shown,
    Surroundings,
    fixed_seeds,
)
from renderjobs.compat.sdapi.scripts.pictures import ALONE, info_of_last
from renderjobs.compat.sdapi.scripts.sheets import sheet_of

TITLE = "Loopback"
DEFAULTS: Mapping[str, Any] = {"loops": 4, "final_strength": 0.5, "curve": "Linear", "interrogation": "None"}
CURVES: dict[str, Callable[[float], float]] = {
    "Aggressive": lambda progress: math.sin(progress * math.pi * 0.5),
    "Lazy": lambda progress: 1 - math.cos(progress * math.pi * 0.5),
}
"""Progress from 0 to 1 → how much of the way to the final strength is done; any other name is a straight line."""
ORIGINAL = 1
"""``inpainting_fill`` that keeps what is under the mask."""


def plan(
    tab: str, values: Mapping[str, Any], arguments: Mapping[str, Any], around: Surroundings, random: Random
) -> Plan:
    """Raises: HandlerError: The pictures are to be put into words on the way."""
    if arguments["interrogation"] != "None":
        raise HandlerError(501, "Interrogation is not installed here.")
    loops, batches = max(1, int(arguments["loops"])), max(1, values["n_iter"])
    seeds = fixed_seeds(values, random)
    first = values["denoising_strength"]
    notes = {"Final denoising strength": arguments["final_strength"], "Denoising curve": arguments["curve"]}

    def cell(loop: int, batch: int, picture: Image.Image | None) -> Cell:
        changes = {
            **ALONE,
            **seeds,
            "seed": seeds["seed"] + batch * loops + loop,
            "denoising_strength": strength_at(loop, first, arguments),
        }
        if picture is None:
            return Cell(changes=changes, notes=notes)
        return Cell(changes={**changes, "inpainting_fill": ORIGINAL}, notes=notes, init_images=(picture,))

    def start() -> Run:
        last = strength_at(loops, first, arguments)
        return run(cell, loops=loops, batches=batches, last_strength=last, options=around.options)

    return Plan(title=TITLE, images_total=loops * batches, start=start)


def strength_at(loop: int, first: float, arguments: Mapping[str, Any]) -> float:
    """Of a loop counted from 0; the last one has the final strength."""
    loops = int(arguments["loops"])
    if loops <= 1 or loop == 0:
        return first
    progress = loop / (loops - 1)
    curve = CURVES.get(arguments["curve"])
    return first + (arguments["final_strength"] - first) * (curve(progress) if curve else progress)


def run(
    cell: Callable[[int, int, Image.Image | None], Cell],
    *,
    loops: int,
    batches: int,
    last_strength: float,
    options: Mapping[str, Any],
) -> Run:
    """The batches do not depend on one another, so a step is one loop of all of them."""
    drawn: list[Drawn] = []
    latest: Sequence[Image.Image | None] = [None] * batches
    for loop in range(loops):
        step = yield tuple(cell(loop, batch, picture) for batch, picture in enumerate(latest))
        drawn += step
        if not all(len(each.pictures) for each in step):
            break
        latest = [each.pictures[0] for each in step]
    return answer(drawn, batches, last_strength, options)


def answer(drawn: Sequence[Drawn], batches: int, last_strength: float, options: Mapping[str, Any]) -> Answer:
    """Every loop of a single batch, or the last of each of several; before them their grid."""
    made = [number for number, each in enumerate(drawn) if len(each.pictures)]
    kept = made if batches == 1 else sorted({number % batches: number for number in made}.values())
    shown: list[Shown | Image.Image] = [Shown(number, 0) for number in kept]
    if len(kept) > 1 and options["return_grid"]:
        shown.insert(0, sheet_of([drawn[number].pictures[0] for number in kept], options, rows=1))
    # QUIRK(A1111 1.10): the strength it reports is the one that a further loop would have had.
    info = {**info_of_last(drawn, len(shown)), "denoising_strength": last_strength}
    return Answer(shown=tuple(shown), info=info, described=len(drawn) - 1)
