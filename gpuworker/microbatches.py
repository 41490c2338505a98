"""How many images go into one pass: learned from ordinary passes, one shape at a time (H5).

A shape is what decides how long a pass takes and how much memory it needs: the checkpoint's family, sizes, halves, control units.
What is learned lies in the database (``fleet.profiles``), so that it outlives this process and serves every worker with such a
card; here is a copy of it, so that the rendering thread waits for no database. Three kinds of pictures have a fixed number: in
exact mode, whose network calls have so many rows in any case; made one by one; and of a size that networks are compiled for.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from django.conf import settings

from assets.models import Asset
from fleet.profiles import (
    PASSES_TO_DOUBT,
    Measured,
    largest_fitting,
    next_size,
    pass_measured,
    pass_too_large,
    profile_read,
    sizes_up_to,
)
from gpuworker.contract import AnyRecipe, DetectRecipe, ExtrasRecipe, Recipe
from gpuworker.contract.extras import extras_size
from gpuworker.contract.flow import FLOW_FAMILIES
from gpuworker.contract.recipe import EXACT_ROWS, floored, hires_canvas, map_size
from gpuworker.renderer import PassMeasure, Renderer
from gpuworker.retrying import retried

logger = logging.getLogger(__name__)
READ_AGAIN_SECONDS = 60
"""So old may be what is known of other workers' passes."""
ONE_BY_ONE_PIXELS = 2_097_152
"""Of pictures that are made one after the other under one claim: more would keep others waiting and gain nothing."""
NEWS = 0.02
"""What changes a known time or memory by less than this share is not written."""


