"""Infotext → parameters as A1111 reads them, and the infotext of a picture file. Pure.

What a request makes of the parameters is in ``infotext_fields``. Every scan is linear: anybody may have made the text.

Source: ``parse_generation_parameters`` of ``modules/infotext_utils.py``, ``modules/infotext_versions.py``,
``read_info_from_image`` of ``modules/images.py`` and ``extract_styles_from_prompt`` of ``modules/styles.py``, A1111 1.10.1;
``scripts/infotext.py`` of sd-webui-controlnet 1.1.455.
"""

from __future__ import annotations

import io
import json
import math
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from PIL import Image

from gpuworker.contract.samplers import SAMPLERS
from renderjobs.compat.sdapi.control_units import fields_of_text

NEGATIVE = "Negative prompt:"
FEWEST_PAIRS = 3
"""A last line with fewer is part of the prompt."""
RUN = re.compile(r"[\w \-/]++")
"""What a key is made of."""
KEY = re.compile(r"\w[\w \-/]+")
VALUE = re.compile(r'\s*(?:("(?:\\.|[^\\"])++")(?:,|$)|([^,]*)(?:,|$))')
SIZE = re.compile(r"^(\d+)x(\d+)$")
SAME_SAMPLER, SAME_SCHEDULER, SAME_CHECKPOINT = "Use same sampler", "Use same scheduler", "Use same checkpoint"


class Style(NamedTuple):
    name: str
    prompt: str
    negative_prompt: str


def parse_infotext(text: str, styles: Iterable[Style] = ()) -> dict[str, Any]:
    """Key → value: what was written as text, in its order, then the prompts, then what A1111 takes for granted.

    A value ``WxH`` becomes ``<key>-1`` and ``<key>-2``.

    Args:
        styles: Those whose texts are cut out of the prompts and named as ``Styles array``.
    """
    *lines, last = text.strip().split("\n")
    pairs = list(pairs_in(last))
    if len(pairs) < FEWEST_PAIRS:
        lines, pairs = [*lines, last], []
    found = values_of(pairs)
    prompt, negative_prompt = take_styles(found, *prompts_in(lines), list(styles))
    found |= {"Prompt": prompt, "Negative prompt": negative_prompt}
    found.setdefault("Clip skip", "1")
    if "Hypernet" in found:
        found["Prompt"] += f"<hypernet:{found['Hypernet']}:{found.get('Hypernet strength', '1.0')}>"
    add_defaults(found)
    if "Emphasis" not in found and (uses_weights(prompt) or uses_weights(negative_prompt)):
        found["Emphasis"] = "Original"
    found.setdefault("Refiner switch by sampling steps", False)
    follow_version(found)
    return found


def prompts_in(lines: Iterable[str]) -> tuple[str, str]:
    """The first line that begins with ``Negative prompt:`` ends the prompt; later ones go on with the negative one."""
    prompt: list[str] = []
    negative: list[str] = []
    part = prompt
    for line in map(str.strip, lines):
        if line.startswith(NEGATIVE):
            part, line = negative, line.removeprefix(NEGATIVE).strip()
        # QUIRK(A1111 1.10): empty lines before the first text of a prompt vanish.
        if line or part:
            part.append(line)
    return "\n".join(prompt), "\n".join(negative)


def pairs_in(line: str) -> Iterator[tuple[str, str]]:
    """Keys and raw values; a quoted one still has its quotes.

    QUIRK(A1111 1.10): a key has two characters at least, so ``X: 1`` is none.
    """
    position = 0
    while run := RUN.search(line, position):
        position = run.end()
        key = KEY.search(run[0])
        if key and line.startswith(":", position):
            value = VALUE.match(line, position + 1)
            assert value, "Up to the next comma or the end anything is a value."
            position = value.end()
            yield key[0], value[1] or value[2] or ""


