"""What the engine gets for one pass: recipes that share a pass key, and the local files that hold what they name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    pass_key: str = field(init=False)

    def __post_init__(self) -> None:
        if not self.recipes:
            raise ValueError("A pass needs at least one recipe.")
        keys = {recipe.pass_key for recipe in self.recipes}
        if len(keys) > 1:
            raise ValueError("All recipes of a pass must share one pass key.")
        object.__setattr__(self, "pass_key", keys.pop())

    def part(self, positions: Sequence[int]) -> RenderSpec:
        return RenderSpec(tuple(self.recipes[position] for position in positions), self.weights, self.inputs)

    def file_of(self, weights: Weights) -> WeightsFile:
        return self.weights[weights.sha256]

    def path_of(self, picture: InputPicture) -> Path:
        return self.inputs[picture.sha256]
