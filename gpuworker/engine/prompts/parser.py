"""The prompt grammar of A1111: ``AND``, prompt editing and alternation, attention weights, ``BREAK``. Text only, no tokens.

Comments and extra network tags (``<lora:…>``) are taken out before a prompt gets here.

Source: the behaviour of A1111 1.10 ``modules/prompt_parser.py``, observed through recorded vectors.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

ROUND_FACTOR = 1.1
SQUARE_FACTOR = 1 / 1.1
MAX_NESTING = 100
"""Brackets nested deeper than this are plain text; it keeps a hostile prompt from exhausting the stack."""

# --- AND -------------------------------------------------------------------------------------------------------------

_AND = re.compile(r"\bAND\b")
_WEIGHT = re.compile(r"[-+]?(?:\d+\.?|\d*\.\d+)")


def split_composition(prompt: str) -> list[tuple[str, float]]:
    """Split at ``AND`` into (text, weight).

    QUIRK(A1111 1.10): the weight at the end is taken without any ``AND`` too, so ``12:30`` is the text ``12`` at weight 30.
    """
    return [_text_and_weight(part.rstrip()) for part in _AND.split(prompt)]


def _text_and_weight(part: str) -> tuple[str, float]:
    text, colon, weight = part.rpartition(":")
    if colon and _WEIGHT.fullmatch(weight.strip()):
        return text.rstrip(), float(weight)
    return part, 1.0


# --- prompt editing --------------------------------------------------------------------------------------------------

_PLAIN = re.compile(r"(?:[^\\\[\]():|]|\\.)+")
_BRACKET = re.compile(r"\\.|[()\[\]]")
_PARTNERS = {"(": ")", "[": "]"}
_WHEN = re.compile(r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*\]")


@dataclass(frozen=True, slots=True)
class _Count:
    """What the numbers in a prompt count against."""

    steps: int
    earlier: int | None
    """Steps of the pass before this one: their numbers come first, their fractions are those up to 1."""
    old: bool


@dataclass(frozen=True, slots=True)
class _Scheduled:
    """``[before:after:when]``."""

    before: _Nodes
    after: _Nodes
    when: str

    def switch_step(self, count: _Count) -> int:
        """The last step of ``before``; with a dot the number is a fraction of all steps."""
        value = float(self.when)
        if count.old:
            value = value * count.steps if value < 1 else value
        elif "." in self.when:
            value = (value - (count.earlier is not None)) * count.steps
        else:
            value -= count.earlier or 0
        return int(max(-1.0, min(count.steps, value)))


@dataclass(frozen=True, slots=True)
class _Alternating:
    """``[a|b|c]``."""

    options: tuple[_Nodes, ...]


_Nodes = tuple["str | _Scheduled | _Alternating", ...]


class _NotAPrompt(Exception):
    """The grammar has no reading for this text."""


def edit_schedule(
    prompt: str, steps: int, *, first_pass_steps: int | None = None, old_scheduling: bool = False
) -> list[tuple[int, str]]:
    """The texts a prompt goes through, as (last step it is valid for, text); the last entry ends at the pass' last step.

    A text the grammar cannot read as a whole is used as it stands.

    Args:
        first_pass_steps: Of the pass before, when this is the hires pass.
        old_scheduling: Numbers below 1 are fractions, with or without a dot, and say the same in both passes.
    """
    if old_scheduling:
        # QUIRK(A1111 1.10): the hires pass, too, counts against the first one's steps then.
        steps = first_pass_steps or steps
    count = _Count(steps, None if old_scheduling else first_pass_steps, old_scheduling)
    try:
        nodes = _Reader(prompt).read_all()
    except _NotAPrompt:
        return [(steps, prompt)]
    ends = sorted({steps, *_switch_steps(nodes, count)})
    return [(end, _text_at(nodes, end, count)) for end in ends]


def _switch_steps(nodes: _Nodes, count: _Count) -> Iterator[int]:
    for node in nodes:
        if isinstance(node, _Alternating):
            yield from range(1, count.steps + 1)
        elif isinstance(node, _Scheduled):
            switch = node.switch_step(count)
            if switch >= 1:
                yield switch
            yield from _switch_steps(node.before + node.after, count)


def _text_at(nodes: _Nodes, step: int, count: _Count) -> str:
    return "".join(_node_text_at(node, step, count) for node in nodes)


def _node_text_at(node: str | _Scheduled | _Alternating, step: int, count: _Count) -> str:
    if isinstance(node, str):
        return node
    if isinstance(node, _Alternating):
        return _text_at(node.options[(step - 1) % len(node.options)], step, count)
    return _text_at(node.before if step <= node.switch_step(count) else node.after, step, count)


class _Reader:
    """Recursive descent over one prompt. A bracket that opens no group is plain text at the top level, an error inside a group."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0
        self._heights = _group_heights(text)

    def read_all(self) -> _Nodes:
        nodes: list[str | _Scheduled | _Alternating] = []
        while True:
            nodes += self._prompt(strict=False)
            if self.position == len(self.text):
                return tuple(nodes)
            if self._next not in "[]():":
                raise _NotAPrompt
            nodes.append(self._take())

    @property
    def _next(self) -> str:
        return self.text[self.position : self.position + 1]

    def _take(self) -> str:
        character = self._next
        self.position += 1
        return character

    def _take_if(self, character: str) -> bool:
        found = self._next == character
        self.position += found
        return found

    def _prompt(self, *, strict: bool) -> _Nodes:
        """Everything up to a character that only the enclosing group, if any, can use."""
        nodes: list[str | _Scheduled | _Alternating] = []
        while self.position < len(self.text):
            plain = _PLAIN.match(self.text, self.position)
            if plain:
                nodes.append(plain[0])
                self.position = plain.end()
            elif self._next in ("(", "["):
                group = self._group_or_none(strict=strict)
                if group is None:
                    break
                nodes += group
            else:
                break
        return tuple(nodes)

    def _group_or_none(self, *, strict: bool) -> _Nodes | None:
        start = self.position
        try:
            if not 1 <= self._heights.get(start, 0) <= MAX_NESTING:
                raise _NotAPrompt
            group = self._round() if self._take() == "(" else self._square()
            if not strict and self._next and self._next in "]):":
                raise _NotAPrompt  # a run of stray brackets swallows the bracket before it
            return group
        except _NotAPrompt:
            if strict:
                raise
            self.position = start
            return None

    def _round(self) -> _Nodes:
        inner = self._prompt(strict=True)
        if self._take_if(":"):
            inner = (*inner, ":", *self._prompt(strict=True))
        self._expect(")")
        return ("(", *inner, ")")

    def _square(self) -> _Nodes:
        first = self._prompt(strict=True)
        if self._take_if("]"):
            return ("[", *first, "]")
        if self._next == "|":
            return (self._alternating(first),)
        self._expect(":")
        when = self._when()
        if when is not None:
            return (_Scheduled(before=(), after=first, when=when),)
        second = self._prompt(strict=True)
        self._expect(":")
        when = self._when()
        if when is None:
            raise _NotAPrompt
        return (_Scheduled(before=first, after=second, when=when),)

    def _alternating(self, first: _Nodes) -> _Alternating:
        options = [first]
        while self._take_if("|"):
            options.append(self._prompt(strict=True))
        self._expect("]")
        return _Alternating(tuple(options))

    def _when(self) -> str | None:
        match = _WHEN.match(self.text, self.position)
        if match is None:
            return None
        self.position = match.end()
        return match[1]

    def _expect(self, character: str) -> None:
        if not self._take_if(character):
            raise _NotAPrompt