def values_of(pairs: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """QUIRK(A1111 1.10): an empty value is none, and its key is left out."""
    found: dict[str, Any] = {}
    for key, raw in pairs:
        value = unquoted(raw)
        if size := SIZE.match(value):
            found[f"{key}-1"], found[f"{key}-2"] = size[1], size[2]
        elif raw:
            found[key] = value
    return found


def unquoted(value: str) -> str:
    if not (value.startswith('"') and value.endswith('"')):
        return value
    try:
        return str(json.loads(value))
    except ValueError:
        return value


# --- what is added ---------------------------------------------------------------------------------------------------


def add_defaults(found: dict[str, Any]) -> None:
    """A1111 writes neutral values into no infotext, so what is missing is neutral."""
    if "Hires resize-1" not in found:
        found |= {"Hires resize-1": 0, "Hires resize-2": 0}
    hires = {
        "Hires sampler": SAME_SAMPLER,
        "Hires schedule type": SAME_SCHEDULER,
        "Hires checkpoint": SAME_CHECKPOINT,
        "Hires prompt": "",
        "Hires negative prompt": "",
        "Mask mode": "Inpaint masked",
        "Masked content": "original",
        "Inpaint area": "Whole picture",
        "Masked area padding": 32,
    }
    sampling = {
        "RNG": "GPU",
        "Schedule type": "Automatic",
        "Schedule max sigma": 0,
        "Schedule min sigma": 0,
        "Schedule rho": 0,
        "VAE Encoder": "Full",
        "VAE Decoder": "Full",
        "FP8 weight": "Disable",
    }
    for key, value in hires.items():
        found.setdefault(key, value)
    restore_first_pass(found)
    for key, value in sampling.items():
        found.setdefault(key, value)
    if found["FP8 weight"] != "Disable":
        found.setdefault("Cache FP16 weight for LoRA", False)


def restore_first_pass(found: dict[str, Any]) -> None:
    """Infotexts of 2022 name the first pass and call the finished picture's sides the size.

    Source: also ``old_hires_fix_first_pass_dimensions`` of ``modules/processing.py``.
    """
    first = whole(found.get("First pass size-1")), whole(found.get("First pass size-2"))
    if first[0] is None or first[1] is None:
        return
    width, height = whole(found.get("Size-1", 512)) or 512, whole(found.get("Size-2", 512)) or 512
    if 0 in first:
        scale = math.sqrt(512 * 512 / (width * height))
        first = math.ceil(scale * width / 64) * 64, math.ceil(scale * height / 64) * 64
    found |= {"Size-1": first[0], "Size-2": first[1], "Hires resize-1": width, "Hires resize-2": height}


def whole(value: Any) -> int | None:
    """None for what is no side of a picture; A1111 would fail there."""
    return int(value) if str(value).isdecimal() and len(str(value)) < 10 else None


RELEASE = re.compile(r"v?(\d+(?:\.\d+)*)(?:-?(rc)\d*|-(\d+))?", re.IGNORECASE | re.ASCII)
V_160, V_170_TSNR, V_180, V_180_HR_STYLES = (
    ((1, 6), 0, 0), ((1, 7), 0, 225), ((1, 8), 0, 0), ((1, 8), 0, 139),
)  # fmt: skip


def release_of(version: str | None) -> tuple[tuple[int, ...], int, int] | None:
    """Numbers, -1 for a release candidate, commits since; comparable. ``v1.7.0-225-g0123abc`` is 225 commits after 1.7.0.

    None for what is no version of A1111's.
    """
    match = RELEASE.fullmatch("-".join((version or "")[:100].split("-")[:2]))
    if match is None:
        return None
    numbers = [int(number) for number in match[1].split(".")]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers), -1 if match[2] else 0, int(match[3] or 0)


def follow_version(found: dict[str, Any]) -> None:
    """Switch on the old ways that the release followed which wrote this."""
    release = release_of(found.get("Version"))
    if release is None:
        return
    if release < V_160 and "[" in found["Prompt"]:
        found["Old prompt editing timelines"] = True
    if release < V_160 and found.get("Sampler") in ("DDIM", "PLMS"):
        found["Pad conds v0"] = True
    if release < V_170_TSNR:
        found["Downcast alphas_cumprod"] = True
    if release < V_180 and found.get("Refiner"):
        found["Refiner switch by sampling steps"] = True


# --- styles ----------------------------------------------------------------------------------------------------------


