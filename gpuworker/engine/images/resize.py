"""A1111's resize modes for pictures and masks. Networks that enlarge are in ``upscale``; here they are a callback.

Source: ``images.resize_image``, A1111 1.10.1.
"""

from __future__ import annotations

from collections.abc import Callable

from PIL import Image

STRETCH, CROP, FILL, LATENT = range(4)
Scale = Callable[[Image.Image, int, int], Image.Image]
"""Picture, width, height → the picture at exactly that size."""


def lanczos(picture: Image.Image, width: int, height: int) -> Image.Image:
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def resized(mode: int, picture: Image.Image, width: int, height: int, scale: Scale = lanczos) -> Image.Image:
    """The picture at that size: stretched, covering it and cut off, or fitted into it with its edges drawn out.

    Args:
        mode: ``STRETCH`` keeps the picture's mode, ``CROP`` and ``FILL`` give RGB. ``LATENT`` does as ``FILL``: pictures that are
            resized as latents do not come here, their masks do.
    """
    if mode == STRETCH:
        return scale(picture, width, height)
    inner_width, inner_height = _inner(picture, width, height, cover=mode == CROP)
    inner = scale(picture, inner_width, inner_height)
    left, top = width // 2 - inner_width // 2, height // 2 - inner_height // 2
    canvas = Image.new("RGB", (width, height))
    canvas.paste(inner, (left, top))
    if mode != CROP:
        _draw_edges_out(canvas, inner, left, top)
    return canvas


def _inner(picture: Image.Image, width: int, height: int, *, cover: bool) -> tuple[int, int]:
    """The picture's own proportions, as large as covers or fits. Never without a pixel, where A1111 fails."""
    wider, narrower = width / height > picture.width / picture.height, width / height < picture.width / picture.height
    if cover:
        by_width, by_height = wider, not wider
    else:
        by_width, by_height = narrower, not narrower
    inner_width = width if by_width else picture.width * height // picture.height
    inner_height = height if by_height else picture.height * width // picture.width
    return max(inner_width, 1), max(inner_height, 1)


def _draw_edges_out(canvas: Image.Image, inner: Image.Image, left: int, top: int) -> None:
    """Fill what is beside the picture with its outermost row or column.

    QUIRK(A1111 1.10): both strips are as wide as the first, so a row or column stays black where the rest is odd.
    """
    width, height = canvas.size
    if top > 0:
        for edge, start in ((0, 0), (inner.height, top + inner.height)):
            canvas.paste(inner.resize((width, top), box=(0, edge, width, edge)), (0, start))
    elif left > 0:
        for edge, start in ((0, 0), (inner.width, left + inner.width)):
            canvas.paste(inner.resize((left, height), box=(edge, 0, edge, height)), (start, 0))
