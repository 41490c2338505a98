"""The prompt grammar of A1111: ``AND``, prompt editing and alternation, attention weights, ``BREAK``. Text only, no tokens.

Comments and extra network tags (``<lora:…>``) are taken out before a prompt gets here.

Source: the behaviour of A1111 1.10 ``modules/prompt_parser.py``, observed through recorded vectors.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

ROUND_FACTOR = 1.1
SQUARE_FACTOR = 1 / 1.1
MAX_NESTING = 100
"""Brackets nested deeper than this are plain text; it keeps a hostile prompt from exhausting the stack."""

# --- AND -------------------------------------------------------------------------------------------------------------

_AND = re.compile(r"\bAND\b")
_WEIGHT_AT_END = re.compile(r"([\s\S]*?)(?:\s*:\s*([-+]?(?:\d+\.?|\d*\.\d+)))?\s*")


def split_composition(prompt: str) -> list[tuple[str, float]]:
    """Split at ``AND`` into (text, weight).

    QUIRK(A1111 1.10): the weight at the end is taken without any ``AND`` too, so ``12:30`` is the text ``12`` at weight 30.
    """
    matches = (_WEIGHT_AT_END.fullmatch(part) for part in _AND.split(prompt))
    return [(match[1], float(match[2] or 1.0)) for match in matches if match]


# --- prompt editing --------------------------------------------------------------------------------------------------

_PLAIN = re.compile(r"(?:[^\\\[\]():|]|\\.)+")
_WHEN = re.compile(r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*\]")


@dataclass(frozen=True, slots=True)
class _Scheduled:
    """``[before:after:when]``."""

    before: _Nodes
    after: _Nodes
    when: str

    def switch_step(self, steps: int) -> int:
        """The last step of ``before``; with a dot the number is a fraction of all steps."""
        value = float(self.when) * steps if "." in self.when else float(self.when)
        return int(max(-1.0, min(steps, value)))


@dataclass(frozen=True, slots=True)
class _Alternating:
    """``[a|b|c]``."""

    options: tuple[_Nodes, ...]


_Nodes = tuple["str | _Scheduled | _Alternating", ...]


class _NotAPrompt(Exception):
    """The grammar has no reading for this text."""


def edit_schedule(prompt: str, steps: int) -> list[tuple[int, str]]:
    """The texts a prompt goes through, as (last step it is valid for, text); the last entry ends at ``steps``.

    A text the grammar cannot read as a whole is used as it stands.
    """
    try:
        nodes = _Reader(prompt).read_all()
    except _NotAPrompt:
        return [(steps, prompt)]
    ends = sorted({steps, *_switch_steps(nodes, steps)})
    return [(end, _text_at(nodes, end, steps)) for end in ends]


def _switch_steps(nodes: _Nodes, steps: int) -> Iterator[int]:
    for node in nodes:
        if isinstance(node, _Alternating):
            yield from range(1, steps + 1)
        elif isinstance(node, _Scheduled):
            switch = node.switch_step(steps)
            if switch >= 1:
                yield switch
            yield from _switch_steps(node.before + node.after, steps)


def _text_at(nodes: _Nodes, step: int, steps: int) -> str:
    return "".join(_node_text_at(node, step, steps) for node in nodes)


def _node_text_at(node: str | _Scheduled | _Alternating, step: int, steps: int) -> str:
    if isinstance(node, str):
        return node
    if isinstance(node, _Alternating):
        return _text_at(node.options[(step - 1) % len(node.options)], step, steps)
    return _text_at(node.before if step <= node.switch_step(steps) else node.after, step, steps)


class _Reader:
    """Recursive descent over one prompt. A bracket that opens no group is plain text at the top level, an error inside a group."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0
        self.depth = 0

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
        self.depth += 1
        try:
            if self.depth > MAX_NESTING:
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
        finally:
            self.depth -= 1

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
_BREAK = re.compile(r"\s*\bBREAK\b\s*")


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

    def close(bracket: str, factor: float) -> None:
        for fragment in fragments[opened[bracket].pop() :]:
            fragment.weight *= factor

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
    return fragments


def _split_at_breaks(text: str) -> Iterator[Fragment]:
    parts = [Fragment(part, 1.0) for part in _BREAK.split(text)]
    yield parts[0]
    for _, part in pairwise(parts):
        yield Fragment("", 0.0, is_break=True)
        yield part


def _merged(fragments: list[Fragment]) -> list[Fragment]:
    merged: list[Fragment] = []
    for fragment in fragments:
        last = merged[-1] if merged else None
        if last and not last.is_break and not fragment.is_break and last.weight == fragment.weight:
            last.text += fragment.text
        else:
            merged.append(fragment)
    return merged