def take_styles(found: dict[str, Any], prompt: str, negative: str, styles: list[Style]) -> tuple[str, str]:
    """The prompts without the styles that were applied to them; nothing is taken when the hires prompts have others."""
    names, bare, bare_negative = without_styles(prompt, negative, styles)
    release = release_of(found.get("Version"))
    has_hires = "Hires prompt" in found or "Hires negative prompt" in found
    if has_hires and (release is None or release > V_180_HR_STYLES):
        hires = found.get("Hires prompt", prompt), found.get("Hires negative prompt", negative)
        hires_names, hires_bare, hires_bare_negative = without_styles(*hires, styles)
        if hires_names != names:
            return prompt, negative
        found["Hires prompt"] = "" if hires_bare == bare else hires_bare
        found["Hires negative prompt"] = "" if hires_bare_negative == bare_negative else hires_bare_negative
    if names:
        found["Styles array"] = names
    return bare, bare_negative


SPACES = re.compile("  +")


def without_styles(prompt: str, negative: str, styles: Iterable[Style]) -> tuple[list[str], str, str]:
    """Names of the styles in the order they were applied in, and the prompts without them."""
    left, names = [style for style in styles if style.prompt or style.negative_prompt], []
    while True:
        for style in left:
            bare, bare_negative = unwrapped(style.prompt, prompt), unwrapped(style.negative_prompt, negative)
            if bare is not None and bare_negative is not None:
                break
        else:
            return names[::-1], prompt, negative
        prompt, negative = bare, bare_negative
        left.remove(style)
        names.append(style.name)


def unwrapped(style: str, prompt: str) -> str | None:
    """The prompt before the style was applied; None when it was not."""
    style, whole_prompt = SPACES.sub(" ", style.strip()), SPACES.sub(" ", prompt.strip())
    if "{prompt}" in style:
        before, _, after = style.partition("{prompt}")
        if "{prompt}" in after or not (whole_prompt.startswith(before) and whole_prompt.endswith(after)):
            return None
        return whole_prompt[len(before) : len(whole_prompt) - len(after)]
    return whole_prompt.removesuffix(style).removesuffix(", ") if whole_prompt.endswith(style) else None


# --- emphasis --------------------------------------------------------------------------------------------------------

ATTENTION = re.compile(
    r"\\[()\[\]\\]?|(?P<open>[(\[])|:\s*+(?P<weight>[+-]?[.\d]++)\s*+\)|(?P<close>[)\]])|[^\\()\[\]:]++|:"
)
OPENER = {")": "(", "]": "["}
FACTOR = {"(": 1.1, "[": 1 / 1.1}


def uses_weights(prompt: str) -> bool:
    """Whether any part of a prompt weighs other than 1.

    Brackets multiply all that is within them alike. So of every open bracket it is enough to know what its parts weigh, until two
    of them weigh differently: one of those is not 1, whatever is multiplied later.

    Source: ``parse_prompt_attention`` of ``modules/prompt_parser.py``, A1111 1.10.1.
    """
    opened: list[tuple[str, set[float]]] = [("", set())]
    for token in ATTENTION.finditer(prompt):
        closing = token["close"] or (")" if token["weight"] else "")
        if token["open"]:
            opened.append((token["open"], set()))
        elif closing and OPENER[closing] == opened[-1][0]:
            close(opened, factor_of(token["weight"], OPENER[closing]))
        elif closing and any(kind == OPENER[closing] for kind, _ in opened[-MOST_CROSSED:]):
            return True  # crossing brackets leave at least one part with one of the two factors
        else:
            opened[-1][1].add(1.0)
        if len(opened[-1][1]) > 1:
            return True
    while len(opened) > 1:
        close(opened, FACTOR[opened[-1][0]])
    return opened[0][1] - {1.0} != set()


MOST_CROSSED = 100
"""How many brackets back the other half of a crossed one is looked for."""


def close(opened: list[tuple[str, set[float]]], factor: float) -> None:
    _, inside = opened.pop()
    opened[-1][1].update(weight * factor for weight in inside)


def factor_of(weight: str | None, kind: str) -> float:
    """A weight that is no number counts as none; A1111 would fail there."""
    try:
        return float(weight) if weight else FACTOR[kind]
    except ValueError:
        return FACTOR[kind]


