"""The run command of a service's document: its flags as settings, and a command that says other settings. Pure.

A command is kept as it was written; only the flags of settings that have changed since are taken out or put in.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

WORD = re.compile(r"""(?:[^\s"'\\]|\\.|"(?:[^"\\]|\\.)*"|'[^']*')+""", re.DOTALL)
OPERATORS = re.compile(r"&&|\|\||[;|&]")
"""Words of the shell that end a command's arguments."""
CONTINUATIONS = ("\\\n", "\\\r\n", "\\\r")
"""Ends of lines that are none."""
ANY_NUMBER = -1
DATA_DIR, HIDE_TABS, MIN_RAM = "--data-dir", "--always-hide-tabs", "--min-ram-reserved"
SWITCHES = {
    "api_log": "--api-log",
    "time_log": "--time-log",
    "safety_filter": "--enable-nsfw-censor",
    "dynamic_cache": "--sd-dynamic-cache",
}
"""Setting → the flag that turns it on."""
FOLDERS = {
    "lora": ("--lora-dir", "models/Lora"),
    "vae": ("--vae-dir", "models/VAE"),
    "gfpgan": ("--gfpgan-dir", "models/GFPGAN"),
    "embeddings": ("--embeddings-dir", "embeddings"),
    "hypernetworks": ("--hypernetwork-dir", "models/hypernetworks"),
    "extensions": ("--root-extensions", ""),
}
"""Public folder → its flag, and where the folder lies below the data directory; empty: the flag takes no path."""
ARITIES = {
    DATA_DIR: 1,
    HIDE_TABS: ANY_NUMBER,
    MIN_RAM: 1,
    "--port": 1,
    **dict.fromkeys(SWITCHES.values(), 0),
    **{flag: 1 if below else 0 for flag, below in FOLDERS.values()},
    **dict.fromkeys(
        (
            "--api",
            "--blade",
            "--cluster-status",
            "--disable-safe-unpickle",
            "--filebrowser",
            "--listen",
            "--no-download-sd-model",
            "--no-hashing",
            "--nowebui",
            "--skip-prepare-environment",
            "--skip-version-check",
            "--xformers",
        ),
        0,
    ),
}
"""Flags that are known, and how many values they take. Those that name no setting ask for what is so here in any case."""


@dataclass(frozen=True, slots=True)
class Flag:
    name: str
    values: tuple[str, ...]
    start: int
    end: int


class ScriptError(ValueError):
    """The command cannot be read, or a flag lacks its value."""


def flags_of(command: str) -> list[Flag]:
    """All words that begin with two hyphens, each with what belongs to it, in their order.

    Raises:
        ScriptError: A quotation is not closed, or a flag has no value that needs one.
    """
    words = [(found.group(), *found.span()) for found in WORD.finditer(command)]
    if re.sub(r"\s", "", command) != re.sub(r"\s", "", "".join(word for word, _, _ in words)):
        raise ScriptError("a quotation in it is not closed")
    words = [word for word in words if word[0] not in CONTINUATIONS]
    found: list[Flag] = []
    at = 0
    while at < len(words):
        word, start, end = words[at]
        at += 1
        if not word.startswith("--") or len(word) == 2:
            continue
        name, glued, value = word.partition("=")
        values = [_plain(value)] if glued else []
        arity = ARITIES.get(name, ANY_NUMBER)
        most = 0 if glued else len(words) if arity == ANY_NUMBER else arity
        while most and at < len(words) and _is_value(words[at][0]):
            values.append(_plain(words[at][0]))
            end = words[at][2]
            at, most = at + 1, most - 1
        if arity == 1 and not (values and values[0]):
            raise ScriptError(f"{name} has no value")
        if arity == 0 and values:
            raise ScriptError(f"{name} takes no value")
        found.append(Flag(name, tuple(values), start, end))
    return found


def _is_value(word: str) -> bool:
    return not word.startswith("--") and not OPERATORS.fullmatch(word)


def _plain(word: str) -> str:
    return "".join(shlex.split(word)) if word else ""


def _quoted(value: str) -> str:
    return f"'{value}'" if value.startswith("-") and "'" not in value else shlex.quote(value)


def last(flags: Iterable[Flag], name: str) -> Flag | None:
    """Of several the last one counts, as the original's parser has it."""
    return next((flag for flag in reversed(list(flags)) if flag.name == name), None)


def unknown(flags: Iterable[Flag]) -> list[str]:
    """Names of flags that mean nothing here."""
    return list(dict.fromkeys(flag.name for flag in flags if flag.name not in ARITIES))


def without(command: str, name: str) -> str:
    for flag in reversed([flag for flag in flags_of(command) if flag.name == name]):
        before, after = command[: flag.start], command[flag.end :]
        command = before.rstrip(" ") + after if before.endswith(" ") else before + after.lstrip(" ")
    return command


def with_flag(command: str, name: str, values: Sequence[str] = ()) -> str:
    """In place of the flag where it stands, else behind the last one."""
    text = " ".join([name, *map(_quoted, values)])
    flags = flags_of(command)
    if there := last(flags, name):
        return command[: there.start] + text + command[there.end :]
    # Before a word of the shell that ends the arguments, such as a pipe.
    end = flags[-1].end if flags else len(command.rstrip())
    return f"{command[:end]} {text}{command[end:]}".lstrip()
