"""Hypernetworks: small networks that change what every attention layer of their width makes keys and values from.

They run as hooks before ``to_k`` and ``to_v``, so attention itself stays as it is, whoever computes it.

Source: ``modules/hypernetworks/hypernetwork.py`` of A1111 1.10.1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from gpuworker.engine.models.networks.files import LoadedNetwork, Tensors

ACTIVATIONS: dict[str, type[nn.Module]] = {
    **{
        kind.__name__.lower(): kind
        for kind in (
            nn.ReLU, nn.RReLU, nn.Hardtanh, nn.ReLU6, nn.Sigmoid, nn.Hardsigmoid, nn.Tanh, nn.SiLU, nn.Mish, nn.Hardswish,
            nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.Hardshrink, nn.LeakyReLU, nn.LogSigmoid, nn.Softplus, nn.Softshrink,
            nn.PReLU, nn.Softsign, nn.Tanhshrink,
        )
    },
    "swish": nn.Hardswish,
}  # fmt: skip
"""A1111's name → activation. Its "swish" is not the function of that name."""
LINEAR = ("linear", None)
OLD_KEYS = {
    "linear1.weight": "linear.0.weight",
    "linear1.bias": "linear.0.bias",
    "linear2.weight": "linear.1.weight",
    "linear2.bias": "linear.1.bias",
}
TRAINING_DROPOUT = 0.3


class HypernetworkError(Exception):
    """The file's networks are not built as A1111 builds them."""


@dataclass(frozen=True, slots=True)
class Hypernetwork:
    """The two networks of every width, ready to run on the device in float32."""

    networks: Mapping[tuple[int, int], nn.Module]
    """Width, 0 for keys or 1 for values → network."""


def hypernetwork_of(loaded: LoadedNetwork) -> Hypernetwork:
    """Raises: HypernetworkError: The file does not hold what its structure says."""
    try:
        return Hypernetwork(
            {
                (width, side): _filled(_network(width, loaded.structure), state)
                for (width, side), state in loaded.hypernetwork.items()
            }
        )
    except (KeyError, ValueError, TypeError, IndexError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise HypernetworkError(str(error).splitlines()[0]) from error


def _network(width: int, structure: Mapping[str, Any]) -> nn.Sequential:
    """Layers at the places A1111 gives them; dropout, which trains only, leaves its place empty."""
    factors = [float(factor) for factor in structure.get("layer_structure") or (1, 2, 1)]
    if factors[0] != 1 or factors[-1] != 1:
        raise ValueError(f"layer_structure {factors} does not begin and end with 1.")
    activation = structure.get("activation_func")
    activates_output = structure.get("activate_output", True)
    drops = _dropout(structure, len(factors))
    layers: list[nn.Module] = []
    for index in range(len(factors) - 1):
        inputs, outputs = int(width * factors[index]), int(width * factors[index + 1])
        layers.append(nn.Linear(inputs, outputs))
        if activation not in LINEAR and (index < len(factors) - 2 or activates_output):
            layers.append(ACTIVATIONS[activation]())
        if structure.get("is_layer_norm", False):
            layers.append(nn.LayerNorm(outputs))
        if drops[index + 1] > 0:
            layers.append(nn.Identity())
    return nn.Sequential(*layers)


def _dropout(structure: Mapping[str, Any], length: int) -> list[float]:
    """Probability after each layer, as A1111 derives it for files that do not say."""
    given = structure.get("dropout_structure")
    if given is not None:
        return [float(probability) for probability in given]
    if not structure.get("use_dropout", False) or length < 3:
        return [0.0] * length
    last = TRAINING_DROPOUT if structure.get("last_layer_dropout", False) else 0.0
    return [0.0, *[TRAINING_DROPOUT] * (length - 3), last, 0.0]


def _filled(network: nn.Sequential, state: Tensors) -> nn.Module:
    renamed = {OLD_KEYS.get(name, name).removeprefix("linear."): tensor.float() for name, tensor in state.items()}
    network.load_state_dict(renamed, assign=True)
    return network.requires_grad_(False).eval()


# --- in the UNet -----------------------------------------------------------------------------------------------------


class Attachment:
    """Hypernetworks at work in one UNet, in the order of the prompt, until ``remove``."""

    def __init__(self, unet: nn.Module, active: Sequence[tuple[Hypernetwork, float]]) -> None:
        self._handles = [
            projection.register_forward_pre_hook(_Hook(chain))
            for projection, side in _projections(unet)
            if (chain := _chain(active, projection.in_features, side))
        ]

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []


class _Hook:
    """Replaces what a projection is given."""

    def __init__(self, chain: Sequence[tuple[nn.Module, float]]) -> None:
        self._chain = chain

    def __call__(self, module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        context, *others = inputs
        changed = context.float()
        for network, multiplier in self._chain:
            changed = changed + network(changed) * multiplier
        return changed.to(context.dtype), *others


def _chain(active: Sequence[tuple[Hypernetwork, float]], width: int, side: int) -> list[tuple[nn.Module, float]]:
    return [
        (network, multiplier)
        for hypernetwork, multiplier in active
        if (network := hypernetwork.networks.get((width, side))) is not None
    ]


def _projections(unet: nn.Module) -> Iterator[tuple[nn.Linear, int]]:
    """The projections of every attention layer, of the context and of the picture itself: 0 to keys, 1 to values."""
    for name, module in unet.named_modules():
        if isinstance(module, nn.Linear) and name.endswith((".to_k", ".to_v")):
            yield module, 0 if name.endswith(".to_k") else 1
