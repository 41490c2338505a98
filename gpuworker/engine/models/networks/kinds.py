"""How each kind of LoRA and LyCORIS network turns its tensors into a change of one layer's weights: one function per kind.

Pure arithmetic in float32 on the base weights' device. Which layer and how much is decided elsewhere. A tensor that does not fit
the layer raises torch's own ``RuntimeError`` or ``IndexError``.

Source: ``extensions-builtin/Lora/network.py``, ``network_*.py`` and ``lyco_helpers.py`` of A1111 1.10.1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch

from gpuworker.engine.models.networks.files import Parts

Shape = tuple[int, ...]
INPAINTING_CHANNELS = 9
"""Of a checkpoint that paints in: networks made for the 4 channels of others leave the rest alone."""


@dataclass(frozen=True, slots=True)
class Target:
    """The layer as it is now, and how much of each network may be used."""

    weight: torch.Tensor
    """float32; networks merged before are in it."""
    ranks: int | None = None
    """Only the first so many ranks of a LoRA."""

    @property
    def is_convolution(self) -> bool:
        return self.weight.dim() == 4


@dataclass(frozen=True, slots=True)
class Delta:
    """What a kind computed, before scale and multiplier."""

    weight: torch.Tensor
    shape: Shape
    """As the kind lays the weight out; it is the layer's own in the end where the number of values is."""
    rank: int | None = None
    """Divides ``alpha``; kinds without one ignore it."""
    bias: torch.Tensor | None = None


