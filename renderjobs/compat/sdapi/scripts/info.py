"""`/scripts` and `/script-info`: which scripts there are and what A1111's page would ask for. Data; nothing here runs a script.

Source: answers of A1111 1.10.1 and the page of sd-dynamic-prompts 2.17, kept in ``data/script_info.json``; a list that depends on
the installation stands there as a name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from gpuworker.contract.samplers import SAMPLERS, SCHEDULES
from renderjobs.compat.sdapi.scripts.axes import axes_of

EVERYWHERE = ("prompt matrix", "prompts from file or textbox")
OWN_SCRIPTS = ("dynamic prompts v2.17.1",)
"""Behind A1111's own, under the name by which clients of the extension look for it."""
LISTED: dict[str, tuple[str, ...]] = {
    "txt2img": (
        *EVERYWHERE, "x/y/z plot", "extra options", "Hypertile", "controlnet", "controlnet m2m", "refiner", "sampler", "seed",
        *OWN_SCRIPTS,
    ),
    "img2img": (
        "img2img alternative test", "loopback", "outpainting mk2", "poor man's outpainting", *EVERYWHERE, "sd upscale",
        "x/y/z plot", "extra options", "Hypertile", "soft inpainting", "controlnet", "controlnet m2m", "refiner", "sampler", "seed",
        *OWN_SCRIPTS,
    ),
}  # fmt: skip
"""In A1111's order. Clients look for ``controlnet m2m`` to learn whether there is ControlNet; the script itself is not offered."""
ARGUMENT = {"label": None, "value": None, "minimum": None, "maximum": None, "step": None, "choices": None}


def scripts_listed() -> dict[str, list[str]]:
    return {tab: list(names) for tab, names in LISTED.items()}


def script_info(*, checkpoints: Sequence[str], upscalers: Sequence[str]) -> list[dict[str, Any]]:
    """Every script of both tabs whose arguments are known.

    Args:
        checkpoints: Titles, as ``GET /sd-models`` lists them.
        upscalers: Names, as ``GET /upscalers`` lists them.
    """
    choices = {
        "checkpoints": list(checkpoints),
        "upscalers": list(upscalers),
        "samplers": [sampler.name for sampler in SAMPLERS if sampler.implemented],
        "schedules": [schedule.label for schedule in SCHEDULES],
    }
    found = []
    for tab, names in LISTED.items():
        choices["axes"] = [axis.label for axis in axes_of(tab)]
        for name in names:
            if script := known_scripts().get(name):
                alwayson, arguments = script["is_alwayson"], [argument(each, choices) for each in script["args"]]
                found.append({"name": name, "is_alwayson": alwayson, "is_img2img": tab == "img2img", "args": arguments})
    return found


@cache
def known_scripts() -> dict[str, Any]:
    return json.loads((Path(__file__).parent / "data" / "script_info.json").read_text())


def argument(given: Mapping[str, Any], choices: Mapping[str, list[str]]) -> dict[str, Any]:
    """One input of A1111's page, lists of the installation in place."""
    listed = given.get("choices")
    return {**ARGUMENT, **given, "choices": choices[listed] if isinstance(listed, str) else listed}
