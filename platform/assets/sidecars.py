"""Files that lie beside a file of weights on a disk and tell about it: its YAML, its card, its picture.

Reads only what bears the weights' own name, follows no link, and takes an unusable file for none, with a sentence about it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from assets.cards import MAX_SIDECAR_BYTES, Card, UnreadableCardError, card_from_civitai, card_from_user_metadata
from assets.previews import MAX_PREVIEW_BYTES, preview_made
from common.pictures import UnreadablePictureError

CARDS: tuple[tuple[str, Callable[[bytes], Card]], ...] = (
    (".json", card_from_user_metadata),
    (".civitai.info", card_from_civitai),
)
"""Ending → its form; what the user wrote wins over what was copied from a page."""
PICTURES = tuple(f"{infix}.{ending}" for infix in (".preview", "") for ending in ("png", "jpg", "jpeg", "webp", "gif"))
"""Source of the order: ``find_preview``, ``modules/ui_extra_networks.py``, A1111 1.10.1, which takes the plain name first; the
infix is the surer sign."""


@dataclass(slots=True)
class Sidecars:
    card: Card = field(default_factory=Card)
    preview: bytes = b""
    """As it will be stored."""
    passed_over: list[str] = field(default_factory=list)
    """A sentence for each file that is there and cannot be used."""


def sidecars_of(path: Path) -> Sidecars:
    """What lies beside the weights. Never raises for what stands in those files."""
    found = Sidecars()
    for ending, read in CARDS:
        if data := _content(path, ending, MAX_SIDECAR_BYTES, found):
            try:
                found.card = found.card.or_else(read(data))
            except UnreadableCardError as error:
                found.passed_over.append(f"{path.stem}{ending} is passed over: {error}")
    for ending in PICTURES:
        if data := _content(path, ending, MAX_PREVIEW_BYTES, found):
            try:
                found.preview = preview_made(data)
                break
            except UnreadablePictureError as error:
                found.passed_over.append(f"{path.stem}{ending} is passed over: {error}")
    return found


def _content(weights: Path, ending: str, limit: int, found: Sidecars) -> bytes:
    beside = weights.with_name(f"{weights.stem}{ending}")
    if beside.is_symlink() or not beside.is_file():
        return b""
    try:
        with beside.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        found.passed_over.append(f"{beside.name} is passed over: {error.strerror}.")
        return b""
    if len(data) > limit:
        found.passed_over.append(f"{beside.name} is passed over: it is longer than {limit} bytes.")
        return b""
    return data
