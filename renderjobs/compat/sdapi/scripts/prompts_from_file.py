"""Prompts from file or textbox: a request per line, each a prompt or a command line of fields.

Source: ``scripts/prompts_from_file.py``, stable-diffusion-webui 1.10.1.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any

from gpuworker.contract.samplers import SAMPLERS
from renderjobs.compat.sdapi.scripts.base import (
    Answer,
    Cell,
    Drawn,
    Plan,
    Run,
    Shown,
    Surroundings,
    fixed_seed,
    never_run,
    pictures_per_cell,
    together,
)

TITLE = "Prompts from file or textbox"
DEFAULTS: Mapping[str, Any] = {
    "iterate_seed": False, "same_seed": False, "position": "start", "text": "",
}  # fmt: skip
PROMPTS = ("prompt", "negative_prompt")


def a_boolean(value: str) -> bool:
    return value == "true"


def a_sampler(value: str) -> str:
    # A1111 comes to no name at all for an unknown one, and so to the first sampler of its list.
    named = {name.lower(): each.name for each in SAMPLERS for name in (*each.aliases, each.name)}
    return named.get(value.lower(), SAMPLERS[0].name)


FIELDS: dict[str, Callable[[str], Any]] = {
    # QUIRK(A1111 1.10): a text is walked through letter by letter where a list of names is expected.
    "styles": list,
    "seed": int,
    "subseed_strength": float,
    "subseed": int,
    "seed_resize_from_h": int,
    "seed_resize_from_w": int,
    "sampler_name": a_sampler,
    "batch_size": int,
    "n_iter": int,
    "steps": int,
    "cfg_scale": float,
    "width": int,
    "height": int,
    "restore_faces": a_boolean,
    "tiling": a_boolean,
}
WITHOUT_EFFECT: dict[str, Callable[[str], Any]] = {
    "outpath_samples": str,
    "outpath_grids": str,
    "prompt_for_display": str,
    "sampler_index": int,
    "do_not_save_samples": a_boolean,
    "do_not_save_grid": a_boolean,
}
"""Options of a line that must be well formed all the same."""


def plan(
    tab: str, values: Mapping[str, Any], arguments: Mapping[str, Any], around: Surroundings, random: Random
) -> Plan:
    lines = [line.strip() for line in arguments["text"].splitlines()]
    same_for_all = arguments["iterate_seed"] or arguments["same_seed"]
    seed = fixed_seed(values["seed"], random) if same_for_all else values["seed"]
    per_line = pictures_per_cell(values)
    cells = []
    for line in filter(None, lines):
        cells.append(cell_of(line_of(line, around), {**values, "seed": seed}, arguments, around))
        if arguments["iterate_seed"]:
            seed += per_line
    total = sum(pictures_per_cell({**values, **cell.changes}) for cell in cells)
    asked = {**values, "seed": seed}
    return Plan(title=TITLE, images_total=total, start=lambda: run(tuple(cells), asked), shares_notes=True)


def line_of(line: str, around: Surroundings) -> dict[str, Any]:
    """The fields of a line; one that is no command line is a prompt as a whole."""
    if "--" not in line:
        return {"prompt": line}
    try:
        return command_line(shlex.split(line), around)
    except ValueError:
        return {"prompt": line}


def command_line(words: Sequence[str], around: Surroundings) -> dict[str, Any]:
    """``--field value`` pairs; a prompt takes all words up to the next option.

    Raises:
        ValueError: An option is unknown, lacks its value, or has one of the wrong type.
    """
    found: dict[str, Any] = {}
    place = 0
    while place < len(words):
        option, value = words[place], first_value(words, place)
        name = option[2:]
        end = place + 2
        if name in PROMPTS:
            while end < len(words) and not words[end].startswith("--"):
                end += 1
            found[name] = " ".join(words[place + 1 : end])
        elif name == "sd_model":
            found[name] = a_checkpoint(value, around)
        elif name in FIELDS:
            found[name] = FIELDS[name](value)
        elif name in WITHOUT_EFFECT:
            WITHOUT_EFFECT[name](value)
        else:
            raise ValueError(f"unknown commandline option: {option}")
        place = end
    return found


def first_value(words: Sequence[str], place: int) -> str:
    if not words[place].startswith("--"):
        raise ValueError(f'must start with "--": {words[place]}')
    if place + 1 == len(words):
        raise ValueError(f"missing argument for command line option {words[place]}")
    return words[place + 1]


def a_checkpoint(name: str, around: Surroundings) -> str:
    known = around.checkpoint(name)
    if known is None:
        raise ValueError(f"Unknown checkpoint: {name}")
    return known


def cell_of(
    line: Mapping[str, Any], values: Mapping[str, Any], arguments: Mapping[str, Any], around: Surroundings
) -> Cell:
    changes = {"seed": values["seed"], **line}
    options = {}
    if model := changes.pop("sd_model", None):
        options["sd_model_checkpoint"] = model
    for name in PROMPTS:
        if line.get(name) and values[name]:
            both = (line[name], values[name]) if arguments["position"] == "start" else (values[name], line[name])
            changes[name] = " ".join(both)
    return Cell(changes=changes, options=options)


def run(cells: tuple[Cell, ...], values: Mapping[str, Any]) -> Run:
    drawn = (yield cells) if cells else ()
    shown = tuple(Shown(number) for number, cell in enumerate(drawn) if len(cell.pictures))
    return Answer(shown=shown, info=info_of(values, drawn), described=None)


def info_of(values: Mapping[str, Any], drawn: Sequence[Drawn]) -> dict[str, Any]:
    """A1111 describes the request that the lines were copies of."""
    prompts = [prompt for cell in drawn for prompt in cell.prompts] or [values["prompt"]]
    return {
        **never_run(values, [text for cell in drawn for text in cell.infotexts]),
        "prompt": prompts[0],
        "all_prompts": prompts,
        "seed": values["seed"],
        "all_seeds": [values["seed"]],
        "extra_generation_params": together(drawn),
    }
