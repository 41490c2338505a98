"""Modules that make a control map of a picture and need no weights of their own.

Values are those of sd-webui-controlnet 1.1.455, to the bit. Thresholds have been checked at the door.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from gpuworker.contract.control_modules import BY_NAME
from gpuworker.engine.errors import InvalidSpecError

PAD_TO = 64
"""Modules see pictures whose sides are a multiple of this many pixels; what was added is cut off again."""
SHUFFLE_CELL = 256
COLOUR_CELL = 64
RGBA = 4


def detected(
    module: str,
    picture: np.ndarray,
    *,
    resolution: int = 512,
    threshold_a: float = 0.0,
    threshold_b: float = 0.0,
    seed: int | None = None,
) -> np.ndarray:
    """The control map of a picture.

    Args:
        module: Its plain name, as in ``MODULES``.
        picture: uint8, shape (height, width, 3), or 4 channels for inpainting modules: the fourth is the mask, 255 drawn anew.
        resolution: Short side in pixels that the module works at; some keep the picture's own.
        seed: Of ``shuffle``; None draws anew every time.
    Returns:
        uint8, shape (height, width, 3 or 4).
    Raises:
        InvalidSpecError: There is no such module.
    """
    if module not in MODULES:
        raise InvalidSpecError(
            f"ControlNet module {module!r} is not available; available are {', '.join(MODULES)}.",
            field="module",
            value=module,
        )
    return MODULES[module](picture, resolution, threshold_a, threshold_b, seed)


def plain_name(module: str) -> str:
    """Of a name or a label."""
    return BY_NAME[module].name if module in BY_NAME else module


def rgb(picture: np.ndarray) -> np.ndarray:
    """Three channels: greys repeated, what is transparent laid over white."""
    if picture.ndim == 2:
        picture = picture[:, :, None]
    if picture.shape[2] == 1:
        return np.repeat(picture, 3, axis=2)
    if picture.shape[2] != RGBA:
        return picture
    colours, opacity = picture[:, :, :3].astype(np.float32), picture[:, :, 3:].astype(np.float32) / 255
    return (colours * opacity + 255 * (1 - opacity)).clip(0, 255).astype(np.uint8)


def _scaled(picture: np.ndarray, resolution: int) -> np.ndarray:
    """Its short side at the resolution."""
    picture = rgb(picture)
    height, width = picture.shape[:2]
    factor = resolution / min(height, width)
    size = int(np.round(width * factor)), int(np.round(height * factor))
    return cv2.resize(picture, size, interpolation=cv2.INTER_CUBIC if factor > 1 else cv2.INTER_AREA)


def _padded(picture: np.ndarray) -> np.ndarray:
    """Edges repeated below and to the right; blurs at those edges reach into it."""
    height, width = picture.shape[:2]
    return np.pad(picture, [(0, -height % PAD_TO), (0, -width % PAD_TO), (0, 0)], mode="edge")


def _on_padded(make: Callable[[np.ndarray, float, float], np.ndarray]) -> Module:
    def module(picture: np.ndarray, resolution: int, a: float, b: float, seed: int | None) -> np.ndarray:
        scaled = _scaled(picture, resolution)
        height, width = scaled.shape[:2]
        return rgb(np.ascontiguousarray(make(_padded(scaled), a, b)[:height, :width]))

    return module


def _on_scaled(make: Callable[[np.ndarray, float, float], np.ndarray]) -> Module:
    return lambda picture, resolution, a, b, seed: make(_scaled(picture, resolution), a, b)


def _on_own_size(make: Callable[[np.ndarray, float, float], np.ndarray]) -> Module:
    return lambda picture, resolution, a, b, seed: make(rgb(picture), a, b)


def _same(picture: np.ndarray, resolution: int, a: float, b: float, seed: int | None) -> np.ndarray:
    return picture


def _canny(picture: np.ndarray, low: float, high: float) -> np.ndarray:
    return cv2.Canny(picture, int(low), int(high))


def _threshold(picture: np.ndarray, least: float, _: float) -> np.ndarray:
    return np.where(picture.min(axis=2, keepdims=True) > least, np.uint8(255), np.uint8(0))


def _scribble_xdog(picture: np.ndarray, threshold: float, _: float) -> np.ndarray:
    """Difference of two Gaussians."""
    values = picture.astype(np.float32)
    difference = cv2.GaussianBlur(values, (0, 0), 5.0) - cv2.GaussianBlur(values, (0, 0), 0.5)
    inverted = (255 - difference.min(axis=2)).clip(0, 255).astype(np.uint8)
    # QUIRK(sd-webui-controlnet 1.1.455): doubled in eight bits, so strong lines wrap around.
    return np.where(2 * (255 - inverted) > threshold, np.uint8(255), np.uint8(0))


def _lineart_standard(picture: np.ndarray, a: float, b: float) -> np.ndarray:
    """How much darker a pixel is than its surroundings."""
    values = picture.astype(np.float32)
    darker = (cv2.GaussianBlur(values, (0, 0), 6.0) - values).min(axis=2).clip(0, 255)
    lines = darker[darker > 8]
    usual = np.median(lines) if lines.size else 0
    return (darker / max(16, usual) * 127).clip(0, 255).astype(np.uint8)


def _tile_resample(picture: np.ndarray, factor: float, _: float) -> np.ndarray:
    if factor < 1.1:
        return picture
    height, width = picture.shape[:2]
    return cv2.resize(picture, (int(width / factor), int(height / factor)), interpolation=cv2.INTER_AREA)


def _blurred(picture: np.ndarray, sigma: float, _: float) -> np.ndarray:
    return cv2.GaussianBlur(picture, (0, 0), float(sigma))


def _recolor(space: int, channel: int) -> Callable[[np.ndarray, float, float], np.ndarray]:
    def lightness(picture: np.ndarray, gamma: float, _: float) -> np.ndarray:
        values = cv2.cvtColor(picture, space)[:, :, channel].astype(np.float32) / 255
        return rgb((values**gamma * 255).clip(0, 255).astype(np.uint8))

    return lightness


def _colour_grid(picture: np.ndarray, resolution: int, a: float, b: float, seed: int | None) -> np.ndarray:
    picture = rgb(picture)
    height, width = picture.shape[:2]
    if height < width:
        size = int(round(width / height * resolution)), resolution
    else:
        size = resolution, int(round(height / width * resolution))
    scaled = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    cells = max(size[0] // COLOUR_CELL, 1), max(size[1] // COLOUR_CELL, 1)
    few = cv2.resize(scaled, cells, interpolation=cv2.INTER_CUBIC)
    return cv2.resize(few, size, interpolation=cv2.INTER_NEAREST)


def _shuffle(picture: np.ndarray, resolution: int, a: float, b: float, seed: int | None) -> np.ndarray:
    """Each pixel from somewhere else, neighbours from nearby."""
    random = np.random.RandomState(seed)
    scaled = _scaled(picture, resolution)
    height, width = scaled.shape[:2]
    columns = _smooth_noise(random, height, width) * float(width - 1)
    rows = _smooth_noise(random, height, width) * float(height - 1)
    flow = np.stack([columns, rows], axis=2).astype(np.float32)
    return cv2.remap(scaled, flow, None, cv2.INTER_LINEAR)  # type: ignore[call-overload]


def _smooth_noise(random: np.random.RandomState, height: int, width: int) -> np.ndarray:
    """0…1, float64, shape (height, width)."""
    cell = SHUFFLE_CELL
    coarse = random.uniform(size=(height // cell + 2, width // cell + 2, 1))
    fine = cv2.resize(coarse, (width + 2 * cell, height + 2 * cell), interpolation=cv2.INTER_CUBIC)
    inner = fine[cell : cell + height, cell : cell + width]
    raised = inner - inner.min()
    return raised / raised.max()


Module = Callable[[np.ndarray, int, float, float, int | None], np.ndarray]
MODULES: dict[str, Module] = {
    "none": _same,
    "canny": _on_padded(_canny),
    "invert": _on_own_size(lambda picture, a, b: 255 - picture),
    "threshold": _on_padded(_threshold),
    "scribble_xdog": _on_padded(_scribble_xdog),
    "lineart_standard": _on_padded(_lineart_standard),
    "tile_resample": _on_own_size(_tile_resample),
    "tile_colorfix": _same,
    "tile_colorfix+sharp": _same,
    "blur_gaussian": _on_scaled(_blurred),
    "recolor_luminance": _on_own_size(_recolor(cv2.COLOR_BGR2LAB, 0)),
    "recolor_intensity": _on_own_size(_recolor(cv2.COLOR_BGR2HSV, 2)),
    "color": _colour_grid,
    "shuffle": _shuffle,
    "inpaint": _same,
    "inpaint_only": _same,
    "reference_only": _same,
    "reference_adain": _same,
    "reference_adain+attn": _same,
}
"""Plain name → the function; those of the table ``control_modules`` that are not here need weights."""
