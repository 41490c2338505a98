"""What lists and infotexts show of a file beside its name: A1111's short hashes, a LoRA's other name and its training metadata.

Source: ``modules/hashes.py``, ``modules/sd_models.py``, ``extensions-builtin/Lora/network.py`` and
``modules/textual_inversion/textual_inversion.py`` of A1111 1.10.1; ``scripts/utils.py`` of sd-webui-controlnet for its old hash.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import IO, Any

from assets.hashing import CHUNK_BYTES
from assets.models import AssetKind
from gpuworker.contract.prompts import BUNDLED, CLIP_G, CLIP_L

LORA_DIGITS = 12
CONTROLNET_DIGITS = 8
CONTROLNET_SAMPLE = (1024 * 1024, 64 * 1024)
"""Where the old hash of a model begins to read, and how much."""
MAX_METADATA_BYTES = 1024 * 1024
MAX_ALIAS_CHARACTERS = 200
MOST_EMBEDDINGS_INSIDE = 1000
FIRST_METADATA = ("ss_sd_model_name", "ss_resolution", "ss_clip_skip", "ss_num_train_images", "ss_tag_frequency")
"""What A1111 shows before the rest."""


def listed_hash(kind: str, file: IO[bytes], *, sha256: str, metadata: dict[str, str] | None) -> str:
    """The hash infotexts show of this kind; empty where the short hash is the one.

    Args:
        file: As it was uploaded; not read where the hash of the whole is enough.
        metadata: Of a safetensors header; None for other files.
    """
    if kind == AssetKind.CONTROLNET:
        offset, length = CONTROLNET_SAMPLE
        file.seek(offset)
        return hashlib.sha256(file.read(length)).hexdigest()[:CONTROLNET_DIGITS]
    if kind == AssetKind.EMBEDDING:
        return sha256[:LORA_DIGITS]
    if kind == AssetKind.LORA:
        whole = sha256 if metadata is None else metadata.get("sshs_model_hash") or _hash_of_tensors(file)
        return whole[:LORA_DIGITS]
    return ""


def _hash_of_tensors(file: IO[bytes]) -> str:
    """sha-256 of what follows the header, so that changed metadata leave it as it is."""
    file.seek(0)
    file.seek(8 + int.from_bytes(file.read(8), "little"))
    digest = hashlib.sha256()
    while chunk := file.read(CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()


def alias(kind: str, metadata: dict[str, str]) -> str:
    """The name a LoRA was trained under, by which prompts may call it too."""
    name = metadata.get("ss_output_name", "") if kind == AssetKind.LORA else ""
    return name if name.isprintable() and len(name) <= MAX_ALIAS_CHARACTERS else ""


def shown_metadata(kind: str, metadata: dict[str, str]) -> dict[str, Any]:
    """A LoRA's metadata as A1111 lists them: the important ones first, texts that are JSON maps opened.

    Entries that no database takes are left out, and the largest ones until the rest is no more than ``MAX_METADATA_BYTES``.
    """
    if kind != AssetKind.LORA:
        return {}
    places = {name: place for place, name in enumerate(FIRST_METADATA)}
    usable = {name: text for name, text in metadata.items() if _is_storable(name) and _is_storable(text)}
    room = MAX_METADATA_BYTES
    kept = set()
    for name in sorted(usable, key=lambda name: len(usable[name])):
        room -= len(name.encode()) + len(usable[name].encode())
        if room >= 0:
            kept.add(name)
    ordered = sorted(kept, key=lambda name: (places.get(name, len(places)), list(usable).index(name)))
    return {name: _opened(usable[name]) for name in ordered}


def encoders_of(parts: Iterable[str]) -> int:
    """How many text encoders an embedding of these tensors has vectors for."""
    return 2 if {CLIP_L, CLIP_G} <= set(parts) else 1


def embeddings_inside(kind: str, tensors: Iterable[str]) -> dict[str, int]:
    """Embeddings that come in a LoRA file: their names, and for how many text encoders they are."""
    found: dict[str, list[str]] = {}
    for tensor in tensors if kind == AssetKind.LORA else ():
        if tensor.startswith(BUNDLED):
            name, _, part = tensor.removeprefix(BUNDLED).partition(".")
            found.setdefault(name, []).append(part)
    names = [name for name in found if name and len(name) <= MAX_ALIAS_CHARACTERS and _is_storable(name)]
    return {name: encoders_of(found[name]) for name in names[:MOST_EMBEDDINGS_INSIDE]}


def embedding_facts(shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str]) -> dict[str, Any]:
    """What lists say of a textual inversion: width and number of its vectors, and of its training what the file says.

    ``shape`` of one with vectors for two text encoders is the width of both together.
    """
    two = encoders_of(shapes) == 2
    vectors = [shapes[CLIP_L], shapes[CLIP_G]] if two else [next(iter(shapes.values()))]
    said = _opened(metadata.get("embedding", ""))
    training = said if isinstance(said, dict) else {}
    return {
        "encoders": len(vectors),
        "shape": sum(shape[-1] for shape in vectors),
        "vectors": vectors[0][0] if len(vectors[0]) > 1 else 1,
        "step": step if isinstance(step := training.get("step"), int) else None,
        **{name: _short_text(training.get(name)) for name in ("sd_checkpoint", "sd_checkpoint_name")},
    }


def _short_text(value: Any) -> str | None:
    return value[:MAX_ALIAS_CHARACTERS] if isinstance(value, str) and _is_storable(value) else None


def _is_storable(text: str) -> bool:
    """PostgreSQL takes no NUL and nothing UTF-8 cannot say, not even escaped within a JSON text."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text and "\\u0000" not in text and "\\ud" not in text.lower()


def _opened(text: str) -> Any:
    if not text.startswith("{"):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
