"""What the engine gives back for each image of a pass: a picture, a failure, or the news that it was stopped."""

from __future__ import annotations

from dataclasses import dataclass

CONTROL_MAP = "control_map"
"""Role of the picture a control network was shown."""
MASK_COMPOSITE = "mask_composite"
"""Role of what was drawn, cut out by its mask."""


@dataclass(frozen=True, slots=True)
class Picture:
    """Plain bytes, so that this package needs neither numpy nor Pillow."""

    width: int
    height: int
    pixels: bytes
    """uint8 rows, top to bottom, as many bytes per pixel as the mode has letters."""
    mode: str = "RGB"
    """Pillow's: ``L``, ``RGB`` or ``RGBA``."""


@dataclass(frozen=True, slots=True)
class Attachment:
    """A picture that comes along with a rendered one."""

    role: str
    """``mask``, ``MASK_COMPOSITE`` or ``CONTROL_MAP``."""
    picture: Picture


@dataclass(frozen=True, slots=True)
class Rendered:
    """A finished picture."""

    position: int
    """Index into ``RenderSpec.recipes``."""
    picture: Picture
    gpu_us: int
    """This image's share of the pass on the device, microseconds; the shares of a pass sum to its duration."""
    attachments: tuple[Attachment, ...] = ()
    """In A1111's order."""
    warnings: tuple[str, ...] = ()
    """What was asked for and had no effect, one sentence each: a LoRA of another family, say."""
    verdict: str = ""
    """Of the safety filter, one of ``safety.VERDICTS``; empty where none was asked."""


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
