"""img2img alternative test: the noise is not random, but what leads back to the picture one begins with.

Source: ``scripts/img2imgalt.py``, stable-diffusion-webui 1.10.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import Any

from gpuworker.contract import Reconstruction
from renderjobs.compat.sdapi.scripts.base import Answer, Cell, Plan, Run, Shown, Surroundings

TITLE = "img2img alternative test"
DEFAULTS: Mapping[str, Any] = {
    "info": "", "override_sampler": True, "override_prompt": True, "original_prompt": "", "original_negative_prompt": "",
    "override_steps": True, "steps": 50, "override_strength": True, "cfg_scale": 1.0, "randomness": 0.0, "sigma_adjustment": False,
}  # fmt: skip


def plan(
    tab: str, values: Mapping[str, Any], arguments: Mapping[str, Any], around: Surroundings, random: Random
) -> Plan:
    prompts = {"prompt": arguments["original_prompt"], "negative_prompt": arguments["original_negative_prompt"]}
    changes: dict[str, Any] = {"batch_size": 1}
    if arguments["override_sampler"]:
        changes["sampler_name"] = "Euler"
    if arguments["override_prompt"]:
        changes |= prompts
    if arguments["override_steps"]:
        changes["steps"] = arguments["steps"]
    if arguments["override_strength"]:
        changes["denoising_strength"] = 1.0
    notes = {
        "Decode prompt": prompts["prompt"],
        "Decode negative prompt": prompts["negative_prompt"],
        "Decode CFG scale": arguments["cfg_scale"],
        "Decode steps": arguments["steps"],
        "Randomness": arguments["randomness"],
        "Sigma Adjustment": arguments["sigma_adjustment"],
    }
    reconstruction = Reconstruction(
        **prompts,
        cfg_scale=float(arguments["cfg_scale"]),
        steps=int(arguments["steps"]),
        randomness=float(arguments["randomness"]),
        sigma_adjustment=bool(arguments["sigma_adjustment"]),
    )
    cell = Cell(changes=changes, notes=notes, reconstruction=reconstruction)
    return Plan(title=TITLE, images_total=values["n_iter"], start=lambda: run(cell))


def run(cell: Cell) -> Run:
    """The answer is an ordinary request's."""
    yield (cell,)
    return Answer(shown=(Shown(0),), info={}, described=0)
