"""What the engine gets for one pass: recipes that share a pass key, and the local files that hold what they name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gpuworker.contract.recipe import AnyRecipe, InputPicture, Weights


@dataclass(frozen=True, slots=True)
class WeightsFile:
    """A safetensors file on the worker's own disk. Its neighbour ``<stem>.yaml`` is honoured when ``config_path`` is set."""

    path: Path
    config_path: Path | None = None


@dataclass(frozen=True, slots=True)
class RenderSpec:
    """One micro-batch. Outcomes refer to images by their position in ``recipes``."""

    recipes: tuple[AnyRecipe, ...]
    weights: Mapping[str, WeightsFile] = field(default_factory=dict)
    """sha-256 → file, for every ``Weights`` of the recipes."""
    inputs: Mapping[str, Path] = field(default_factory=dict)
    """sha-256 → file as the caller sent it, for every ``InputPicture`` of the recipes."""

    def __post_init__(self) -> None:
        if not self.recipes:
            raise ValueError("A pass needs at least one recipe.")
        if len(self.recipes) > 1 and any(recipe.pass_key != self.recipes[0].pass_key for recipe in self.recipes):
            raise ValueError("All recipes of a pass must share one pass key.")

    def file_of(self, weights: Weights) -> WeightsFile:
        return self.weights[weights.sha256]

    def path_of(self, picture: InputPicture) -> Path:
        return self.inputs[picture.sha256]