# --- pictures --------------------------------------------------------------------------------------------------------

NOT_SHOWN = frozenset(
    {
        "jfif", "jfif_version", "jfif_unit", "jfif_density", "dpi", "exif", "loop", "background", "timestamp", "duration",
        "progressive", "progression", "icc_profile", "chromaticity", "photoshop",
    }
)  # fmt: skip
EXIF_IFD, USER_COMMENT = 0x8769, 0x9286
CHARACTER_CODES = {b"ASCII\0\0\0": "ascii", b"JIS\0\0\0\0\0": "shift_jis", b"UNICODE\0": "utf-16-be"}
EXIF_ERRORS = (OSError, SyntaxError, ValueError, KeyError, IndexError, TypeError, AttributeError, struct.error)
"""What Pillow raises over EXIF that is none."""
SAMPLERS_BY_ALIAS = {alias: info.name for info in SAMPLERS for alias in (info.name, info.name.lower(), *info.aliases)}


def png_info(data: bytes, styles: Iterable[Style] = ()) -> dict[str, Any]:
    """The body that answers ``png-info``: ``info``, ``items`` and ``parameters``.

    Args:
        data: A picture that Pillow opens and the caller has found small enough to be decoded.
    """
    info, items = info_and_items(data)
    parameters = parse_infotext(info, styles)
    return {"info": info, "items": items, "parameters": parameters | control_parameters(parameters)}


def control_parameters(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """What the ControlNet extension adds to parameters: every field of every unit by itself, ``ControlNet 0 module`` and so on."""
    return {
        f"{key} {name}": value
        for key, text in parameters.items()
        if key.startswith("ControlNet") and isinstance(text, str)
        for name, value in fields_of_text(text).items()
    }


def info_and_items(data: bytes) -> tuple[str, dict[str, Any]]:
    """The infotext, empty where there is none, and whatever else the file says."""
    with Image.open(io.BytesIO(data)) as picture:
        picture.load()  # PNG texts may stand behind the pixels
        items = {str(key): value for key, value in picture.info.items()}
        comment, size = exif_comment(picture), picture.size
    info = items.pop("parameters", None)
    if comment:
        items["exif comment"] = info = comment
    elif "exif" not in items and "comment" in items:
        info = items["comment"]
    shown = {key: as_json(value) for key, value in items.items() if key not in NOT_SHOWN}
    if shown.get("Software") == "NovelAI":
        info = infotext_of_novelai(shown, size) or info
    return str(as_json(info or "")), shown


def exif_comment(picture: Image.Image) -> str:
    """EXIF's UserComment; its first eight bytes say how it is coded."""
    try:
        comment = picture.getexif().get_ifd(EXIF_IFD).get(USER_COMMENT, b"")
    except EXIF_ERRORS:
        return ""
    if not isinstance(comment, bytes):
        return str(comment)
    try:
        return comment[8:].decode(CHARACTER_CODES[comment[:8]])
    except (KeyError, UnicodeDecodeError):
        return comment.decode("utf-8", "ignore")


def infotext_of_novelai(items: dict[str, Any], size: tuple[int, int]) -> str | None:
    """NovelAI keeps its parameters as JSON; its pictures are made with what A1111 calls clip skip 2 and this ENSD."""
    try:
        given = json.loads(items["Comment"])
        sampler = SAMPLERS_BY_ALIAS.get(given["sampler"], "Euler a")
        return (
            f"{items['Description']}\nNegative prompt: {given['uc']}\n"
            f"Steps: {given['steps']}, Sampler: {sampler}, CFG scale: {given['scale']}, Seed: {given['seed']}, "
            f"Size: {size[0]}x{size[1]}, Clip skip: 2, ENSD: 31337"
        )
    except (KeyError, TypeError, ValueError, RecursionError):
        return None


def as_json(value: Any) -> Any:
    """Texts and numbers as they are, bytes as text, anything else by its ``str``."""
    match value:
        case bytes():
            return value.decode("utf-8", "ignore")
        case str():
            return str(value)
        case None | bool() | int():
            return value
        case float():
            return value if math.isfinite(value) else str(value)
        case tuple() | list():
            return [as_json(item) for item in value]
    return str(value)
