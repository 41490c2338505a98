"""What is loaded: checkpoints with the networks merged into them, VAEs and what else a pass opens; least recently used goes first.

Knows files and sizes. What is done with a model is not decided here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from gpuworker.contract import NetworkUse, RenderSpec, Weights, WeightsFile
from gpuworker.contract.texts import TextSpec
from gpuworker.engine.errors import ControlNetworkError
from gpuworker.engine.models.cache import ByteCache
from gpuworker.engine.models.controlnets import ControlNetwork, load_controlnet, require_same_build
from gpuworker.engine.models.flow import FlowModel, load_flow
from gpuworker.engine.models.loader import Checkpoint, load_checkpoint, load_vae
from gpuworker.engine.models.networks import ActiveNetwork, NetworkMerger, load_network
from gpuworker.engine.models.safety_checkers import SafetyChecker, load_safety_checker
from gpuworker.engine.models.text_generators import TextGenerator, load_text_generator
from gpuworker.engine.models.upscalers import UpscalerNetwork, load_upscaler
from gpuworker.engine.prompts.embeddings import Embedding, read_embeddings

Model = TypeVar("Model")


@dataclass(frozen=True, slots=True)
class LoadedCheckpoint:
    """A checkpoint on the device and what is merged into it."""

    checkpoint: Checkpoint
    networks: NetworkMerger
    key: str
    """Names the file in other caches."""


class ModelShelf:
    """All weights of one renderer, within one limit in bytes."""

    def __init__(self, device: torch.device, dtype: torch.dtype, max_bytes: int) -> None:
        self.device = device
        self.dtype = dtype
        self.max_bytes = max_bytes
        self._kept: ByteCache[Any] = ByteCache(max_bytes, size_of=_size_bytes)

    def report(self) -> list[dict[str, Any]]:
        """Kind, sha-256 and bytes of every file that is loaded; another thread may ask."""
        kept: list[tuple[Any, Any]] = self._kept.kept()
        return [
            {"kind": kind.split()[0], "sha256": file.split()[0], "bytes": _size_bytes(value)}
            for (kind, file), value in kept
        ]

    def checkpoint(self, spec: RenderSpec, weights: Weights) -> LoadedCheckpoint:
        """Raises: CheckpointError: The file is no checkpoint the engine can render with."""
        file = spec.file_of(weights)
        key = _key(weights, file)

        def load() -> LoadedCheckpoint:
            self._kept.make_room(file.path.stat().st_size)
            loaded = load_checkpoint(file.path, config_path=file.config_path, device=self.device, dtype=self.dtype)
            return LoadedCheckpoint(loaded, NetworkMerger(loaded), key)

        return self._kept.get_or_make(("checkpoint", key), load)

    def flow(self, spec: RenderSpec, weights: Weights) -> FlowModel:
        """Raises: CheckpointError: The file is no Stable Diffusion 3 or Flux, or lacks a part."""
        return self.model("flow", spec, weights, lambda path: load_flow(path, device=self.device, dtype=self.dtype))

    def holds(self, spec: RenderSpec, weights: Weights) -> bool:
        """Whether that checkpoint is loaded."""
        return ("checkpoint", _key(weights, spec.file_of(weights))) in self._kept

    def vae(self, spec: RenderSpec, weights: Weights, like: LoadedCheckpoint) -> LoadedCheckpoint:
        """The same checkpoint with another VAE; its other networks are shared."""

        def load(path: Path) -> Any:
            return load_vae(path, like=like.checkpoint, device=self.device, dtype=self.dtype)

        vae = self.model("vae", spec, weights, load)
        return replace(like, checkpoint=replace(like.checkpoint, vae=vae))

    def model(self, kind: str, spec: RenderSpec | TextSpec, weights: Weights, load: Callable[[Path], Model]) -> Model:
        """Any other model of one file, loaded by ``load(path)`` unless it is here."""
        file = spec.file_of(weights)

        def loaded() -> Model:
            self._kept.make_room(file.path.stat().st_size)
            return load(file.path)

        return self._kept.get_or_make((kind, weights.sha256), loaded)

    def controlnet(self, spec: RenderSpec, weights: Weights, like: LoadedCheckpoint) -> ControlNetwork:
        """
        Raises:
            CheckpointError: The file is no ControlNet.
            ControlNetworkError: It does not go with that checkpoint.
        """

        def load(path: Path) -> ControlNetwork:
            return load_controlnet(path, like=like.checkpoint, device=self.device, dtype=self.dtype)

        # How many attention heads it has is the checkpoint's to say.
        kind = f"controlnet {like.checkpoint.unet.config.attention_head_dim}"
        try:
            network = self.model(kind, spec, weights, load)
            require_same_build(network.model.config, like.checkpoint)
        except ControlNetworkError as error:
            raise ControlNetworkError(f"ControlNet {weights.name!r} {error}") from None
        return network

    def upscaler(self, spec: RenderSpec, weights: Weights) -> UpscalerNetwork:
        """Full precision on any device, as A1111 runs them."""
        return self.model("upscaler", spec, weights, lambda path: load_upscaler(path, device=self.device))

    def safety_checker(self, spec: RenderSpec, weights: Weights) -> SafetyChecker:
        """Raises: CheckpointError: The file is no safety checker."""
        return self.model("safety checker", spec, weights, lambda path: load_safety_checker(path, device=self.device))

    def text_generator(self, spec: TextSpec, weights: Weights) -> TextGenerator:
        """Raises: CheckpointError: The file is no language model the engine knows."""

        def load(path: Path) -> TextGenerator:
            return load_text_generator(path, device=self.device, dtype=self.dtype)

        return self.model("text generator", spec, weights, load)

    def embeddings(self, spec: RenderSpec, weights: Weights) -> tuple[Embedding, ...]:
        return self.model("embeddings", spec, weights, read_embeddings)

    def active_networks(self, spec: RenderSpec, uses: Sequence[NetworkUse]) -> tuple[ActiveNetwork, ...]:
        return tuple(ActiveNetwork(self.model("network", spec, use.weights, load_network), use) for use in uses)


def _key(weights: Weights, file: WeightsFile) -> str:
    """The configuration beside a file is part of what is built from it."""
    return f"{weights.sha256} {file.config_path}"


def _size_bytes(kept: Any) -> int:
    if isinstance(kept, LoadedCheckpoint):
        return kept.checkpoint.size_bytes
    if isinstance(kept, torch.nn.Module):
        return sum(tensor.nbytes for tensor in kept.state_dict().values())
    if isinstance(kept, tuple):
        return sum(_size_bytes(part) for part in kept)
    return int(kept.size_bytes)
