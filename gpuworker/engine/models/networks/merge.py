"""Puts networks into a checkpoint and takes them out again, without a trace.

Weights are changed in place, never replaced, so what was compiled stays valid. Each is computed anew from a copy of its own base
in float32 and rounded once; nothing is ever subtracted. Copies exist only of the weights that differ at the time.

Source: ``network_apply_weights`` and ``load_networks`` in ``extensions-builtin/Lora/networks.py`` of A1111 1.10.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch

from gpuworker.contract import NetworkUse
from gpuworker.engine.models.loader import Checkpoint
from gpuworker.engine.models.networks.files import LoadedNetwork, Parts
from gpuworker.engine.models.networks.hypernetworks import (
    Attachment,
    Hypernetwork,
    HypernetworkError,
    hypernetwork_of,
)
from gpuworker.engine.models.networks.kinds import Target, change, kind_of
from gpuworker.engine.models.networks.names import ATTENTION_PARTS, Layer, Layers, layer_named, layers_of


@dataclass(frozen=True, slots=True)
class ActiveNetwork:
    """A file that a recipe uses, and how."""

    network: LoadedNetwork
    use: NetworkUse

    @property
    def name(self) -> str:
        return self.use.weights.name

    @property
    def key(self) -> tuple[object, ...]:
        return self.use.kind, self.use.weights.sha256, self.use.te, self.use.unet, self.use.dyn


@dataclass(frozen=True, slots=True)
class _Base:
    """What a layer was before any network."""

    weight: torch.Tensor
    bias: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class _Step:
    """One network's part in one layer."""

    network: int
    """Index into the active networks."""
    parts: Parts
    multiplier: float
    ranks: int | None


