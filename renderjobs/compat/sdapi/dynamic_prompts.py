"""Dynamic prompts, an always-on script of our own: named, called and listed as the extension sd-dynamic-prompts 2.17.

It takes part where a call names it. Every image gets the prompts that follow from its own seed, resolved before the job is stored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import cycle, islice, product
from random import SystemRandom
from typing import Any

from renderjobs.compat.sdapi import wire
from renderjobs.compat.sdapi.errors import HandlerError, WireError, field_detail
from renderjobs.compat.sdapi.translate import DYNAMIC_PROMPTS, Translation, arguments_of, scripts_of
from renderjobs.expansion import A1111_RANDOM_SEED_MAX
from renderjobs.prompt_templates import TemplateError, Wildcards, combinations, resolved
from renderjobs.request import TEXT_FIELDS, RenderRequest

ARGUMENTS: Mapping[str, tuple[Callable[[Any], Any], Any]] = {
    "is_enabled": (wire.boolean, True),
    "is_combinatorial": (wire.boolean, False),
    "combinatorial_batches": (wire.AtLeast(1), 1),
    "is_magic_prompt": (wire.boolean, False),
    "is_feeling_lucky": (wire.boolean, False),
    "is_attention_grabber": (wire.boolean, False),
    "min_attention": (wire.number, 1.1),
    "max_attention": (wire.number, 1.5),
    "magic_prompt_length": (wire.number, 100),
    "magic_temp_value": (wire.number, 0.7),
    "use_fixed_seed": (wire.boolean, False),
    "unlink_seed_from_prompt": (wire.boolean, False),
    "disable_negative_prompt": (wire.boolean, True),
    "enable_jinja_templates": (wire.boolean, False),
    "no_image_generation": (wire.boolean, False),
    "max_generations": (wire.AtLeast(0), 0),
    "magic_model": (wire.text, ""),
    "magic_blocklist_regex": (wire.text, ""),
}
"""In the extension's order, with its defaults. ``disable_negative_prompt`` is about magic: negative prompts are always expanded."""
NOT_HERE = {
    "is_magic_prompt": "Magic prompts are",
    "is_feeling_lucky": "Prompts from a search are",
    "is_attention_grabber": "The attention grabber is",
    "enable_jinja_templates": "Jinja2 templates are",
    "no_image_generation": "Prompts without pictures are",
}
"""Arguments that ask for what is not installed here, as a sentence begins about it."""


def prompts_resolve(
    made: Translation, values: Mapping[str, Any], *, wildcards: Wildcards, most: int, part_of_script: bool = False
) -> None:
    """Give every image of the request its own texts, where the call asks for it.

    Args:
        most: Pictures that the call may make.
        part_of_script: A selectable script asks for this request and counts on its number of pictures.
    Raises:
        WireError: An argument is of another type.
        HandlerError: A template cannot be expanded, or asks for too much or for what is not here.
        InvalidRequestError: Another field of the request is out of range.
    """
    asked = arguments_in(values)
    if asked is None:
        return
    combined = asked["is_combinatorial"]
    if combined and part_of_script:
        raise HandlerError(422, "Dynamic prompts: combinatorial generation and a selectable script exclude each other.")
    request = made.build()
    if not combined and request.images_total > most:
        return  # the door refuses so many in its own words
    seed = SystemRandom().randint(0, A1111_RANDOM_SEED_MAX) if request.seed == -1 else request.seed
    hires = request.hires
    templates = (
        request.prompt, request.negative_prompt, hires.prompt if hires else "", hires.negative_prompt if hires else "",
    )  # fmt: skip
    try:
        pairs = combinations_of(request, asked, wildcards, most + 1) if combined else []
        count = len(pairs) or request.images_total
        if count > most:
            raise HandlerError(
                422, f"Dynamic prompts make more than {most} pictures; a synchronous call makes no more."
            )
        seeds = seeds_for(request, asked, seed, count)
        columns = [
            resolved(template, [None] * count if asked["unlink_seed_from_prompt"] else seeds, wildcards)
            for template in (templates[2:] if combined else templates)
        ]
    except TemplateError as error:
        raise HandlerError(422, f"Dynamic prompts: {error}") from error
    rows = zip(*zip(*pairs, strict=True), *columns, strict=True)
    made.canonical |= {
        "seed": seed,
        "n_iter": math.ceil(count / request.batch_size),
        "texts": [dict(zip(TEXT_FIELDS, row, strict=True)) for row in rows],
        "seeds": seeds if asked["use_fixed_seed"] else None,
    }
    made.names |= {f"texts.{name}": name.replace("hires", "hr") for name in TEXT_FIELDS}


def arguments_in(values: Mapping[str, Any]) -> dict[str, Any] | None:
    """The script's arguments by name; None where the call does not ask for it."""
    named = ((name, script) for name, script in scripts_of(values).items() if DYNAMIC_PROMPTS.fullmatch(name))
    name, script = next(named, ("", None))
    if not name:
        return None
    given = dict(zip(ARGUMENTS, arguments_of(script), strict=False))
    asked = {}
    for place, (argument, (coerce, default)) in enumerate(ARGUMENTS.items()):
        try:
            asked[argument] = default if given.get(argument) is None else coerce(given[argument])
        except wire.Mismatch as error:
            detail = field_detail("alwayson_scripts", str(error), error.kind)
            raise WireError({**detail, "loc": [*detail["loc"], name, "args", place]}) from error
    if not asked["is_enabled"]:
        return None
    for argument, what in NOT_HERE.items():
        if asked[argument]:
            raise HandlerError(501, f"Dynamic prompts: {what} not installed here.")
    return asked


def combinations_of(
    request: RenderRequest, asked: Mapping[str, Any], wildcards: Wildcards, most: int
) -> list[tuple[str, str]]:
    """Prompt and negative prompt of every image: each with each, or so many with the negative prompts in turn."""
    wanted = asked["max_generations"]
    prompts, negative_prompts = (
        combinations(template, min(wanted, most) or most, wildcards)
        for template in (request.prompt, request.negative_prompt)
    )
    once = zip(prompts, cycle(negative_prompts), strict=False) if wanted else product(prompts, negative_prompts)
    pairs = list(islice(once, most))
    return list(islice((pair for _ in range(asked["combinatorial_batches"]) for pair in pairs), most))


def seeds_for(request: RenderRequest, asked: Mapping[str, Any], seed: int, count: int) -> list[int]:
    """Consecutive ones; under variation, or where it is fixed, the same for all. Repeated combinations have the next."""
    if asked["use_fixed_seed"]:
        batches = asked["combinatorial_batches"] if asked["is_combinatorial"] else 1
        return [seed + index // math.ceil(count / batches) for index in range(count)]
    return [seed if request.subseed_strength else seed + index for index in range(count)]
