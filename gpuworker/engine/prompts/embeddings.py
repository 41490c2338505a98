"""Textual inversion: vectors that stand in for the tokens of a name. Reads their files; where they go in a prompt is ``tokens``.

Source: ``modules/textual_inversion/textual_inversion.py`` and ``extensions-builtin/Lora/networks.py`` of A1111 1.10.1.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from gpuworker.contract.prompts import BUNDLED, CLIP_G, CLIP_L

CONVERTED = "string_to_param."
"""How the intake writes the one parameter of a pickled embedding."""
MOST_TENSORS = 8
"""A file with more of them is no embedding."""
Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Embedding:
    """What a name in a prompt is replaced by."""

    name: str
    vectors: tuple[torch.Tensor, ...]
    """One per text encoder of its family, in the order of ``Checkpoint.text``: float32 on the CPU, shape (slots, width)."""
    digest: str
    """Names the content in caches."""

    @property
    def slots(self) -> int:
        """Tokens it takes in a prompt: those of the last encoder, OpenCLIP's in SDXL."""
        return len(self.vectors[-1])

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(vectors.shape[1] for vectors in self.vectors)

    @property
    def size_bytes(self) -> int:
        return sum(vectors.nbytes for vectors in self.vectors)

    def named(self, name: str) -> Embedding:
        """The same under another name: its file may lie under its hash."""
        return replace(self, name=name)


def embedding_of(name: str, tensors: Tensors) -> Embedding | None:
    """An embedding from the tensors of a file, or of the part of one; None when they are something else."""
    if CLIP_L in tensors and CLIP_G in tensors:
        parts = [tensors[CLIP_L], tensors[CLIP_G]]
    else:
        parts = [tensor for key, tensor in tensors.items() if key.startswith(CONVERTED)] or list(tensors.values())
        if len(parts) != 1:
            return None
    vectors = tuple((part.unsqueeze(0) if part.dim() == 1 else part).float() for part in parts)
    if any(part.dim() != 2 or not part.numel() for part in vectors):
        return None
    return Embedding(name, vectors, _digest(vectors))


def read_embeddings(path: Path) -> tuple[Embedding, ...]:
    """The embedding a file is, under the file's stem, or those inside a LoRA file, under their own names.

    QUIRK(A1111 1.10): a file that cannot be read has none, and the words stay words.
    """
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            # Of a LoRA file, which may be large, only these are read.
            bundled = [name for name in names if name.startswith(BUNDLED)]
            tensors = {name: file.get_tensor(name) for name in bundled or names[: MOST_TENSORS + 1]}
    except SafetensorError:
        return ()
    found = _bundled(tensors) if bundled else [embedding_of(path.stem, tensors)] if len(names) <= MOST_TENSORS else []
    return tuple(embedding for embedding in found if embedding)


def fitting(embeddings: Iterable[Embedding], widths: tuple[int, ...]) -> tuple[Embedding, ...]:
    """Those made for text encoders of these widths; the names of the others stay plain words."""
    return tuple(embedding for embedding in embeddings if embedding.widths == widths)


def _bundled(tensors: Tensors) -> list[Embedding | None]:
    bundles: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, part = key.removeprefix(BUNDLED).partition(".")
        bundles.setdefault(name, {})[part] = tensor
    return [embedding_of(name, parts) for name, parts in bundles.items()]


def _digest(vectors: Iterable[torch.Tensor]) -> str:
    content = hashlib.sha256()
    for part in vectors:
        content.update(f"{tuple(part.shape)}".encode())
        content.update(part.contiguous().numpy().tobytes())
    return content.hexdigest()
