"""What people say about a file of weights: description, trigger words, licence, where it is from. It changes no picture.

Pure: texts in, a :class:`Card` out. What comes with a file was written by strangers: sizes and depth have limits, markup becomes
plain text, an address is kept only if a browser may follow it, and nothing is fetched.

Source of the forms: ``modules/ui_extra_networks_user_metadata.py`` and ``extensions-builtin/Lora/ui_edit_user_metadata.py`` of
A1111 1.10.1 (``NAME.json``); the model version of Civitai's API, as its helpers keep it (``NAME.civitai.info``); the Model Metadata
Standard (``modelspec.*``) and kohya's sd-scripts (``ss_*``) within safetensors files.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from django.core.exceptions import SuspiciousOperation, ValidationError
from django.core.validators import URLValidator
from django.utils.html import strip_tags

from common.errors import FieldError

MAX_SIDECAR_BYTES = 1024 * 1024
MAX_DEPTH = 32
MAX_WORDS = 50
LIMITS = {
    "description": 20_000,
    "trigger_words": 2_000,
    "licence": 200,
    "source_page": 500,
    "base_model": 100,
    "notes": 20_000,
}
"""Characters of each text."""
MAX_WEIGHT = 100.0
CIVITAI = "https://civitai.com/models"
is_address = URLValidator(schemes=["http", "https"])


class UnreadableCardError(ValueError):
    """The file says nothing that can be used; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """Empty where nothing is known."""

    description: str = ""
    trigger_words: str = ""
    """What the prompt has to say, separated by commas."""
    preferred_weight: float | None = None
    licence: str = ""
    source_page: str = ""
    base_model: str = ""
    """For which models it is, in its author's words; what the file itself shows is the asset's ``family``."""
    notes: str = ""

    def __bool__(self) -> bool:
        return self != Card()

    def or_else(self, other: Card) -> Card:
        """This one, and of ``other`` what this one does not know."""
        missing = {name: getattr(other, name) for name in FIELDS if getattr(self, name) in ("", None)}
        return replace(self, **missing)

    def values(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in FIELDS}


FIELDS = tuple(field.name for field in fields(Card))


def card_of(**said: Any) -> Card:
    """A card of what strangers wrote: wrong types are nothing, long texts are cut, addresses are addresses."""
    texts = {name: plain(said.get(name), limit) for name, limit in LIMITS.items()}
    texts["source_page"] = _address(said.get("source_page"))
    return Card(**texts, preferred_weight=_weight(said.get("preferred_weight")))


def card_errors(said: Mapping[str, Any]) -> list[FieldError]:
    """What of a caller's own words cannot be kept as it stands; the caller is told, where a file beside weights is just cut."""
    errors = []
    kept = card_of(**said)
    for name, value in said.items():
        if name == "preferred_weight":
            if value not in (None, "") and kept.preferred_weight is None:
                errors.append(
                    FieldError(name, f"{name} is {value!r:.80}; a number up to {MAX_WEIGHT:g} is accepted.", value)
                )
        elif not isinstance(value, str):
            errors.append(FieldError(name, f"{name} is {value!r:.80}; a text is accepted."))
        elif len(value.strip()) > LIMITS[name]:
            errors.append(FieldError(name, f"{name} has {len(value)} characters; {LIMITS[name]} are accepted."))
        elif name == "source_page" and value.strip() and not kept.source_page:
            errors.append(FieldError(name, f"{value!r:.80} is no address; one with http or https is accepted.", value))
    return errors


def card_from_user_metadata(data: bytes) -> Card:
    """``NAME.json``, as A1111's own editor of cards writes it.

    Raises:
        UnreadableCardError: No JSON object, too large or too deep.
    """
    said = json_object(data)
    return card_of(
        description=said.get("description"),
        trigger_words=said.get("activation text"),
        preferred_weight=said.get("preferred weight") or None,  # 0 is the editor's "not set"
        base_model="" if said.get("sd version") == "Unknown" else said.get("sd version"),
        notes=said.get("notes"),
    )