class Microbatches:
    """One per worker. The claiming thread asks, the rendering thread tells, others save."""

    def __init__(self, renderer: Renderer, *, device: str) -> None:
        self._room_bytes: Callable[[], int | None] = getattr(renderer, "room_bytes", lambda: None)
        self._kept = {"device": device, "build": str(getattr(renderer, "build", ""))}
        self._compiled = _compiled_sizes(settings.TORCH_COMPILE_SHAPES)
        self._lock = threading.Lock()
        self._profiles: dict[str, dict[int, Measured]] = {}
        self._read_at: dict[str, float] = {}
        self._networks: dict[str, Network] = {}
        self._underway: tuple[str, int] = ("", 0)
        self._unsaved: list[Callable[[], None]] = []
        self._saving = threading.Lock()

    # --- for the claim -----------------------------------------------------------------------------------------------

    def size_of(self, recipe: AnyRecipe) -> int:
        """How many images like this may be claimed for one pass; reads the database where that was long ago."""
        shape, fixed, most = self._shape(recipe), self._fixed(recipe), settings.MAX_MICROBATCH
        self._read(shape)
        with self._lock:
            profile, (running, underway) = dict(self._profiles[shape]), self._underway
        if fixed is not None:
            return largest_fitting(profile, min(fixed, most))
        underway = underway if running == shape else 0
        return next_size(profile, most, underway=underway, room_bytes=self._room_bytes())

    def _fixed(self, recipe: AnyRecipe) -> int | None:
        """Where nothing is to be learned."""
        if not isinstance(recipe, Recipe):
            width, height = _canvas(recipe)
            return max(1, ONE_BY_ONE_PIXELS // (width * height))
        if recipe.exact:
            # Networks that predict flows are given each image alone in this mode.
            return 1 if self._network(recipe).family in FLOW_FAMILIES else EXACT_ROWS // 2
        return None if recipe.control or recipe.hires or recipe.tiling else self._compiled.get(_canvas(recipe))

    # --- for the rendering thread ------------------------------------------------------------------------------------

    def begin(self, recipe: AnyRecipe, images: int) -> int:
        """A pass of so many images begins, or of fewer if so many are known not to fit: the answer."""
        shape = self._shape(recipe)
        with self._lock:
            images = largest_fitting(self._profiles.get(shape, {}), images)
            self._underway = shape, images
        return images

    def measured(self, recipe: AnyRecipe, images: int, measure: PassMeasure) -> None:
        shape, told = self._shape(recipe), {"image_call_ns": measure.image_call_ns, "peak_bytes": measure.peak_bytes}
        with self._lock:
            self._underway = "", 0
            if images not in sizes_up_to(settings.MAX_MICROBATCH):
                return
            profile = self._profiles.setdefault(shape, {})
            before = profile.get(images, Measured())
            profile[images] = after = before.with_pass(**told)
        if _is_news(before, after):
            self._unsaved.append(partial(pass_measured, **self._kept, shape=shape, images=images, **told))

    def too_large(self, recipe: AnyRecipe, images: int) -> None:
        """A pass did not fit; half of it may be tried."""
        shape = self._shape(recipe)
        with self._lock:
            self._profiles.setdefault(shape, {})[images] = Measured(too_large=True)
            self._underway = "", 0
        self._unsaved.append(partial(pass_too_large, **self._kept, shape=shape, images=images))

    # --- the rows ----------------------------------------------------------------------------------------------------

    @property
    def has_news(self) -> bool:
        return bool(self._unsaved)

    def save(self) -> None:
        """In a thread beside the rendering one. What cannot be written is learned anew some day."""
        with self._saving:
            while self._unsaved:
                try:
                    retried(self._unsaved[0])
                except Exception:
                    logger.exception("What a pass has shown could not be written")
                self._unsaved.pop(0)  # not before, or what is read meanwhile would lack it

    def _read(self, shape: str) -> None:
        if shape in self._read_at and time.monotonic() - self._read_at[shape] < READ_AGAIN_SECONDS:
            return
        was_unsaved = bool(self._unsaved)  # what is written while this reads may be missing in it
        found = profile_read(**self._kept, shape=shape)
        with self._lock:
            own = self._profiles.get(shape, {}) if was_unsaved or self._unsaved else {}
            self._profiles[shape] = {**found, **own}
            self._read_at[shape] = time.monotonic()

    # --- shapes ------------------------------------------------------------------------------------------------------

    def _shape(self, recipe: AnyRecipe) -> str:
        return shape_of(recipe, self._network(recipe) if isinstance(recipe, Recipe) else None)

    def _network(self, recipe: Recipe) -> Network:
        sha256 = recipe.checkpoint.sha256
        if sha256 not in self._networks:
            row = Asset.objects.filter(sha256=sha256).order_by("pk").values_list("family", "size_bytes").first()
            self._networks[sha256] = Network(*row) if row else Network("", 0)
        return self._networks[sha256]


@dataclass(frozen=True, slots=True)
class Network:
    """What is known of a checkpoint before it is loaded."""

    family: str
    size_bytes: int

    def __str__(self) -> str:
        """With the order of magnitude of its file, for networks of one family may be of very different size."""
        magnitude = 1_000_000
        while magnitude < self.size_bytes:
            magnitude *= 10
        below = f"{magnitude // 10**9} GB" if magnitude >= 10**9 else f"{magnitude // 10**6} MB"
        return f"{self.family or 'unknown'} below {below}"


def shape_of(recipe: AnyRecipe, network: Network | None) -> str:
    """What pictures share whose passes take equally long and need the same memory, as people may read it."""
    width, height = _canvas(recipe)
    if not isinstance(recipe, Recipe):
        return f"{'control map' if isinstance(recipe, DetectRecipe) else 'enlarged'} {width}x{height}"
    parts = [f"{network} {width}x{height}"]
    if recipe.hires:
        larger = hires_canvas(recipe.width, recipe.height, recipe.hires)
        parts.append(f"then {floored(larger[0])}x{floored(larger[1])}")
    if recipe.cfg_scale == 1:
        parts.append("without negative half")
    if recipe.img2img and recipe.img2img.image_cfg_scale is not None:
        parts.append("guided by its picture")
    if recipe.control:
        parts.append(f"{len(recipe.control)} control units")
    if recipe.refiner:
        parts.append("refiner")
    if recipe.exact:
        parts.append("exact")
    return ", ".join(parts)


def _canvas(recipe: AnyRecipe) -> tuple[int, int]:
    match recipe:
        case Recipe():
            return floored(recipe.width), floored(recipe.height)
        case ExtrasRecipe():
            return extras_size(recipe)
        case DetectRecipe():
            return map_size(recipe)


def _is_news(before: Measured, after: Measured) -> bool:
    if before.image_call_ns is None or before.passes < PASSES_TO_DOUBT or after.image_call_ns is None:
        return True
    faster = after.image_call_ns < before.image_call_ns * (1 - NEWS)
    return faster or after.peak_bytes > before.peak_bytes * (1 + NEWS)


def _compiled_sizes(texts: Sequence[str]) -> dict[tuple[int, int], int]:
    """Width and height in pixels → the most images the networks are compiled for."""
    sizes: dict[tuple[int, int], int] = {}
    for text in texts:
        width, height, images = (int(part) for part in text.split("x"))
        sizes[width, height] = max(images, sizes.get((width, height), 0))
    return sizes
