"""Enlarging pictures and latents as A1111 does: tiles, repeats, roundings. What a network is made of is in ``models/upscalers.py``.

Source: ``modules/upscaler.py``, ``modules/upscaler_utils.py``, ``split_grid`` and ``combine_grid`` of ``modules/images.py``,
``resize_image`` of the same, A1111 1.10.1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from gpuworker.contract import Settings
from gpuworker.contract.recipe import LATENT_MODES
from gpuworker.engine.errors import InvalidSpecError
from gpuworker.engine.models.upscalers import UpscalerNetwork

SIDE_MULTIPLE = 8
"""A1111 floors every enlarged side to this."""
MAX_PIXELS = 2**28
"""More are no picture but a mistake; the doors refuse far fewer."""
REPEATS = 3
"""How often an upscaler is applied at most, until the picture is large enough."""
LANCZOS = Image.Resampling.LANCZOS
PIXELS_PER_CALL_ON_A_CARD = 4 * 192**2
"""Four tiles of the usual size, about 2.5 GB while the largest network runs. On the CPU a batch is no faster."""


class StopSeen(Exception):  # noqa: N818  an expected end, no error
    """The stop flag was raised between two calls of a network."""


@dataclass(frozen=True, slots=True)
class Upscaler:
    """A named way to enlarge."""

    name: str
    apply: Callable[[Image.Image, float], Image.Image]
    """Once: picture and wanted factor → a picture of whatever size this way gives."""


# --- which there are -------------------------------------------------------------------------------------------------


def _resized(resample: Image.Resampling, picture: Image.Image, factor: float) -> Image.Image:
    return picture.resize((int(picture.width * factor), int(picture.height * factor)), resample)


UNCHANGED = Upscaler("None", lambda picture, factor: picture)
BUILT_IN = {
    "None": UNCHANGED,
    "Lanczos": Upscaler("Lanczos", partial(_resized, LANCZOS)),
    "Nearest": Upscaler("Nearest", partial(_resized, Image.Resampling.NEAREST)),
}
"""Those that need no weights."""


def upscaler_of(
    name: str,
    network: UpscalerNetwork | None,
    settings: Settings,
    should_stop: Callable[[], bool] = lambda: False,
) -> Upscaler:
    """The upscaler of that name.

    Args:
        network: Its weights, for one that is not built in.
        should_stop: Looked at before each call of the network, which raises ``StopSeen``.
    Raises:
        InvalidSpecError: There is none, or the tiles are impossible.
    """
    if network is None:
        if name not in BUILT_IN:
            raise InvalidSpecError(f"There is no upscaler named {name!r}.", field="upscaler", value=name)
        return BUILT_IN[name]
    tiles = Tiles(settings.ESRGAN_tile, settings.ESRGAN_tile_overlap)
    return Upscaler(name, lambda picture, factor: tiled(network, picture, tiles, should_stop))


# --- pictures --------------------------------------------------------------------------------------------------------


def upscale(picture: Image.Image, factor: float, upscaler: Upscaler) -> Image.Image:
    """Enlarge by a factor, sides floored to multiples of 8: apply the upscaler until it is enough, then Lanczos.

    A factor below 1 applies nothing, a factor of exactly 1 applies the upscaler once.

    Raises:
        InvalidSpecError: A side would have no pixel, or the picture far too many.
    """
    width, height = _target(picture, factor)
    for repeat in range(REPEATS):
        large_enough = picture.width >= width and picture.height >= height
        if large_enough and (repeat or factor != 1):
            break
        before = picture.size
        picture = upscaler.apply(picture, factor)
        if picture.size == before:
            break
    return picture if picture.size == (width, height) else picture.resize((width, height), LANCZOS)


def _target(picture: Image.Image, factor: float) -> tuple[int, int]:
    width, height = picture.width * factor, picture.height * factor
    size = f"a picture of {picture.width}×{picture.height} pixels"
    if not width * height <= MAX_PIXELS:  # nor is it, of a factor that is no number
        raise InvalidSpecError(f"A factor of {factor} is too much for {size}.", field="factor", value=factor)
    if min(width, height) < SIDE_MULTIPLE:
        raise InvalidSpecError(f"A factor of {factor} leaves nothing of {size}.", field="factor", value=factor)
    return int(width // SIDE_MULTIPLE * SIDE_MULTIPLE), int(height // SIDE_MULTIPLE * SIDE_MULTIPLE)


def resized_to(picture: Image.Image, width: int, height: int, upscaler: Upscaler | None = None) -> Image.Image:
    """Exactly that size: through the upscaler where a side grows, else by Lanczos. Masks (``L``) always by Lanczos.

    None is ``None`` of hires fix and of ``upscaler_for_img2img``: one Lanczos. ``UNCHANGED`` is two of them, as in A1111.
    """
    if upscaler is not None and picture.mode != "L":
        factor = max(width / picture.width, height / picture.height)
        if factor > 1.0:
            picture = upscale(picture, factor, upscaler)
    return picture if picture.size == (width, height) else picture.resize((width, height), LANCZOS)


def enlarge(picture: np.ndarray, width: int, height: int, upscaler: Upscaler | None) -> np.ndarray:
    """``resized_to`` for hires fix.

    Args:
        picture: uint8, shape (height, width, 3), values cut off as ``images.vae.decode`` does. The encoder is to see
            the result as float32 divided by 255.
    """
    return np.array(resized_to(Image.fromarray(picture), width, height, upscaler))


# --- through a network, in tiles -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tiles:
    """Squares of equal size that overlap; size 0 is the whole picture at once. Pixels of the picture that is enlarged."""

    size: int = 192
    overlap: int = 8

    def __post_init__(self) -> None:
        if self.size > 0 and not 0 <= self.overlap < self.size:
            message = f"Tiles of {self.size} pixels cannot overlap by {self.overlap}."
            raise InvalidSpecError(message, field="ESRGAN_tile_overlap", value=self.overlap)

    def starts(self, length: int) -> list[int]:
        """Where tiles begin along a side, evenly spread.

        QUIRK(A1111 1.10): the last one ends with the picture, so one larger than the picture begins before it, and the network
        sees black there.
        """
        count = max(1, math.ceil((length - self.overlap) / (self.size - self.overlap)))
        spacing = (length - self.size) / (count - 1) if count > 1 else 0
        return [min(int(index * spacing), length - self.size) for index in range(count)]


def tiled(
    network: UpscalerNetwork, picture: Image.Image, tiles: Tiles, should_stop: Callable[[], bool] = lambda: False
) -> Image.Image:
    """Enlarge once, by the network's own scale; RGB whatever came in.

    Raises:
        StopSeen: ``should_stop`` said so before a call.
    """
    if tiles.size <= 0:
        (whole,) = _through(network, [picture], should_stop)
        return whole
    tops, lefts, scale = tiles.starts(picture.height), tiles.starts(picture.width), network.scale
    corners = [(left, top) for top in tops for left in lefts]
    cut = [picture.crop((left, top, left + tiles.size, top + tiles.size)) for left, top in corners]
    enlarged = _through(network, cut, should_stop)
    overlap = tiles.overlap * scale
    whole = Image.new("RGB", (picture.width * scale, picture.height * scale))
    for top in tops:
        row = Image.new("RGB", (whole.width, tiles.size * scale))
        for left in lefts:
            _lay(row, next(enlarged), (left * scale, 0), (overlap, 0))
        _lay(whole, row, (0, top * scale), (0, overlap))
    return whole


def _lay(canvas: Image.Image, piece: Image.Image, corner: tuple[int, int], fade: tuple[int, int]) -> None:
    """Put a piece down; along its left or top edge it fades in, unless it begins where the canvas does.

    QUIRK(A1111 1.10): a piece that begins before the canvas fades in too, out of sight.
    """
    across, down = fade
    if corner == (0, 0) or not (across or down):
        canvas.paste(piece, corner)
        return
    size = (across or piece.width, down or piece.height)
    canvas.paste(piece.crop((0, 0, *size)), corner, mask=_ramp(across or down, size, horizontal=bool(across)))
    canvas.paste(piece.crop((across, down, *piece.size)), (corner[0] + across, corner[1] + down))


def _ramp(length: int, size: tuple[int, int], *, horizontal: bool) -> Image.Image:
    values = (np.arange(length, dtype=np.float32) * 255 / length).astype(np.uint8)
    line = values[None, :] if horizontal else values[:, None]
    return Image.fromarray(np.ascontiguousarray(np.broadcast_to(line, (size[1], size[0]))))


def _through(
    network: UpscalerNetwork, pictures: list[Image.Image], should_stop: Callable[[], bool]
) -> Iterator[Image.Image]:
    """Pictures of one size through the network, several per call on a card.

    QUIRK(A1111 1.10): the network sees blue, green, red, whichever order it was trained with. Values are rounded here, while
    those of a decoded picture are cut off.
    """
    weight = next(network.parameters())
    width, height = pictures[0].size
    per_call = max(1, PIXELS_PER_CALL_ON_A_CARD // (width * height)) if weight.is_cuda else 1
    for start in range(0, len(pictures), per_call):
        if should_stop():
            raise StopSeen
        batch = np.stack([np.asarray(picture.convert("RGB")) for picture in pictures[start : start + per_call]])
        with torch.inference_mode():
            values = torch.from_numpy(batch).to(weight.device).permute(0, 3, 1, 2).flip(1)
            made = network((values.to(torch.float32) / 255).to(weight.dtype)).float().clamp(0, 1)
            pixels = (255.0 * made).round().to(torch.uint8).flip(1).permute(0, 2, 3, 1).cpu().numpy()
        yield from map(Image.fromarray, np.ascontiguousarray(pixels))


# --- latents ---------------------------------------------------------------------------------------------------------


def upscale_latents(latents: torch.Tensor, mode: str, size: tuple[int, int]) -> torch.Tensor:
    """Interpolate latents.

    Args:
        latents: Shape (n, channels, height, width).
        mode: A key of ``LATENT_MODES``.
        size: (height, width) in latents.
    """
    interpolation, antialias = LATENT_MODES[mode]
    return functional.interpolate(latents, size=size, mode=interpolation, antialias=antialias)
