"""B5: our PNG path against Pillow at its default level, on a picture like a photograph and on one like flat art, 1024².

Both sides hold the same pixels, which is checked. How much larger our file may be is part of the goal.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageDraw

from benchmarks.pairs import Ratio, measured
from gpuworker.contract import Picture
from gpuworker.encoding import DEFLATERS, FASTEST, png_of

SIDE_PX = 1024
PILLOW_LEVEL = 6
PAIRS = 9
GOALS = {("isal", "natural"): 25.0, ("isal", "flat"): 18.0, ("zlib", "natural"): 7.0, ("zlib", "flat"): 3.5}
MAX_SIZE = {"natural": 1.25, "flat": 1.4}
"""Bytes of our file over those of Pillow's."""


def natural() -> Ratio:
    return _against_pillow("natural", FASTEST)


def flat() -> Ratio:
    return _against_pillow("flat", FASTEST)


def natural_without_wheel() -> Ratio:
    return _against_pillow("natural", "zlib")


def flat_without_wheel() -> Ratio:
    return _against_pillow("flat", "zlib")


def _against_pillow(subject: str, deflater: str) -> Ratio:
    pixels = natural_picture() if subject == "natural" else flat_picture()
    image = Image.fromarray(pixels)
    picture = Picture(SIDE_PX, SIDE_PX, pixels.tobytes(), "RGB")

    def ours() -> bytes:
        return png_of(picture, {}, DEFLATERS[deflater])

    def pillow() -> bytes:
        data = io.BytesIO()
        image.save(data, "PNG", compress_level=PILLOW_LEVEL)
        return data.getvalue()

    assert Image.open(io.BytesIO(ours())).tobytes() == picture.pixels
    size_ratio = len(ours()) / len(pillow())
    assert size_ratio <= MAX_SIZE[subject], size_ratio
    return measured(
        name=f"B5-{subject}-{deflater}",
        meaning=f"Pillow level {PILLOW_LEVEL} ÷ our PNG path with {deflater}, {subject} picture",
        goal=f"≥ {GOALS[deflater, subject]:g}",
        above=pillow,
        below=ours,
        pairs=PAIRS,
        notes={"side_px": SIDE_PX, "size_ratio": round(size_ratio, 3), "size_goal": MAX_SIZE[subject]},
    )


def natural_picture() -> np.ndarray:
    """Clouds with the spectrum of photographs (amplitude falls with frequency), three like channels, a little grain."""
    random = np.random.default_rng(1)
    squared = np.fft.fftfreq(SIDE_PX)[:, None] ** 2 + np.fft.rfftfreq(SIDE_PX)[None, :] ** 2
    squared[0, 0] = np.inf

    def clouds() -> np.ndarray:
        spectrum = np.fft.rfft2(random.standard_normal((SIDE_PX, SIDE_PX))) / squared**0.8
        values = np.fft.irfft2(spectrum, (SIDE_PX, SIDE_PX))
        return values / values.std()

    light = clouds()
    channels = [light + 0.25 * clouds() + 0.02 * random.standard_normal(light.shape) for _ in range(3)]
    return np.clip(128 + 45 * np.stack(channels, -1), 0, 255).astype(np.uint8)


def flat_picture() -> np.ndarray:
    """Outlined shapes in plain colours with smooth edges."""
    random = np.random.default_rng(2)
    canvas = Image.new("RGB", (2 * SIDE_PX, 2 * SIDE_PX), (240, 230, 210))
    draw = ImageDraw.Draw(canvas)
    for index in range(60):
        x, y, size = random.integers((0, 0, 20), (2 * SIDE_PX, 2 * SIDE_PX, 400)).tolist()
        shape = draw.ellipse if index % 2 else draw.rectangle
        shape((x, y, x + size, y + size * 0.8), fill=tuple(random.integers(0, 256, 3).tolist()), outline=0, width=6)
    return np.asarray(canvas.resize((SIDE_PX, SIDE_PX), Image.Resampling.LANCZOS))
