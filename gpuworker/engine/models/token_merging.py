"""Token merging for the time of a pass: the most alike tokens of a picture share one place in self-attention.

Works on the transformer blocks at the latents' own resolution only, by hooks that leave no trace; SDXL has no such block, and so
nothing is merged there.

Source: Bolya and Hoffman 2023, "Token Merging for Fast Stable Diffusion", as tomesd 0.1.3 does it for A1111 1.10
(``apply_token_merging``): two by two windows, self-attention only, no randomness.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.transformers.transformer_2d import Transformer2DModel

WINDOW = 2
"""Tokens along a side of the squares of which one token stays in place."""


@contextmanager
def token_merging(unet: Any, ratio: float) -> Iterator[None]:
    """Merge this share of the tokens, 0 to 1, in every self-attention that sees as many tokens as the latents have places."""
    with ExitStack() as hooks:
        if ratio > 0:
            merging = _Merging(ratio)
            _hooked(hooks, unet.register_forward_pre_hook(merging.sees_latents))
            for module in unet.modules():
                if isinstance(module, Transformer2DModel):
                    for block in module.transformer_blocks:
                        _hook_block(hooks, block, merging)
        yield


def _hook_block(hooks: ExitStack, block: Any, merging: _Merging) -> None:
    _hooked(hooks, block.register_forward_pre_hook(merging.sees_block))
    _hooked(hooks, block.attn1.register_forward_pre_hook(merging.merges))
    _hooked(hooks, block.attn1.register_forward_hook(merging.takes_apart))


def _hooked(hooks: ExitStack, handle: Any) -> None:
    hooks.callback(handle.remove)


class _Merging:
    """The hooks, and what they hand on to each other from a block's start to the end of its self-attention."""

    def __init__(self, ratio: float) -> None:
        self._ratio = ratio
        self._size = (0, 0)
        self._matches: Matches | None = None

    def sees_latents(self, unet: Any, inputs: tuple[Any, ...]) -> None:
        self._size = tuple(inputs[0].shape[-2:])

    def sees_block(self, block: Any, inputs: tuple[Any, ...]) -> None:
        tokens = inputs[0]
        height, width = self._size
        fits = tokens.shape[1] == height * width and min(height, width) >= WINDOW
        merged = int(tokens.shape[1] * self._ratio)
        self._matches = matched(tokens, height, width, merged) if fits and merged else None

    def merges(self, attention: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        return (self._matches.merged(inputs[0]), *inputs[1:]) if self._matches else None

    def takes_apart(self, attention: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor | None:
        return self._matches.taken_apart(output) if self._matches else None


@dataclass(frozen=True, slots=True)
class Matches:
    """Which tokens of each row go together. All fields hold places among the row's tokens but ``targets``."""

    kept: torch.Tensor
    """Tokens that stay by themselves, shape (rows, kept, 1)."""
    moved: torch.Tensor
    """Tokens that are merged into another, shape (rows, moved, 1)."""
    targets: torch.Tensor
    """Where those go: positions within ``fixed``, shape (rows, moved, 1)."""
    fixed: torch.Tensor
    """The upper left token of each window, shape (rows, windows, 1)."""

    def merged(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens of shape (rows, tokens, width) with merged ones averaged: first the kept, then the fixed."""
        width = tokens.shape[-1]
        moved = _at(tokens, self.moved)
        fixed = _at(tokens, self.fixed).scatter_reduce(1, self.targets.expand(-1, -1, width), moved, reduce="mean")
        return torch.cat([_at(tokens, self.kept), fixed], dim=1)

    def taken_apart(self, tokens: torch.Tensor) -> torch.Tensor:
        """The inverse of ``merged``: a merged token has the value of the one it went into."""
        kept, fixed = tokens.split([self.kept.shape[1], self.fixed.shape[1]], dim=1)
        places = torch.cat([self.kept, self.fixed, self.moved], dim=1).expand(-1, -1, tokens.shape[-1])
        values = torch.cat([kept, fixed, _at(fixed, self.targets)], dim=1)
        return torch.empty_like(values).scatter_(1, places, values)


def matched(tokens: torch.Tensor, height: int, width: int, merged: int) -> Matches:
    """Find the partner of every token outside ``fixed`` by cosine, and merge so many of the closest.

    Args:
        tokens: Shape (rows, height * width, channels), row by row of the picture.
    """
    fixed, free = _places(height, width, tokens.device)
    directions = tokens / tokens.norm(dim=-1, keepdim=True)
    closeness, partners = (directions[:, free] @ directions[:, fixed].transpose(1, 2)).max(dim=-1)
    order = closeness.argsort(dim=-1, descending=True)
    moved, kept = order[:, :merged], order[:, merged:]
    return Matches(
        kept=free[kept].unsqueeze(-1),
        moved=free[moved].unsqueeze(-1),
        targets=partners.gather(1, moved).unsqueeze(-1),
        fixed=fixed.view(1, -1, 1).expand(len(tokens), -1, -1),
    )


def _places(height: int, width: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """The upper left token of every whole window, and all others."""
    is_fixed = torch.zeros(height, width, dtype=torch.bool)
    is_fixed[: height // WINDOW * WINDOW : WINDOW, : width // WINDOW * WINDOW : WINDOW] = True
    is_fixed = is_fixed.flatten()
    fixed, free = is_fixed.nonzero().squeeze(1), (~is_fixed).nonzero().squeeze(1)
    return fixed.to(device, non_blocking=True), free.to(device, non_blocking=True)


def _at(tokens: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    return tokens.gather(1, places.expand(-1, -1, tokens.shape[-1]))
