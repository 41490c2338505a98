"""Prompt matrix: a picture for every combination of a prompt's parts, as a grid whose legend strikes out what is absent.

Source: ``scripts/prompt_matrix.py``, stable-diffusion-webui 1.10.1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

from PIL import Image

from renderjobs.compat.sdapi.scripts.base import (
    Answer,
    Cell,
    Drawn,
    Plan,
    Run,
    Shown,
    Surroundings,
    first_of,
    fixed_seeds,
    together,
)
from renderjobs.compat.sdapi.scripts.sheets import annotated, matrix_labels, sheet_of

TITLE = "Prompt matrix"
DEFAULTS: Mapping[str, Any] = {
    "put_at_start": False,
    "different_seeds": False,
    "prompt_type": "positive",
    "delimiter": "comma",
    "margin_size": 0,
}
FIELDS = {"positive": "prompt", "negative": "negative_prompt"}
DELIMITERS = {"comma": ", ", "space": " "}
MOST_PARTS = 12
"""Every part doubles the number of pictures."""


def plan(
    tab: str, values: Mapping[str, Any], arguments: Mapping[str, Any], around: Surroundings, random: Random
) -> Plan:
    """Raises: ValueError: Prompt type, delimiter, or more combinations than a grid holds."""
    if arguments["prompt_type"] not in FIELDS:
        raise ValueError(f"Unknown prompt type {arguments['prompt_type']}")
    if arguments["delimiter"] not in DELIMITERS:
        raise ValueError(f"Unknown variations delimiter {arguments['delimiter']}")
    field = FIELDS[arguments["prompt_type"]]
    parts = values[field].split("|")
    if len(parts) - 1 > MOST_PARTS:
        raise ValueError(f"A prompt matrix of more than {MOST_PARTS} parts is not accepted.")
    seeds = fixed_seeds(values, random)
    cells = tuple(
        Cell(changes={field: prompt, **picture_of(number, values), **seeds_of(number, seeds, arguments)})
        for number, prompt in enumerate(combined(parts, arguments))
    )
    options = around.options
    return Plan(title=TITLE, images_total=len(cells), start=lambda: run(cells, parts, values, arguments, options))


def combined(parts: Sequence[str], arguments: Mapping[str, Any]) -> list[str]:
    """Bit k of a combination's number says whether part k + 1 is in it."""
    first, rest = parts[0], [part.strip().strip(",") for part in parts[1:]]
    prompts = []
    for number in range(1 << len(rest)):
        chosen = [part for bit, part in enumerate(rest) if number & (1 << bit)]
        prompts.append([*chosen, first] if arguments["put_at_start"] else [first, *chosen])
    return [DELIMITERS[arguments["delimiter"]].join(words) for words in prompts]


def picture_of(number: int, values: Mapping[str, Any]) -> dict[str, Any]:
    """One picture per combination; of several pictures to begin with, a batch takes them in turn."""
    alone: dict[str, Any] = {"n_iter": 1, "batch_size": 1}
    given = values.get("init_images") or ()
    return {**alone, "init_images": [given[number % len(given)]]} if len(given) > 1 else alone


def seeds_of(number: int, seeds: Mapping[str, int], arguments: Mapping[str, Any]) -> dict[str, int]:
    further = number if arguments["different_seeds"] else 0
    return {"seed": seeds["seed"] + further, "subseed": seeds["subseed"] + number}


def run(
    cells: tuple[Cell, ...],
    parts: Sequence[str],
    values: Mapping[str, Any],
    arguments: Mapping[str, Any],
    options: Mapping[str, Any],
) -> Run:
    drawn = yield cells
    pictures = [first_of(cell.pictures) for cell in drawn]
    known = next((picture for picture in pictures if picture), None)
    black = Image.new("RGB", known.size if known else (values["width"], values["height"]))
    columns, rows = matrix_labels(parts[1:])
    sheet = sheet_of([picture or black for picture in pictures], options, rows=len(rows))
    grid = annotated(sheet, black.size, columns, rows, options, margin=arguments["margin_size"])
    stored = [Shown(number, 0) for number, picture in enumerate(pictures) if picture]
    return Answer(shown=(grid, *stored), info=info_of(values, drawn), described=0)


def info_of(values: Mapping[str, Any], drawn: Sequence[Drawn]) -> dict[str, Any]:
    """To A1111 all combinations are one request."""
    infotexts = [text for cell in drawn for text in cell.infotexts[:1]]
    return {
        "all_prompts": [first_of(cell.prompts) for cell in drawn],
        "all_negative_prompts": [first_of(cell.negative_prompts) for cell in drawn],
        "all_seeds": [first_of(cell.seeds) for cell in drawn],
        "all_subseeds": [first_of(cell.subseeds) for cell in drawn],
        "batch_size": values["batch_size"],
        "extra_generation_params": together(drawn),
        "index_of_first_image": 1,
        "infotexts": [*infotexts[:1], *infotexts],
    }
