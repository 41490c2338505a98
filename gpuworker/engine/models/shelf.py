"""What is loaded: checkpoints with the networks merged into them, VAEs and what else a pass opens; least recently used goes first.

Beside a card, what goes is parked in the machine's memory. Knows files and sizes. What is done with a model is not decided here.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from gpuworker.contract import NetworkUse, RenderSpec, Weights, WeightsFile
from gpuworker.contract.texts import TextSpec
from gpuworker.engine.errors import ControlNetworkError
from gpuworker.engine.models.cache import ByteCache
from gpuworker.engine.models.controlnets import ControlNetwork, load_controlnet, require_same_build
from gpuworker.engine.models.flow import FlowModel, load_flow
from gpuworker.engine.models.host_memory import HostMemory
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
    """All weights of one renderer, within one limit in bytes, and those that left the card, within another."""

    def __init__(
        self,
        device: torch.device,
        dtype: torch.dtype,
        max_bytes: int,
        *,
        max_host_bytes: int = 0,
        parks: bool | None = None,
    ) -> None:
        """
        Args:
            max_host_bytes: Of the machine's memory, beside a card. Without one, all weights are within ``max_bytes``.
            parks: Whether what goes is kept in the machine's memory; None is where there is a card.
        """
        self.device = device
        self.dtype = dtype
        self.max_bytes = max_bytes
        self.parks = device.type == "cuda" if parks is None else parks
        self.host = HostMemory(max_host_bytes if self.parks else max_bytes, pinned=device.type == "cuda")
        self._kept: ByteCache[Any] = ByteCache(max_bytes, size_of=_size_bytes, on_drop=self._dropped)
        self._in_use: set[Hashable] = set()
        """Keys of what this pass has asked for, and so may hold."""

    def begin(self) -> None:
        """A pass begins, so the last one holds nothing any more."""
        self._in_use.clear()

    def drop_unused(self) -> None:
        """Let go of everything this pass has not asked for: there is no room."""
        self._kept.drop([key for key, _ in self._kept.kept() if key not in self._in_use])

    def report(self) -> list[dict[str, Any]]:
        """Kind, sha-256 and bytes of every file that is loaded or parked; another thread may ask."""
        kept: list[tuple[Any, Any]] = self._kept.kept()
        parked: list[tuple[Any, Any]] = self.host.parked()
        return [
            {"kind": kind.split()[0], "sha256": file.split()[0], "bytes": _size_bytes(value)}
            for (kind, file), value in kept
        ] + [
            {"kind": f"{kind.split()[0]}, parked", "sha256": file.split()[0], "bytes": value.size_bytes}
            for (kind, file), value in parked
        ]

    def read_ahead(self, spec: RenderSpec, weights: Weights) -> None:
        """Read the file of a checkpoint that a later pass needs; called in another thread while one runs."""
        file = spec.file_of(weights)
        keys = (("checkpoint", _key(weights, file)), ("flow", weights.sha256))
        if any(key in self._kept or key in self.host for key in keys):
            return
        if self.parks or self._kept.used_bytes + file.path.stat().st_size <= self.max_bytes:
            self.host.read_ahead(file.path)

    def _keep(self, key: Hashable, path: Path, load: Callable[[], Model]) -> Model:
        """What is loaded, is parked, or else is loaded now."""
        self._in_use.add(key)

        def make() -> Model:
            parked = self.host.take(key)  # first, for making room parks others
            # Without a card, what was read ahead for a later pass is in the same memory.
            others = 0 if self.parks else self.host.bytes_ahead(besides=path)
            self._kept.make_room(others + (parked.size_bytes if parked else path.stat().st_size))
            return parked.moved_to(self.device) if parked else load()

        return self._kept.get_or_make(key, make)

    def _dropped(self, key: Hashable, value: Any) -> None:
        """What the running pass may hold cannot be moved from under it."""
        modules = _modules_of(value)
        if not (self.parks and modules) or key in self._in_use:
            return
        if isinstance(value, LoadedCheckpoint):
            value.networks.use(())
        self.host.park(key, value, modules)

    def checkpoint(self, spec: RenderSpec, weights: Weights) -> LoadedCheckpoint:
        """Raises: CheckpointError: The file is no checkpoint the engine can render with."""
        file = spec.file_of(weights)
        key = _key(weights, file)

        def load() -> LoadedCheckpoint:
            loaded = load_checkpoint(
                file.path, config_path=file.config_path, device=self.device, dtype=self.dtype, read=self.host.read
            )
            return LoadedCheckpoint(loaded, NetworkMerger(loaded), key)

        return self._keep(("checkpoint", key), file.path, load)

    def flow(self, spec: RenderSpec, weights: Weights) -> FlowModel:
        """Raises: CheckpointError: The file is no Stable Diffusion 3 or Flux, or lacks a part."""

        def load(path: Path) -> FlowModel:
            return load_flow(path, device=self.device, dtype=self.dtype, read=self.host.read)

        return self.model("flow", spec, weights, load)

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
        path = spec.file_of(weights).path
        return self._keep((kind, weights.sha256), path, partial(load, path))

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


def _modules_of(kept: Any) -> list[torch.nn.Module]:
    """Of what is worth parking; the rest is small or read again in no time."""
    match kept:
        case LoadedCheckpoint():
            checkpoint = kept.checkpoint
            return [checkpoint.unet, checkpoint.vae, *(tower.model for tower in checkpoint.text)]
        case FlowModel():
            texts = [part.network for part in (*kept.clip, kept.t5) if part]
            return [kept.transformer, kept.vae, *texts]
        case ControlNetwork():
            return [kept.model, kept.hint_encoder]
        case torch.nn.Module():
            return [kept]
    return []


def _size_bytes(kept: Any) -> int:
    if isinstance(kept, LoadedCheckpoint):
        return kept.checkpoint.size_bytes
    if isinstance(kept, torch.nn.Module):
        return sum(tensor.nbytes for tensor in kept.state_dict().values())
    if isinstance(kept, tuple):
        return sum(_size_bytes(part) for part in kept)
    return int(kept.size_bytes)
