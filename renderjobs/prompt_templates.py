"""Prompts that leave something open (``a {red|blue} car, __place__``) → prompts that leave nothing open. Pure: no database.

::

    {a|b|c}                one of them                       {0.5::a|b}      a half as often as b
    {2$$a|b|c}             two of them, joined by a comma    {1-2$$ and $$a|b}   one or two, joined by " and "
    __name__  __name*__    a line of a wildcard file, or of all whose names match

Source: the syntax guide of sd-dynamic-prompts 2.17. Variables and parameters (``${…}``) are refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, permutations, product
from random import Random

MOST_NESTED = 20
"""Braces within braces, and wildcards within wildcards; a file may name itself."""
MOST_CHOICES = 20_000
"""For all prompts of one expansion: wildcards that name wildcards grow by the power of their nesting."""
MOST_CHARACTERS = 4_000_000
"""Of all prompts of one expansion together."""
JOINER = ","
_WILDCARD = re.compile(r"__([\w\-./* ]+?)__")
_SPECIAL = re.compile(r"[{}|]|\$\{|__")
_BOUND = re.compile(r"\s*(?:(\d{1,4})?-(\d{1,4})?|(\d{1,4}))\s*\$\$(?:([^${}|]*)\$\$)?")
_WEIGHT = re.compile(r"\s*(\d{1,9}(?:\.\d{0,9})?|\.\d{1,9})::")
Wildcards = Callable[[str], Sequence[str]]
"""The lines of a wildcard, or of all that a name with ``*`` matches; empty where there is none."""


class TemplateError(ValueError):
    """The template cannot be expanded; the message is for its writer."""


@dataclass(frozen=True, slots=True)
class Wildcard:
    name: str


@dataclass(frozen=True, slots=True)
class Variant:
    """So many of the options, in any order."""

    low: int
    high: int
    joiner: str
    options: tuple[tuple[float, Template], ...]
    """Weight and what is chosen by it."""


Template = tuple["str | Wildcard | Variant", ...]


def resolved(template: str, seeds: Iterable[int | None], wildcards: Wildcards) -> list[str]:
    """One prompt per seed; the same seed gives the same prompt again, None another one each time.

    Raises:
        TemplateError: It cannot be expanded.
    """
    parsed = parse(template)
    run = _Expansion(wildcards)
    return [run.counted(run.one_of(parsed, Random(seed), depth=0)) for seed in seeds]


def combinations(template: str, most: int, wildcards: Wildcards) -> list[str]:
    """The first prompts, at most so many, of all that the template can become; weights do not count.

    Raises:
        TemplateError: It cannot be expanded.
    """
    run = _Expansion(wildcards, most)
    return [run.counted(prompt) for prompt in islice(run.all_of(parse(template), depth=0), most)]


# --- parsing ----------------------------------------------------------------------------------------------------------


def parse(text: str) -> Template:
    """Raises: TemplateError: Braces do not match, are nested too deeply, or there is a variable."""
    template, end = _parsed(text, 0, depth=0)
    if end < len(text):
        raise TemplateError(f"A closing brace at character {end + 1} has no opening one.")
    return template


def _parsed(text: str, position: int, *, depth: int) -> tuple[Template, int]:
    """The parts up to what ends them: of an option a bar or its brace, of the whole the end of the text."""
    parts: list[str | Wildcard | Variant] = []
    literal = position
    while True:
        found = _SPECIAL.search(text, position)
        at = found.start() if found else len(text)
        mark = found[0] if found else ""
        position = at + len(mark)
        part: Wildcard | Variant
        if mark == "{":
            part, position = _variant(text, position, depth=depth + 1)
        elif mark == "__":
            wildcard = _WILDCARD.match(text, at)
            if wildcard is None:
                continue
            part, position = Wildcard(wildcard[1].strip()), wildcard.end()
        elif mark == "${":
            raise TemplateError(f"The variable at character {at + 1} is not supported; variants and wildcards are.")
        elif mark == "|" and not depth:
            continue
        else:
            return (*parts, *_literal(text[literal:at])), at
        parts += [*_literal(text[literal:at]), part]
        literal = position


def _literal(text: str) -> tuple[str, ...]:
    return (text,) if text else ()


def _variant(text: str, position: int, *, depth: int) -> tuple[Variant, int]:
    """From behind the opening brace to behind the closing one."""
    opened = position
    if depth > MOST_NESTED:
        raise TemplateError(f"Braces are nested more than {MOST_NESTED} deep.")
    low = high = 1
    joiner = JOINER
    if bound := _BOUND.match(text, position):
        low, high = _range_of(bound)
        joiner, position = JOINER if bound[4] is None else bound[4], bound.end()
    options: list[tuple[float, Template]] = []
    while True:
        weight = _WEIGHT.match(text, position)
        option, end = _parsed(text, weight.end() if weight else position, depth=depth)
        options.append((float(weight[1]) if weight else 1.0, option))
        if end == len(text):
            raise TemplateError(f"The brace opened at character {opened} is not closed.")
        position = end + 1
        if text[end] == "}":
            return Variant(low, high, joiner, tuple(options)), position


def _range_of(bound: re.Match[str]) -> tuple[int, int]:
    """Raises: TemplateError: It ends below its beginning."""
    if bound[3]:
        return int(bound[3]), int(bound[3])
    low, high = int(bound[1] or 1), int(bound[2] or MOST_CHOICES)
    if low > high:
        raise TemplateError(f"{bound[0].strip()} ends below its beginning.")
    return low, high


# --- expansion --------------------------------------------------------------------------------------------------------


class _Expansion:
    """Of one template: counts what it costs, and reads each wildcard once."""

    def __init__(self, wildcards: Wildcards, most: int = 0) -> None:
        self._wildcards = wildcards
        self._most = most
        self._known: dict[str, tuple[tuple[float, Template], ...]] = {}
        self._choices = MOST_CHOICES
        self._characters = MOST_CHARACTERS

    def counted(self, prompt: str) -> str:
        self._characters -= len(prompt)
        if self._characters < 0:
            raise TemplateError(f"The prompts have more than {MOST_CHARACTERS} characters together.")
        return prompt

    def one_of(self, template: Template, random: Random, *, depth: int) -> str:
        return "".join(
            part if isinstance(part, str) else self._chosen(self._variant(part, depth), random, depth=depth + 1)
            for part in template
        )

    def _chosen(self, variant: Variant, random: Random, *, depth: int) -> str:
        left = list(variant.options)
        count = random.randint(min(variant.low, len(left)), min(variant.high, len(left)))
        chosen = []
        for _ in range(count):
            weights = [weight for weight, _ in left]
            # Where all that is left has the weight 0, each is as good as any other.
            place = random.choices(range(len(left)), weights if any(weights) else None)[0]
            chosen.append(self.one_of(left.pop(place)[1], random, depth=depth))
        return self.counted(variant.joiner.join(chosen))

    def all_of(self, template: Template, *, depth: int) -> Iterator[str]:
        """In the order of the text, what stands last varying first. Of each part no more is needed than is asked for."""
        parts = [
            [part]
            if isinstance(part, str)
            else list(islice(self._every(self._variant(part, depth), depth=depth + 1), self._most))
            for part in template
        ]
        return map("".join, product(*parts))

    def _every(self, variant: Variant, *, depth: int) -> Iterator[str]:
        options = [template for _, template in variant.options]
        for count in range(min(variant.low, len(options)), min(variant.high, len(options)) + 1):
            for chosen in permutations(options, count):
                self._choose()
                for texts in product(*(list(islice(self.all_of(one, depth=depth), self._most)) for one in chosen)):
                    yield self.counted(variant.joiner.join(texts))

    def _variant(self, part: Wildcard | Variant, depth: int) -> Variant:
        """What there is to choose from: a wildcard's lines are options, also where it is the only option of a variant.

        Raises:
            TemplateError: The wildcard is unknown or empty, or this is too much.
        """
        self._choose()
        if isinstance(part, Wildcard):
            return Variant(1, 1, JOINER, self._lines(part.name, depth))
        if (
            len(part.options) == 1
            and len(part.options[0][1]) == 1
            and isinstance(only := part.options[0][1][0], Wildcard)
        ):
            return Variant(part.low, part.high, part.joiner, self._lines(only.name, depth))
        return part

    def _lines(self, name: str, depth: int) -> tuple[tuple[float, Template], ...]:
        if depth > MOST_NESTED:
            raise TemplateError(f"Wildcard {name!r} is nested more than {MOST_NESTED} deep.")
        if name not in self._known:
            self._known[name] = tuple(_line(text) for text in self._wildcards(name))
        if not self._known[name]:
            raise TemplateError(f"Wildcard {name!r} is unknown.")
        return self._known[name]

    def _choose(self) -> None:
        self._choices -= 1
        if self._choices < 0:
            raise TemplateError(f"The prompts take more than {MOST_CHOICES} choices.")


def _line(text: str) -> tuple[float, Template]:
    weight = _WEIGHT.match(text)
    return (float(weight[1]), parse(text[weight.end() :])) if weight else (1.0, parse(text))
