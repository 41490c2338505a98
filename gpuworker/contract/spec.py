"""What the engine gets for one pass: recipes that share a pass key, and the local file that holds their weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gpuworker.contract.recipe import Recipe


@dataclass(frozen=True, slots=True)
class CheckpointFile:
    """A safetensors file on the worker's own disk. Its neighbour ``<stem>.yaml`` is honoured when ``config_path`` is set."""

    sha256: str
    path: Path
    config_path: Path | None = None


@dataclass(frozen=True, slots=True)
class RenderSpec:
    """One micro-batch. Outcomes refer to images by their position in ``recipes``."""

    recipes: tuple[Recipe, ...]
    checkpoint: CheckpointFile

    def __post_init__(self) -> None:
        if not self.recipes:
            raise ValueError("A pass needs at least one recipe.")
        if len({recipe.pass_key for recipe in self.recipes}) != 1:
            raise ValueError("All recipes of a pass must share one pass key.")
