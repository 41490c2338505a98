"""Where randomness comes from: one CPU generator per image, so that no picture depends on its neighbours or on the card.

Source: ``ImageRNG``, A1111 1.10 ``modules/rng.py``; for the SDE samplers the Brownian tree of k-diffusion. Both measured against
recorded noise.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
import torchsde
from torchsde._brownian import brownian_interval

from gpuworker.contract import Recipe, Settings
from gpuworker.contract.recipe import LATENT_FACTOR
from gpuworker.engine.sampling.philox import PhiloxGenerator

Shape = tuple[int, int, int]
Noise = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Unit-variance noise for the way from one sigma to the next; shape (images, channels, height, width)."""
Way = tuple[torch.Tensor, torch.Tensor]
PARALLEL_DOT = 0.9995
"""Above this mean cosine two noises are mixed linearly: the sphere between them is flat."""


class PassNoise:
    """The noise of one pass: a first draw per image, then whatever its solver asks for."""

    def __init__(self, recipes: Sequence[Recipe], shape: Shape) -> None:
        self.shape = shape
        self._seeds = [recipe.seed for recipe in recipes]
        self._fill_seeds = [recipe.seed if recipe.fill_seed is None else recipe.fill_seed for recipe in recipes]
        self._settings = recipes[0].settings
        self._generators = [_generator(recipe.seed, self._settings) for recipe in recipes]
        first = [_first_draw(recipe, shape, own) for recipe, own in zip(recipes, self._generators, strict=True)]
        self.first = torch.stack(first)
        """float32 on the CPU, unit variance."""
        self._begins_again = False
        for index, recipe in enumerate(recipes):
            if recipe.ensd:
                self._generators[index] = _generator(recipe.seed + recipe.ensd, self._settings)

    @property
    def fill(self) -> torch.Tensor:
        """What masks are filled with: the first draw of each seed without its variation, float32 on the CPU."""
        return torch.stack([_generator(seed, self._settings).randn(self.shape) for seed in self._fill_seeds])

    def begin_again(self) -> None:
        """The next draw is the first one once more."""
        self._begins_again = True

    def next_draw(self) -> torch.Tensor:
        if self._begins_again:
            self._begins_again = False
            return self.first
        return torch.stack([generator.randn(self.shape) for generator in self._generators])

    def ancestral(self, device: torch.device) -> Noise:
        """Independent draws, in the order they are asked for."""
        return lambda sigma_from, sigma_to: self.next_draw().to(device, non_blocking=True)

    def brownian(self, sigmas: torch.Tensor, device: torch.device) -> Noise:
        """Increments of one Brownian path per image, so that the number of steps does not change the path."""
        low, high = sigmas[sigmas > 0].min(), sigmas.max()
        # One path for all, where A1111's setting from before it drew per image is on.
        shared = self._settings.no_dpmpp_sde_batch_determinism
        seeds = self._seeds[:1] * len(self._seeds) if shared else self._seeds
        with _tree_draws_from(self._settings):
            trees = [torchsde.BrownianTree(low, torch.zeros(self.shape), high, entropy=seed) for seed in seeds]

        def noise(sigma_from: torch.Tensor, sigma_to: torch.Tensor) -> torch.Tensor:
            start, end = sorted((sigma_from, sigma_to))
            sign = 1.0 if sigma_from < sigma_to else -1.0
            with warnings.catch_warnings(), _tree_draws_from(self._settings):
                # The tree rounds its ends to six digits and remarks that a sigma then lies outside; it uses its end there.
                warnings.simplefilter("ignore", UserWarning)
                increments = torch.stack([tree(start, end) for tree in trees]) * sign
            return (increments / (sigma_to - sigma_from).abs().sqrt()).to(device, non_blocking=True)

        return noise


def prepared(noise: Noise, ways: Iterable[Way]) -> Noise:
    """Draw everything a solver will ask for, in its order, before the loop (H3)."""
    draws = iter([noise(*way) for way in ways])
    return lambda sigma_from, sigma_to: next(draws)


class Generator(Protocol):
    def randn(self, shape: Sequence[int]) -> torch.Tensor: ...


class TorchGenerator:
    """torch's own on the CPU; what a card would draw is never used, so that the card does not matter."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator("cpu").manual_seed(seed)

    def randn(self, shape: Sequence[int]) -> torch.Tensor:
        return torch.randn(tuple(shape), generator=self._generator)


def _generator(seed: int, settings: Settings) -> Generator:
    return PhiloxGenerator(seed) if settings.randn_source == "NV" else TorchGenerator(seed)


@contextmanager
def _tree_draws_from(settings: Settings) -> Iterator[None]:
    """torchsde draws through a function of its module; for the card's numbers that is another one meanwhile."""
    if settings.randn_source != "NV":
        yield
        return
    own = brownian_interval._randn
    brownian_interval._randn = lambda size, dtype, device, seed: (
        PhiloxGenerator(int(seed)).randn(size).to(device, dtype)
    )
    try:
        yield
    finally:
        brownian_interval._randn = own


def _first_draw(recipe: Recipe, shape: Shape, own: Generator) -> torch.Tensor:
    """The start noise of one image; takes exactly one full-size draw from its own generator."""
    full = own.randn(shape)
    resized = recipe.seed_resize_from_w > 0 and recipe.seed_resize_from_h > 0
    small: Shape = shape
    if resized:
        small = (shape[0], recipe.seed_resize_from_h // LATENT_FACTOR, recipe.seed_resize_from_w // LATENT_FACTOR)
    noise = full if small == shape else _generator(recipe.seed, recipe.settings).randn(small)
    if recipe.subseed_strength:
        variation = _generator(recipe.subseed, recipe.settings).randn(small)
        noise = slerp(recipe.subseed_strength, noise, variation)
    return noise if small == shape else _pasted(noise, full)


def slerp(share: float, start: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
    """Spherical interpolation of two noises of shape (channels, height, width).

    QUIRK(A1111 1.10): norms are taken down the columns (dimension 1), and the linear mix of near-parallel noises has its shares
    swapped.
    """
    dot = (_unit(start) * _unit(end)).sum(1)
    if dot.mean() > PARALLEL_DOT:
        return start * share + end * (1 - share)
    angle = dot.acos()
    from_start = ((1.0 - share) * angle).sin() / angle.sin()
    from_end = (share * angle).sin() / angle.sin()
    return from_start.unsqueeze(1) * start + from_end.unsqueeze(1) * end


def _unit(noise: torch.Tensor) -> torch.Tensor:
    return noise / noise.norm(dim=1, keepdim=True)


def _pasted(noise: torch.Tensor, full: torch.Tensor) -> torch.Tensor:
    """Noise of another size over the middle of a full draw; what is larger is cut."""
    target_rows, source_rows = _overlap(full.shape[1], noise.shape[1])
    target_columns, source_columns = _overlap(full.shape[2], noise.shape[2])
    pasted = full.clone()
    pasted[:, target_rows, target_columns] = noise[:, source_rows, source_columns]
    return pasted


def _overlap(target: int, source: int) -> tuple[slice, slice]:
    offset = (target - source) // 2
    length = source if offset >= 0 else source + 2 * offset
    into, out_of = max(offset, 0), max(-offset, 0)
    return slice(into, into + length), slice(out_of, out_of + length)