def _group_heights(text: str) -> dict[int, int]:
    """Opening bracket that has a partner → how many groups are nested from it inwards.

    Known before anything is read, so that thousands of brackets without a partner are not each followed to the end.
    """
    heights: dict[int, int] = {}
    opened: list[int] = []
    inside: dict[int, int] = {}
    for match in _BRACKET.finditer(text):
        bracket = match[0]
        if bracket in _PARTNERS:
            opened.append(match.start())
        elif len(bracket) == 1 and opened and _PARTNERS[text[opened[-1]]] == bracket:
            start = opened.pop()
            heights[start] = 1 + inside.get(start, 0)
            if opened:
                inside[opened[-1]] = max(inside.get(opened[-1], 0), heights[start])
        elif len(bracket) == 1:
            opened.clear()  # no group reaches over a bracket that closes another kind
    return heights


# --- attention -------------------------------------------------------------------------------------------------------

_ATTENTION = re.compile(
    r"""
      \\(?P<escaped>[()\[\]\\])
    | (?P<backslash>\\)
    | (?P<open>[(\[])
    | :\s*(?P<weight>[+-]?(?:\d+\.?\d*|\.\d+))\s*\)
    | (?P<close>[)\]])
    | (?P<text>[^\\()\[\]:]+ | :)
    """,
    re.VERBOSE,
)
_BREAK = re.compile(r"\bBREAK\b")