def change(parts: Parts, target: Target, multiplier: float) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What to add to weight and bias.

    Raises:
        LookupError: No kind knows these parts.
        RuntimeError, IndexError: The parts do not fit the layer.
    """
    delta = kind_of(parts)(parts, target)
    weight, base = delta.weight, target.weight
    if (bias := parts.get("bias")) is not None:
        weight = (weight.reshape(bias.shape) + bias).reshape(delta.shape)
    if len(delta.shape) == 4:
        weight = weight.reshape(delta.shape)
    if weight.numel() == base.numel():
        weight = weight.reshape(base.shape)
    weight = weight * _scale(parts, delta)
    if (magnitude := parts.get("dora_scale")) is not None:
        weight = _decomposed(weight, base, magnitude)
    weight = weight * multiplier
    if base.dim() == 4 and base.shape[1] == INPAINTING_CHANNELS:
        # QUIRK(A1111 1.10): five more channels are assumed whatever the file brings, so one made for nine does not fit.
        weight = torch.nn.functional.pad(weight, (0, 0, 0, 0, 0, 5))
    return weight, None if delta.bias is None else delta.bias * multiplier


def _scale(parts: Parts, delta: Delta) -> float:
    alpha = parts.numbers.get("alpha")
    given = parts.numbers.get("scale")
    if given is not None:
        return given
    return 1.0 if alpha is None or delta.rank is None else alpha / delta.rank


def _decomposed(weight: torch.Tensor, base: torch.Tensor, magnitude: torch.Tensor) -> torch.Tensor:
    """DoRA: the direction of base and change together, of the trained magnitude.

    QUIRK(A1111 1.10): the norm is taken for every input, also for files whose magnitudes are those of outputs.
    """
    merged = weight + base
    columns = merged.transpose(0, 1)
    norms = columns.reshape(columns.shape[0], -1).norm(dim=1, keepdim=True)
    norms = norms.reshape(columns.shape[0], *[1] * (base.dim() - 1)).transpose(0, 1)
    return merged * (magnitude / norms) - base


# --- low rank --------------------------------------------------------------------------------------------------------


def lora(parts: Parts, target: Target) -> Delta:
    """``lora_mid`` makes it a Tucker decomposition (LoCon with ``use_cp``)."""
    return _low_rank(parts["lora_up.weight"], parts["lora_down.weight"], parts.get("lora_mid.weight"), target)


def peft_lora(parts: Parts, target: Target) -> Delta:
    """The same under other names. QUIRK(A1111 1.10): ``alpha`` has no effect."""
    return replace(_low_rank(parts["lora_B.weight"], parts["lora_A.weight"], None, target), rank=None)


def _low_rank(up: torch.Tensor, down: torch.Tensor, middle: torch.Tensor | None, target: Target) -> Delta:
    rank, kernel = down.shape[0], down.shape[2:] if target.is_convolution else ()
    flat_up, flat_down = up.reshape(up.shape[0], -1), down.reshape(rank, -1)
    if middle is not None:
        weight = torch.einsum("n m k l, i n, m j -> i j k l", middle, flat_up, flat_down)
        return Delta(weight, tuple(weight.shape), rank)
    weight = flat_up[:, : target.ranks] @ flat_down[: target.ranks]
    shape = (up.shape[0], flat_down.shape[1]) if not kernel else (up.shape[0], down.shape[1], *kernel)
    return Delta(weight, shape, rank)


def loha(parts: Parts, target: Target) -> Delta:
    """The Hadamard product of two low-rank weights."""
    first, second = (
        _tucker_or_product(parts.get(f"hada_t{side}"), parts[f"hada_w{side}_a"], parts[f"hada_w{side}_b"])
        for side in (1, 2)
    )
    if first.dim() != second.dim():
        first, second = first.reshape(target.weight.shape), second.reshape(target.weight.shape)
    weight = first * second
    return Delta(weight, tuple(weight.shape), parts["hada_w1_b"].shape[0])


def lokr(parts: Parts, target: Target) -> Delta:
    """The Kronecker product of a small and a larger weight, each whole or of low rank."""
    first, rank = _whole_or_product(parts, "lokr_w1", None)
    second, second_rank = _whole_or_product(parts, "lokr_w2", parts.get("lokr_t2"))
    if second.dim() == 4:
        first = first[:, :, None, None]
    weight = torch.kron(first, second.contiguous())
    shape = tuple(target.weight.shape) if target.is_convolution else tuple(weight.shape)
    return Delta(weight.reshape(shape), shape, rank if second_rank is None else second_rank)


def _whole_or_product(parts: Parts, name: str, core: torch.Tensor | None) -> tuple[torch.Tensor, int | None]:
    down = parts.get(f"{name}_b")
    whole = parts.get(name)
    rank = None if down is None else down.shape[0]
    return (
        (whole, rank) if whole is not None else (_tucker_or_product(core, parts[f"{name}_a"], parts[f"{name}_b"]), rank)
    )


def _tucker_or_product(core: torch.Tensor | None, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """``left``: (out, rank), or (rank, out) before a ``core`` of (rank, rank, height, width); ``right``: (rank, in, …)."""
    if core is None:
        flat = left.reshape(left.shape[0], -1) @ right.reshape(right.shape[0], -1)
        return flat.reshape(left.shape[0], *right.shape[1:])
    return torch.einsum("i j k l, j r, i p -> p r k l", core, right, left)


def glora(parts: Parts, target: Target) -> Delta:
    """A low-rank change plus one that depends on the weights themselves.

    QUIRK(A1111 1.10): ``alpha`` is required and has no effect.
    """
    weight = parts["b2.weight"] @ parts["b1.weight"] + (target.weight @ parts["a2.weight"]) @ parts["a1.weight"]
    return Delta(weight, (parts["a1.weight"].shape[0], parts["b1.weight"].shape[1]))


# --- whole weights ---------------------------------------------------------------------------------------------------


def full(parts: Parts, target: Target) -> Delta:
    return Delta(parts["diff"], tuple(parts["diff"].shape), bias=parts.get("diff_b"))


def norm(parts: Parts, target: Target) -> Delta:
    return Delta(parts["w_norm"], tuple(parts["w_norm"].shape), bias=parts["b_norm"])


def ia3(parts: Parts, target: Target) -> Delta:
    """A factor per input or per output."""
    factors = parts["weight"]
    shape = (factors.shape[0], target.weight.shape[1])
    if parts.numbers.get("on_input"):
        return Delta(target.weight * factors, shape[::-1])
    return Delta(target.weight * factors.reshape(-1, 1), shape)


# --- orthogonal ------------------------------------------------------------------------------------------------------


def oft(parts: Parts, target: Target) -> Delta:
    """Blocks of outputs are rotated; with four-dimensional blocks in several rounds over other neighbours (BOFT)."""
    base = target.weight
    rotations = parts.get("oft_diag")
    if rotations is None:
        rotations = _rotations(parts, outputs=base.shape[0])
    turned = _butterfly(rotations, base) if rotations.dim() == 4 else _turned(rotations, base)
    if (factors := parts.get("rescale")) is not None:
        turned = factors.reshape(-1, *[1] * (base.dim() - 1)) * turned
    return Delta(turned - base, tuple(base.shape))


def _rotations(parts: Parts, *, outputs: int) -> torch.Tensor:
    """Cayley's transform of the skew-symmetric part; ``alpha`` bounds its norm.

    The part before the transform is computed in the file's own type, as A1111 does.
    """
    blocks = parts.tensors["oft_blocks"]
    skew = blocks - blocks.transpose(-1, -2)
    if limit := parts.numbers.get("alpha", 0.0) * outputs:
        length = torch.norm(skew.flatten())
        allowed = torch.clamp(length, max=torch.tensor(limit, dtype=length.dtype, device=length.device))
        skew = skew * ((allowed.float() + 1e-8) / (length.float() + 1e-8)).to(skew.dtype)
    identity = torch.eye(skew.shape[-1], device=skew.device)
    return torch.matmul(identity + skew, (identity - skew).inverse())


def _turned(rotations: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """``rotations``: (blocks, size, size); the outputs of the weight are blocks × size."""
    blocks = weight.reshape(rotations.shape[0], rotations.shape[1], -1)
    return torch.einsum("k n m, k n w -> k m w", rotations, blocks).reshape(weight.shape)


def _butterfly(rounds: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """``rounds``: (rounds, blocks, size, size); in round i outputs 2**i × size / 2 apart are neighbours."""
    size = rounds.shape[-1]
    rows = weight.reshape(weight.shape[0], -1)
    for index, rotations in enumerate(rounds):
        apart = 2**index * (size // 2)
        shuffled = rows.reshape(-1, 2, apart, rows.shape[1]).transpose(1, 2)
        turned = torch.einsum("b i j, b j w -> b i w", rotations, shuffled.reshape(-1, size, rows.shape[1]))
        rows = turned.reshape(-1, apart, 2, rows.shape[1]).transpose(1, 2).reshape(rows.shape)
    return rows.reshape(weight.shape)


# --- which kind ------------------------------------------------------------------------------------------------------

Kind = Callable[[Parts, Target], Delta]


def _has(*names: str) -> Callable[[set[str]], bool]:
    return lambda parts: parts.issuperset(names)


def _has_factors(parts: set[str]) -> bool:
    return all({f"lokr_w{side}"} <= parts or {f"lokr_w{side}_a", f"lokr_w{side}_b"} <= parts for side in (1, 2))


KINDS: tuple[tuple[Callable[[set[str]], bool], Kind], ...] = (
    (_has("lora_up.weight", "lora_down.weight"), lora),
    (_has("lora_A.weight", "lora_B.weight"), peft_lora),
    (_has("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"), loha),
    (_has("weight", "on_input"), ia3),
    (_has_factors, lokr),
    (_has("diff"), full),
    (_has("w_norm", "b_norm"), norm),
    (_has("a1.weight", "a2.weight", "alpha", "b1.weight", "b2.weight"), glora),
    (_has("oft_blocks"), oft),
    (_has("oft_diag"), oft),
)
"""What a kind needs, in A1111's order: the first that has it all is the layer's kind."""


def kind_of(parts: Parts) -> Kind:
    """Raises: LookupError: No kind knows these parts."""
    names = parts.tensors.keys() | parts.numbers.keys()
    for fits, kind in KINDS:
        if fits(names):
            return kind
    raise LookupError(_listed(names))


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)[:5])
