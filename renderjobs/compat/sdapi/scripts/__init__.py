"""A1111's selectable scripts: one request that asks for many. What each does with its requests' pictures lives here, pure.

``plan_of`` is the way in. Nothing here renders, stores or waits: the door draws the cells of a step, then asks for the next.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

from renderjobs.compat.sdapi.errors import HandlerError
from renderjobs.compat.sdapi.scripts import (
    alternative,
    loopback,
    outpainting,
    prompt_matrix,
    prompts_from_file,
    sd_upscale,
    xyz,
)
from renderjobs.compat.sdapi.scripts.base import Plan, Surroundings
from renderjobs.compat.sdapi.wire import COMMON

BOTH, IMG2IMG_ONLY = ("txt2img", "img2img"), ("img2img",)
RAISED = (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError)
"""What a script raises about its arguments; A1111 answers each with the exception's own name."""

NEEDED = ("prompt", "negative_prompt", "n_iter", "batch_size", "steps", "cfg_scale", "width", "height")
"""Fields that scripts compute with."""


@dataclass(frozen=True, slots=True)
class Script:
    """A selectable script: where it may run, its arguments with their defaults in order, and what plans it."""

    tabs: tuple[str, ...]
    defaults: Mapping[str, Any]
    plan: Callable[[str, Mapping[str, Any], Mapping[str, Any], Surroundings, Random], Plan]


SCRIPTS: dict[str, Script] = {
    "img2img alternative test": Script(IMG2IMG_ONLY, alternative.DEFAULTS, alternative.plan),
    "loopback": Script(IMG2IMG_ONLY, loopback.DEFAULTS, loopback.plan),
    "outpainting mk2": Script(IMG2IMG_ONLY, outpainting.MK2_DEFAULTS, outpainting.mk2_plan),
    "poor man's outpainting": Script(IMG2IMG_ONLY, outpainting.POOR_MANS_DEFAULTS, outpainting.poor_mans_plan),
    "prompt matrix": Script(BOTH, prompt_matrix.DEFAULTS, prompt_matrix.plan),
    "prompts from file or textbox": Script(BOTH, prompts_from_file.DEFAULTS, prompts_from_file.plan),
    "sd upscale": Script(IMG2IMG_ONLY, sd_upscale.DEFAULTS, sd_upscale.plan),
    "x/y/z plot": Script(BOTH, xyz.DEFAULTS, xyz.plan),
}
"""By title in lower case, as requests are matched and ``GET /scripts`` lists them."""


def plan_of(tab: str, values: Mapping[str, Any], around: Surroundings, *, random: Random) -> Plan | None:
    """The script a request names, ready to run; None where it names none.

    Args:
        tab: ``txt2img`` or ``img2img``.
        values: All fields of the tab, coerced.
        random: For seeds that are asked for at random. The same state gives the same plan again.
    Raises:
        HandlerError: The tab has no such script (422), or an argument is none that it takes (500), in A1111's words.
    """
    if not values["script_name"]:
        return None
    script = SCRIPTS.get(values["script_name"].lower())
    if script is None or tab not in script.tabs:
        raise HandlerError(422, f"Script '{values['script_name']}' not found")
    if tab == "img2img" and values["init_images"] is None:
        raise HandlerError(404, "Init image not found")
    try:
        return script.plan(tab, with_defaults(values), arguments_of(script, values["script_args"]), around, random)
    except RAISED as error:
        raise HandlerError(500, str(error), error=type(error).__name__) from error


def with_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """A null means the default, as for requests without a script."""
    return {**values, **{name: COMMON[name].default for name in NEEDED if values[name] is None}}


def arguments_of(script: Script, given: list[Any]) -> dict[str, Any]:
    """Arguments by name: what is missing has its default, what is too much is passed over."""
    return {**script.defaults, **dict(zip(script.defaults, given, strict=False))}
