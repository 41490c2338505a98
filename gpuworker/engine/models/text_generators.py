"""Language models that write prompts, and their tokenizers: loaded from the one file that the intake made of their folder.

Only architectures of ``contract.texts`` are built, by the classes of transformers; a tokenizer is data for the tokenizers library.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer
from transformers import CONFIG_MAPPING

from gpuworker.contract.texts import ARCHITECTURES, CONFIG, TOKENIZER
from gpuworker.engine.errors import CheckpointError
from gpuworker.engine.models.loader import Place, fill
from gpuworker.engine.models.tensor_files import read_metadata, read_separately

PREFIX, HEAD = "transformer.", "lm_head.weight"
TIED_TO = {"bloom": "word_embeddings.weight", "gpt2": "wte.weight"}
"""Where the last layer's weights are, in files that have none of their own."""
CONTEXT = {"bloom": "seq_length", "gpt2": "n_positions"}
"""Field of the configuration with the most tokens it was trained on; Bloom's is missing from newer files."""
DEFAULT_CONTEXT = 2048


@dataclass(frozen=True, slots=True)
class TextGenerator:
    model: Any
    tokenizer: Tokenizer
    context: int
    """Tokens, what is asked and what is answered together."""
    ends: frozenset[int]
    """Tokens that end a text."""

    @property
    def size_bytes(self) -> int:
        """Tied weights count once."""
        return sum(parameter.nbytes for parameter in self.model.parameters())


def load_text_generator(path: Path, *, device: torch.device, dtype: torch.dtype) -> TextGenerator:
    """
    Raises:
        CheckpointError: The file is damaged, of another architecture, or its tokenizer cannot be read.
    """
    texts = read_metadata(path)
    plain = _mapping(texts, CONFIG)
    family = plain.get("model_type")
    if family not in ARCHITECTURES:
        raise CheckpointError(f"{path.name} is no language model that is known here: its model_type is {family!r}.")
    tokenizer = _tokenizer(texts)
    try:
        config = CONFIG_MAPPING[family].from_dict(plain)
        with torch.device("meta"):
            model: Any = getattr(transformers, ARCHITECTURES[family])(config)
    except Exception as error:  # transformers checks configurations by errors of many kinds
        raise CheckpointError(f"The configuration of {path.name} cannot be used: {error}") from error
    tensors = {name.removeprefix(PREFIX): tensor for name, tensor in read_separately(path).items()}
    names = {name: name.removeprefix(PREFIX) for name in model.state_dict()}
    if HEAD not in tensors:
        names[HEAD] = TIED_TO[family]
    fill(model, tensors, names, "language model", family, Place(device, dtype))
    return TextGenerator(model, tokenizer, int(plain.get(CONTEXT[family]) or DEFAULT_CONTEXT), _ends(config))


def _ends(config: Any) -> frozenset[int]:
    found = config.eos_token_id
    return frozenset(found if isinstance(found, list) else [] if found is None else [found])


def _tokenizer(texts: dict[str, str]) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_str(texts[TOKENIZER])
    except Exception as error:  # the library raises bare exceptions
        raise CheckpointError(f"{TOKENIZER} cannot be read: {error}") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _mapping(texts: dict[str, str], name: str) -> dict[str, Any]:
    try:
        found = json.loads(texts[name])
    except (KeyError, ValueError, RecursionError) as error:
        raise CheckpointError(f"The language model's {name} is missing or damaged.") from error
    return found if isinstance(found, dict) else {}