@dataclass(slots=True)
class Fragment:
    """A piece of prompt under one weight."""

    text: str
    weight: float
    is_break: bool = False
    """The end of a chunk; text and weight say nothing then."""


def parse_attention(text: str) -> list[Fragment]:
    """Read ``(x)``, ``[x]``, ``(x:1.5)``, escapes and ``BREAK``; neighbours of one weight are one fragment.

    Unclosed brackets close at the end. ``BREAK`` inside brackets stays a break (A1111 turns it into a weighted word).
    """
    fragments = _weighted(text)
    return _merged(fragments) or [Fragment("", 1.0)]


def _weighted(text: str) -> list[Fragment]:
    fragments: list[Fragment] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}
    closed: list[tuple[int, int, float]] = []

    def close(bracket: str, factor: float) -> None:
        closed.append((opened[bracket].pop(), len(fragments), factor))

    for match in _ATTENTION.finditer(text):
        token = match[0]
        if match["open"]:
            opened[token].append(len(fragments))
        elif match["weight"] and opened["("]:
            close("(", float(match["weight"]))
        elif token == ")" and opened["("]:
            close("(", ROUND_FACTOR)
        elif token == "]" and opened["["]:
            close("[", SQUARE_FACTOR)
        elif match["escaped"]:
            fragments.append(Fragment(match["escaped"], 1.0))
        elif not match["backslash"]:
            fragments += _split_at_breaks(token)
    for bracket, factor in (("(", ROUND_FACTOR), ("[", SQUARE_FACTOR)):
        while opened[bracket]:
            close(bracket, factor)
    _multiply(fragments, closed)
    return fragments


def _multiply(fragments: list[Fragment], ranges: list[tuple[int, int, float]]) -> None:
    """Apply the factors one after the other, as A1111 rounds them; a hostile prompt has thousands over thousands."""
    weights = np.ones(len(fragments))
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        for begin, end, factor in ranges:
            weights[begin:end] *= factor
    for fragment, weight in zip(fragments, weights.tolist(), strict=True):
        fragment.weight = weight


def _split_at_breaks(text: str) -> Iterator[Fragment]:
    first, *others = _BREAK.split(text)
    yield Fragment(first.rstrip() if others else first, 1.0)
    for index, part in enumerate(others, start=1):
        yield Fragment("", 1.0, is_break=True)
        yield Fragment(part.lstrip() if index == len(others) else part.strip(), 1.0)


def _merged(fragments: list[Fragment]) -> list[Fragment]:
    merged: list[Fragment] = []
    for fragment in fragments:
        last = merged[-1] if merged else None
        if last and not last.is_break and not fragment.is_break and last.weight == fragment.weight:
            last.text += fragment.text
        else:
            merged.append(fragment)
    return merged
