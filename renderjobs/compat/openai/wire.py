"""The bodies of this door: which fields there are, what they accept and what they mean when they are left out."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from renderjobs.compat.openai.errors import ApiError, wrong

MOST_IMAGES, MOST_PARTIAL = 10, 3
MAX_PROMPT_LENGTH = 32_000
SIZE = re.compile(r"(?P<width>[1-9][0-9]{0,4})x(?P<height>[1-9][0-9]{0,4})")
AUTO = "auto"


class Unfit(ValueError):
    """A value is not what its field takes; the message goes on where the field's name ends."""


def text(value: Any) -> str:
    if not isinstance(value, str):
        raise Unfit("must be a string.")
    return value


def prompt(value: Any) -> str:
    found = text(value)
    if not found.strip() or len(found) > MAX_PROMPT_LENGTH:
        raise Unfit(f"must be a text of 1 to {MAX_PROMPT_LENGTH} characters.")
    return found


def one_of(*accepted: str) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if value not in accepted:
            raise Unfit(f"must be one of {', '.join(accepted)}.")
        return value

    return check


def between(first: int, last: int) -> Callable[[Any], int]:
    def check(value: Any) -> int:
        try:
            found = int(value) if isinstance(value, int | str) and not isinstance(value, bool) else first - 1
        except ValueError:
            found = first - 1
        if not first <= found <= last:
            raise Unfit(f"must be a whole number from {first} to {last}.")
        return found

    return check


def number(value: Any) -> float:
    try:
        if isinstance(value, int | float | str) and not isinstance(value, bool):
            return float(value)
    except (ValueError, OverflowError):
        pass
    raise Unfit("must be a number.")


def boolean(value: Any) -> bool:
    if value in (True, "true"):
        return True
    if value in (False, "false"):
        return False
    raise Unfit("must be true or false.")


def size(value: Any) -> tuple[int, int] | None:
    """None is ``auto``."""
    if value == AUTO:
        return None
    found = SIZE.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise Unfit("must be auto or a size such as 1024x1024.")
    return int(found["width"]), int(found["height"])


@dataclass(frozen=True, slots=True)
class Field:
    check: Callable[[Any], Any]
    default: Any = None
    required: bool = False


WITHOUT_EFFECT = ("user", "safety_identifier", "moderation", "style", "input_fidelity")
"""Fields about OpenAI's own models and users."""
COMMON = {
    "prompt": Field(prompt, required=True),
    "model": Field(text, ""),
    "n": Field(between(1, MOST_IMAGES), 1),
    "size": Field(size),
    "quality": Field(one_of(AUTO, "low", "medium", "high", "standard", "hd"), AUTO),
    "response_format": Field(one_of("b64_json", "url"), "b64_json"),
    "output_format": Field(one_of("png", "jpeg", "webp"), "png"),
    "output_compression": Field(between(0, 100), 100),
    "background": Field(one_of(AUTO, "opaque"), AUTO),
    "stream": Field(boolean, False),
    "partial_images": Field(between(0, MOST_PARTIAL), 0),
    **{name: Field(text) for name in WITHOUT_EFFECT},
    # Ours: what these models have and OpenAI's have not.
    "negative_prompt": Field(text, ""),
    "seed": Field(between(-1, 2**63 - 1), -1),
    "steps": Field(between(1, 1000)),
    "cfg_scale": Field(number, 7.0),
}
GENERATION = COMMON
EDIT = {**COMMON, "denoising_strength": Field(number)}
PICTURES = ("image", "image[]", "mask")
"""Files of an edit."""


def object_of(data: bytes) -> dict[str, Any]:
    """Raises: ApiError: It is no JSON object."""
    try:
        body = json.loads(data)
        json.dumps(body, ensure_ascii=False).encode()  # half a surrogate pair is not text
    except (ValueError, RecursionError):
        raise ApiError(400, "We could not parse the JSON body of your request.") from None
    if not isinstance(body, dict):
        raise ApiError(400, "The body of the request must be a JSON object.")
    return body


def parsed(body: Mapping[str, Any], fields: Mapping[str, Field], *, ignored: Collection[str] = ()) -> dict[str, Any]:
    """Every field with its value or default. A null is a field left out.

    Raises:
        ApiError: For the first field that is unknown, wrong or missing.
    """
    for name in body:
        if name not in fields and name not in ignored:
            raise wrong(name, f"Unknown parameter: '{name}'.", "unknown_parameter")
    values = {}
    for name, field in fields.items():
        value = body.get(name)
        if value is None:
            if field.required:
                raise wrong(name, f"Missing required parameter: '{name}'.", "missing_required_parameter")
            values[name] = field.default
            continue
        try:
            if isinstance(value, str) and "\0" in value:
                raise Unfit("holds a NUL, which is not text.")
            values[name] = field.check(value)
        except Unfit as error:
            raise wrong(name, f"Invalid value: '{name}' {error}") from None
    return values