def card_from_civitai(data: bytes) -> Card:
    """``NAME.civitai.info``. The page is made of the two numbers, for the file holds no address of it.

    Raises:
        UnreadableCardError: No JSON object, too large or too deep.
    """
    said = json_object(data)
    model = said["model"] if isinstance(said.get("model"), dict) else {}
    numbers = said.get("modelId"), said.get("id")
    page = f"{CIVITAI}/{numbers[0]}?modelVersionId={numbers[1]}" if all(type(one) is int for one in numbers) else ""
    return card_of(
        description=without_markup(said.get("description")) or without_markup(model.get("description")),
        trigger_words=_joined(said.get("trainedWords")),
        source_page=page,
        base_model=said.get("baseModel"),
    )


def card_from_header(metadata: Mapping[str, str]) -> Card:
    """What a safetensors file says of itself."""
    return card_of(
        description=without_markup(metadata.get("modelspec.description")),
        trigger_words=metadata.get("modelspec.trigger_phrase") or _joined(_tags_of_every_caption(metadata)),
        licence=metadata.get("modelspec.license"),
        base_model=metadata.get("modelspec.architecture") or metadata.get("ss_base_model_version"),
        notes=without_markup(metadata.get("modelspec.usage_hint")),
    )


def json_object(data: bytes) -> dict[str, Any]:
    """Raises: UnreadableCardError: It is none, or costs too much to read."""
    if len(data) > MAX_SIDECAR_BYTES:
        raise UnreadableCardError(f"It is longer than {MAX_SIDECAR_BYTES} bytes.")
    try:
        found = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        raise UnreadableCardError("It is no JSON.") from None
    if not isinstance(found, dict):
        raise UnreadableCardError("It is no JSON object.")
    if _is_deep(found):
        raise UnreadableCardError(f"Its JSON has more than {MAX_DEPTH} levels.")
    return found


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for one in level
            if isinstance(one, dict | list)
            for inner in (one.values() if isinstance(one, dict) else one)
        ]
        if not level:
            return False
    return any(isinstance(one, dict | list) for one in level)


def plain(value: Any, limit: int) -> str:
    """Text that every database takes and every page can show: no control characters but line ends, no half characters."""
    if not isinstance(value, str):
        return ""
    usable = value[: 2 * limit].encode("utf-8", "ignore").decode().replace("\r\n", "\n")
    return "".join(char for char in usable if char == "\n" or char.isprintable()).strip()[:limit]


def without_markup(value: Any) -> str:
    """HTML as the text a reader would see; paragraphs stay apart."""
    if not isinstance(value, str):
        return ""
    apart = value[: 4 * LIMITS["description"]].replace("</p>", "\n").replace("<br>", "\n").replace("<br/>", "\n")
    try:
        return html.unescape(strip_tags(apart))
    except SuspiciousOperation:  # tags opened many times over: no description, but an attempt to keep the parser busy
        return ""


def _joined(words: Any) -> str:
    """Trigger words as one text; a phrase may itself be a list with commas."""
    if not isinstance(words, list):
        return ""
    usable = (plain(word, LIMITS["trigger_words"]).strip(", ") for word in words[:MAX_WORDS])
    return ", ".join(dict.fromkeys(word for word in usable if word))


def _tags_of_every_caption(metadata: Mapping[str, str]) -> list[str]:
    """The tags with which every picture of a training folder was captioned: what such a prompt has to say."""
    try:
        folders = json_object(metadata.get("ss_dataset_dirs", "{}").encode())
        frequencies = json_object(metadata.get("ss_tag_frequency", "{}").encode())
    except (UnreadableCardError, UnicodeEncodeError):
        return []
    found: list[str] = []
    for name, folder in folders.items():
        pictures = folder.get("img_count") if isinstance(folder, dict) else None
        counted = frequencies.get(name)
        if isinstance(counted, dict) and type(pictures) is int and pictures > 1:
            found += [tag.strip() for tag, count in counted.items() if count == pictures]
    return list(dict.fromkeys(found))


def _address(value: Any) -> str:
    text = plain(value, LIMITS["source_page"] + 1)
    try:
        is_address(text)
    except ValidationError:
        return ""
    return text if len(text) <= LIMITS["source_page"] else ""


def _weight(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) and abs(number) <= MAX_WEIGHT else None
