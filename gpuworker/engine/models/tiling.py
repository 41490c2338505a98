"""Tiling: while it is on, convolutions wrap around the edges, so that the picture continues itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def tiled(networks: Iterable[Any], *, on: bool) -> Iterator[None]:
    """Args: networks: UNets and VAEs; nothing happens to them when ``on`` is False."""
    convolutions = [
        part for network in networks if on for part in network.modules() if isinstance(part, torch.nn.Conv2d)
    ]
    for convolution in convolutions:
        convolution.padding_mode = "circular"
    try:
        yield
    finally:
        for convolution in convolutions:
            convolution.padding_mode = "zeros"
