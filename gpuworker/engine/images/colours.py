"""Colour correction: the rendered picture takes over the colours of the picture it was made from, and keeps its own light.

Source: ``setup_color_correction`` and ``apply_color_correction`` of ``modules/processing.py``, A1111 1.10.1; histogram matching as
scikit-image 0.21 does it, luminosity as the PDF blend mode of that name (ISO 32000-1, 11.3.5.3).
"""

from __future__ import annotations

import cv2
import numpy as np
from PIL import Image

LUMINOSITY = np.array((0.299, 0.587, 0.114))


def lab_of(picture: Image.Image) -> np.ndarray:
    """uint8, shape (height, width, 3)."""
    return cv2.cvtColor(np.asarray(picture), cv2.COLOR_RGB2LAB)


def corrected(rendered: Image.Image, target: np.ndarray) -> Image.Image:
    """RGB, coloured like the target.

    Args:
        target: Of ``lab_of``, of any size.
    """
    lab = lab_of(rendered)
    matched = np.stack([_matched(lab[..., channel], target[..., channel]) for channel in range(3)], axis=2)
    coloured = cv2.cvtColor(matched, cv2.COLOR_LAB2RGB)
    blended = _with_luminosity(coloured / 255.0, np.asarray(rendered) / 255.0)
    return Image.fromarray(np.around(blended * 255.0).clip(0, 255).astype(np.uint8))


def _matched(values: np.ndarray, target: np.ndarray) -> np.ndarray:
    """One channel with the target's distribution, cut off to whole numbers; uint8."""
    shares = np.cumsum(np.bincount(values.reshape(-1))) / values.size
    counts = np.bincount(target.reshape(-1))
    present = np.nonzero(counts)[0]
    target_shares = np.cumsum(counts[present]) / target.size
    return np.interp(shares, target_shares, present).astype(np.uint8)[values]


def _with_luminosity(colours: np.ndarray, light: np.ndarray) -> np.ndarray:
    """Colours of the one, luminosity of the other; 0…1, float64."""
    colours = colours + (_luminosity(light) - _luminosity(colours))
    outside = ((colours < 0) | (colours > 1)).any(axis=2)
    colours[outside] = _pulled_in(colours[outside])
    return colours


def _pulled_in(colours: np.ndarray) -> np.ndarray:
    """Towards their grey until no channel is below 0 or above 1; shape (pixels, 3)."""
    grey, low, high = _luminosity(colours), colours.min(axis=1, keepdims=True), colours.max(axis=1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        colours = np.where(low < 0, grey + (colours - grey) * grey / (grey - low), colours)
        colours = np.where(high > 1, grey + (colours - grey) * (1 - grey) / (high - grey), colours)
    return np.nan_to_num(colours)


def _luminosity(colours: np.ndarray) -> np.ndarray:
    return (colours @ LUMINOSITY)[..., None]
