"""What becomes of a picture that the safety filter catches: blurred beyond recognition, or black; and of what comes along."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from gpuworker.contract import Attachment, Picture
from gpuworker.contract.outcome import MASK_COMPOSITE
from gpuworker.contract.safety import BLURRED

BLUR_LONG_SIDE_PX = 8
"""So many colours are left along the longer side."""


def censored(picture: Picture, verdict: str) -> Picture:
    """Of the same size and mode; what was transparent stays so."""
    image = Image.frombytes(picture.mode, (picture.width, picture.height), picture.pixels)
    colours = _blurred(image.convert("RGB")) if verdict == BLURRED else Image.new("RGB", image.size)
    made = colours.convert(picture.mode)
    if "A" in picture.mode:
        made.putalpha(image.getchannel("A"))
    return Picture(picture.width, picture.height, made.tobytes(), picture.mode)


def censored_along(attachments: Sequence[Attachment], verdict: str) -> list[Attachment]:
    """What shows the same as the picture; masks and control maps show what the caller sent."""
    return [
        Attachment(one.role, censored(one.picture, verdict)) if one.role == MASK_COMPOSITE else one
        for one in attachments
    ]


def _blurred(image: Image.Image) -> Image.Image:
    factor = BLUR_LONG_SIDE_PX / max(image.size)
    small = image.resize(
        (max(1, round(image.width * factor)), max(1, round(image.height * factor))), Image.Resampling.BOX
    )
    return small.resize(image.size, Image.Resampling.BICUBIC)
