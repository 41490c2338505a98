"""What the engine gives back for each image of a pass: a picture, a failure, or the news that it was stopped."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rendered:
    """A finished picture as plain bytes, so that this package needs neither numpy nor Pillow."""

    position: int
    """Index into ``RenderSpec.recipes``."""
    width: int
    height: int
    rgb: bytes
    """uint8 RGB rows, top to bottom, ``width * height * 3`` bytes."""
    gpu_us: int
    """This image's share of the pass on the device, microseconds; the shares of a pass sum to its duration."""


@dataclass(frozen=True, slots=True)
class Failed:
    """One image that could not be made; its neighbours still arrive."""

    position: int
    code: str
    message: str
    retryable: bool
    gpu_us: int = 0


@dataclass(frozen=True, slots=True)
class Stopped:
    """The stop flag was seen before this image was finished."""

    position: int
    gpu_us: int = 0


ImageOutcome = Rendered | Failed | Stopped
