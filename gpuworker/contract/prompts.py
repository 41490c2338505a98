"""Names in prompts: network tags (``<lora:name:weight>``) and the words that embeddings answer to. Standard library only.

The web side reads them to pin files, the engine to take the tags out of what the text encoder reads.

Source: ``modules/extra_networks.py`` and ``extensions-builtin/Lora/extra_networks_lora.py`` of A1111 1.10.1.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

# Possessive: a prompt of ten thousand unclosed tags must not be searched from each of them over and over.
NETWORK_TAG = re.compile(r"<(\w++):([^>]++)>")
LORA_TAGS = ("lora", "lyco")
"""Two names of one thing."""
HYPERNETWORK_TAG = "hypernet"
BUNDLED = "bundle_emb."
"""Prefix of embeddings inside a LoRA file: ``bundle_emb.<name>.<key of an embedding file>``."""
CLIP_L, CLIP_G = "clip_l", "clip_g"
"""The two parts of an SDXL embedding."""
MOST_RANKS = 1_000_000
"""More than any file has; a larger ``dyn`` says the same and need not overflow anything."""
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class NetworkTag:
    """A tag that switches a network on."""

    kind: str
    """``lora`` or ``hypernet``, as ``NetworkUse`` says it."""
    name: str
    te: float = 1.0
    unet: float = 1.0
    dyn: int | None = None


def strip_network_tags(prompt: str) -> str:
    """The prompt as the text encoder reads it: without the tags of any type, known or not."""
    return NETWORK_TAG.sub("", prompt)


def network_tags(prompt: str) -> list[NetworkTag]:
    """The tags of a prompt in their order. Of other types nothing is known; they are left out.

    What should be a finite number and is none counts as if it were not there.
    """
    found = []
    for kind, inside in NETWORK_TAG.findall(prompt):
        arguments = inside.split(":")
        if kind in LORA_TAGS:
            found.append(_lora(arguments))
        elif kind == HYPERNETWORK_TAG:
            weight = _number(_at(arguments, 1), 1.0)
            found.append(NetworkTag("hypernet", arguments[0], weight, weight))
    return found


def _lora(arguments: list[str]) -> NetworkTag:
    # An argument with two equals signs is positional.
    named = dict(argument.split("=") for argument in arguments if argument.count("=") == 1)
    positional = [argument for argument in arguments if argument.count("=") != 1]
    te = _number(named.get("te"), _number(_at(positional, 1), 1.0))
    unet = _number(named.get("unet"), _number(_at(positional, 2), te))
    dyn = _number(named.get("dyn"), _number(_at(positional, 3), 0.0))
    return NetworkTag("lora", _at(positional, 0) or "", te, unet, int(min(max(dyn, -MOST_RANKS), MOST_RANKS)) or None)


def _at(values: list[str], place: int) -> str | None:
    return values[place] if place < len(values) else None


def _number(text: str | None, default: float) -> float:
    try:
        number = default if text is None else float(text)
    except ValueError:
        return default
    return number if math.isfinite(number) else default


def embedding_names_in(prompt: str, names: Iterable[str]) -> list[str]:
    """Which of the names the tokenizer may find in the prompt, in any case, longest first as they are matched.

    A name ends where a word does: letters go together, signs go together, each digit stands alone. It need not begin where
    one does, because the tokens of a long word may end with those of a short one; whether they do is known to the engine only,
    which passes over a name that is not there. Escaped brackets count as the brackets themselves.
    """
    plain = _plain(prompt)
    readings = {plain, _plain(_ESCAPED.sub(r"\1", prompt))}
    return [
        name
        for name in sorted(names, key=lambda name: (-len(name), name))
        if any(_stands_in(_plain(name), reading) for reading in readings)
    ]


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def _stands_in(name: str, text: str) -> bool:
    position = text.find(name) if name else -1
    while position >= 0:
        if _is_end(text, position + len(name)):
            return True
        position = text.find(name, position + 1)
    return False


def _is_end(text: str, position: int) -> bool:
    """Whether a word ends before that position."""
    if position == len(text):
        return True
    before, after = _kind(text[position - 1]), _kind(text[position])
    return before != after or before == "digit"


def _kind(character: str) -> str:
    if character.isalpha():
        return "letter"
    if character.isnumeric():
        return "digit"
    return "space" if character.isspace() else "sign"
