"""Models that draw nothing: language models that write prompts, and checkers of pictures. Told by the texts in their file.

Their folders are in the layout of transformers; ``folders`` keeps the texts in the metadata of the one file it makes.
"""

from __future__ import annotations

import json
from typing import Any

from assets.models import AssetKind
from assets.scanning import Header, UnsafeFileError
from gpuworker.contract.safety import CHECKER, CHECKER_TENSORS
from gpuworker.contract.texts import ARCHITECTURES, CONFIG, INSTRUCTION, PROMPT_MARK, TOKENIZER, habits_of

COMPANIONS = (AssetKind.TEXT_GENERATOR, AssetKind.SAFETY_FILTER)
MAX_INSTRUCTION_CHARACTERS = 4000
EMBEDDINGS = ("word_embeddings.weight", "wte.weight")
"""How the first tensor of a known architecture ends."""


def companion_family(kind: str, header: Header) -> str:
    """What the family of a companion is called.

    Raises:
        UnsafeFileError: It is not of this kind, lacks a part, or would need code of its own.
    """
    config = _mapping(header, CONFIG)
    if "auto_map" in config:
        raise UnsafeFileError(f"{CONFIG} names code of its own (auto_map), which is never run here.")
    return _generator_family(config, header) if kind == AssetKind.TEXT_GENERATOR else _checker_family(config, header)


def companion_metadata(kind: str, name: str, header: Header) -> dict[str, Any]:
    """How a language model is asked; nothing of others."""
    if kind != AssetKind.TEXT_GENERATOR:
        return {}
    return habits_of(name, header.metadata.get(INSTRUCTION, "")).to_json()


def instruction_require_usable(instruction: str) -> None:
    """Raises: UnsafeFileError: It has no place for the prompt, or is too long."""
    if PROMPT_MARK not in instruction or len(instruction) > MAX_INSTRUCTION_CHARACTERS or "\x00" in instruction:
        raise UnsafeFileError(
            f"The instruction is a text of at most {MAX_INSTRUCTION_CHARACTERS} characters that holds {PROMPT_MARK}."
        )


def _generator_family(config: dict[str, Any], header: Header) -> str:
    family = config.get("model_type")
    if family not in ARCHITECTURES:
        raise UnsafeFileError(f"model_type is {str(family)[:80]!r}; accepted are {', '.join(ARCHITECTURES)}.")
    if not isinstance(_mapping(header, TOKENIZER).get("model"), dict):
        raise UnsafeFileError(f"{TOKENIZER} describes no tokenizer.")
    if not any(name.endswith(EMBEDDINGS) for name in header.shapes):
        raise UnsafeFileError("The weights are not those of a language model: they have no word embeddings.")
    if INSTRUCTION in header.metadata:
        instruction_require_usable(header.metadata[INSTRUCTION])
    return str(family)


def _checker_family(config: dict[str, Any], header: Header) -> str:
    if not isinstance(config.get("vision_config"), dict):
        raise UnsafeFileError(f"{CONFIG} describes no vision model, as that of a safety checker does.")
    if missing := [name for name in CHECKER_TENSORS if name not in header.shapes]:
        raise UnsafeFileError(f"The weights are not those of a safety checker: they lack {missing[0]}.")
    return CHECKER


def _mapping(header: Header, name: str) -> dict[str, Any]:
    if name not in header.metadata:
        raise UnsafeFileError(
            f"The file lacks {name}; take in the model's folder, or a zip archive of it, instead of its weights alone."
        )
    try:
        found = json.loads(header.metadata[name])
    except (ValueError, RecursionError) as error:
        raise UnsafeFileError(f"{name} is not valid JSON.") from error
    if not isinstance(found, dict):
        raise UnsafeFileError(f"{name} is not a JSON map.")
    return found
