"""The random numbers an NVIDIA card draws for a seed, on any machine.

Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3" (Philox-4×32-10); Box and Muller 1958. The use
of the counter follows what torch's CUDA ``randn`` does for one number per thread, as A1111 1.10 reproduces it for ``NV``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
WORD = 0xFFFFFFFF
TO_UNIT = np.float32(2.3283064e-10)
"""2 to the minus 32."""
TO_CIRCLE = np.float32(2.3283064e-10 * 6.2831855)


class PhiloxGenerator:
    """Draws as a card's generator of that seed; each draw moves the counter by one."""

    def __init__(self, seed: int) -> None:
        self._key = (seed & WORD, seed >> 32 & WORD)
        self._draws = 0

    def randn(self, shape: Sequence[int]) -> torch.Tensor:
        """Unit-variance noise, float32 on the CPU."""
        count = math.prod(shape)
        counter = [
            np.full(count, self._draws, np.uint32),
            np.zeros(count, np.uint32),
            np.arange(count, dtype=np.uint32),
        ]
        self._draws += 1
        first, second = _philox([*counter, np.zeros(count, np.uint32)], self._key)
        radius = np.sqrt(-2.0 * np.log(first * TO_UNIT + TO_UNIT / 2))
        angle = second * TO_CIRCLE + TO_CIRCLE / 2
        return torch.from_numpy((radius * np.sin(angle)).astype(np.float32).reshape(tuple(shape)))


def _philox(counter: list[np.ndarray], key: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The first two of four words of each counter."""
    for turn in range(ROUNDS):
        round_key = [np.uint32((part + turn * step) & WORD) for part, step in zip(key, KEY_STEPS, strict=True)]
        high_0, low_0 = _product(counter[0], MULTIPLIERS[0])
        high_2, low_2 = _product(counter[2], MULTIPLIERS[1])
        counter = [high_2 ^ counter[1] ^ round_key[0], low_2, high_0 ^ counter[3] ^ round_key[1], low_0]
    return counter[0], counter[1]


def _product(words: np.ndarray, multiplier: np.uint64) -> tuple[np.ndarray, np.ndarray]:
    """Upper and lower half of the 64-bit product."""
    whole = words.astype(np.uint64) * multiplier
    return (whole >> np.uint64(32)).astype(np.uint32), (whole & np.uint64(WORD)).astype(np.uint32)