class NetworkMerger:
    """The networks in one checkpoint. Not safe for two threads, as the checkpoint is not."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._layers: Layers | None = None
        self._bases: dict[str, _Base] = {}
        self._matched: WeakKeyDictionary[LoadedNetwork, dict[str, Parts] | None] = WeakKeyDictionary()
        """The layers a file changes here; None for a file that A1111 would not load."""
        self._built: WeakKeyDictionary[LoadedNetwork, Hypernetwork] = WeakKeyDictionary()
        self._attached: Attachment | None = None
        self._merged: object = ()
        """What is in the weights now; None while they are being changed."""
        self._hooked: object = ()
        self._warnings: dict[str, list[str]] = {"lora": [], "hypernet": []}

    @property
    def size_bytes(self) -> int:
        """Of the base copies, which come and go with the networks."""
        tensors = (tensor for base in self._bases.values() for tensor in (base.weight, base.bias))
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)

    @torch.inference_mode()
    def use(self, active: Sequence[ActiveNetwork]) -> list[str]:
        """Make the checkpoint what it is with exactly these networks, in this order. The same again costs nothing.

        Returns:
            What had no effect, one sentence each.
        """
        loras = _last_use_counts([one for one in active if one.use.kind != "hypernet"])
        if (wanted := tuple(one.key for one in loras)) != self._merged:
            self._merged = None
            self._warnings["lora"] = self._merge(loras)
            self._merged = wanted
        hypernetworks = [one for one in active if one.use.kind == "hypernet"]
        if (wanted := tuple(one.key for one in hypernetworks)) != self._hooked:
            self._hooked = None
            self._warnings["hypernet"] = self._attach(hypernetworks)
            self._hooked = wanted
        return self._warnings["lora"] + self._warnings["hypernet"]

    # --- LoRA and LyCORIS --------------------------------------------------------------------------------------------

    def _merge(self, active: Sequence[ActiveNetwork]) -> list[str]:
        warnings: list[str] = []
        steps: dict[str, list[_Step]] = {}
        for index, one in enumerate(active):
            one.network.move_to(self._device)
            matched = self._match(one.network)
            if not matched:
                warnings.append(_no_effect(one.name, unknown=matched is None))
            for name, parts in (matched or {}).items():
                multiplier = one.use.te if self._known[name].is_text else one.use.unet
                if multiplier:
                    steps.setdefault(name, []).append(_Step(index, parts, multiplier, one.use.dyn))
        for name in self._bases.keys() - steps.keys():
            self._restore(name)
        misfits = [0] * len(active)
        for name, layer_steps in steps.items():
            for index in self._change(name, layer_steps):
                misfits[index] += 1
        warnings += (_misfit(one.name, count) for one, count in zip(active, misfits, strict=True) if count)
        return warnings

    def _change(self, name: str, steps: Sequence[_Step]) -> list[int]:
        """Compute a layer anew; the networks that did not fit, and were left out, are returned."""
        layer = self._known[name]
        base = self._bases.get(name) or _Base(layer.module.weight, layer.module.bias)
        weight = base.weight.float()
        bias = None if base.bias is None else base.bias.float()
        misfits: list[int] = []
        for step in steps:
            try:
                weight, bias = _applied(layer, step, weight, bias)
            except (RuntimeError, IndexError) as error:
                if isinstance(error, torch.OutOfMemoryError):
                    raise
                misfits.append(step.network)
        if len(misfits) < len(steps):
            self._write(name, layer, weight, bias)
        elif name in self._bases:
            self._restore(name)
        return misfits

    def _write(self, name: str, layer: Layer, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        module = layer.module
        if name not in self._bases:
            kept = None if module.bias is None else module.bias.clone()
            self._bases[name] = _Base(module.weight.clone(), kept)
        module.weight.copy_(weight)
        if bias is None:
            return
        if module.bias is None:
            module.bias = torch.nn.Parameter(bias.to(module.weight.dtype), requires_grad=False)
        else:
            module.bias.copy_(bias)

    def _restore(self, name: str) -> None:
        module, base = self._known[name].module, self._bases[name]
        module.weight.copy_(base.weight)
        if base.bias is None:
            module.bias = None
        else:
            module.bias.copy_(base.bias)
        del self._bases[name]

    # --- which layers ------------------------------------------------------------------------------------------------

    @property
    def _device(self) -> torch.device:
        return self._checkpoint.unet.conv_in.weight.device

    @property
    def _known(self) -> Layers:
        if self._layers is None:
            self._layers = layers_of(self._checkpoint)
        return self._layers

    def _match(self, network: LoadedNetwork) -> dict[str, Parts] | None:
        """The file's parts by layer; None when a layer's parts are of no known kind: A1111 loads nothing of such a file."""
        if network not in self._matched:
            matched: dict[str, Parts] = {}
            for key, parts in network.layers.items():
                if name := layer_named(key, self._known):
                    joined = matched.setdefault(name, Parts())
                    joined.tensors.update(parts.tensors)
                    joined.numbers.update(parts.numbers)
            self._matched[network] = self._without_half_attentions(matched) if _all_known(matched) else None
        return self._matched[network]

    def _without_half_attentions(self, matched: dict[str, Parts]) -> dict[str, Parts]:
        def is_whole(name: str) -> bool:
            attention = self._known[name].attention
            return attention is None or all(f"{attention}_{part}" in matched for part in ATTENTION_PARTS)

        return {name: parts for name, parts in matched.items() if is_whole(name)}

    # --- hypernetworks -----------------------------------------------------------------------------------------------

    def _attach(self, active: Sequence[ActiveNetwork]) -> list[str]:
        if self._attached:
            self._attached.remove()
            self._attached = None
        warnings: list[str] = []
        built: list[tuple[Hypernetwork, float]] = []
        for one in active:
            try:
                built.append((self._hypernetwork(one.network), one.use.te))
            except HypernetworkError as error:
                warnings.append(f"The hypernetwork {one.name} cannot be used: {error}.")
        if built:
            self._attached = Attachment(self._checkpoint.unet, built)
        return warnings

    def _hypernetwork(self, network: LoadedNetwork) -> Hypernetwork:
        network.move_to(self._device)
        if network not in self._built:
            self._built[network] = hypernetwork_of(network)
        return self._built[network]


def _last_use_counts(active: Sequence[ActiveNetwork]) -> list[ActiveNetwork]:
    """QUIRK(A1111 1.10): a file named twice is merged twice, both times as its last tag says."""
    last = {one.use.weights.sha256: one for one in active}
    return [last[one.use.weights.sha256] for one in active]


def _applied(
    layer: Layer, step: _Step, weight: torch.Tensor, bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Raises: RuntimeError, IndexError: The parts do not fit."""
    added, added_bias = change(step.parts, Target(weight, step.ranks), step.multiplier)
    merged = weight + added
    if merged.shape != weight.shape:
        raise RuntimeError(f"{tuple(added.shape)} does not fit {tuple(weight.shape)}.")
    if added_bias is None or not layer.takes_bias:
        return merged, bias
    return merged, added_bias if bias is None else bias + added_bias


def _all_known(matched: dict[str, Parts]) -> bool:
    try:
        for parts in matched.values():
            kind_of(parts)
    except LookupError:
        return False
    return True


def _no_effect(name: str, *, unknown: bool) -> str:
    why = "it is of no known kind" if unknown else "it is made for another kind of model"
    return f"The network {name} has no effect: {why}."


def _misfit(name: str, count: int) -> str:
    return f"The network {name} does not fit {count} of this model's layers, which stay without it."
