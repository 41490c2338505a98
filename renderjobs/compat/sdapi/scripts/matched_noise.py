"""Noise that looks like a picture: its spectrum, its colours. Outpainting mk2 begins with it where there is no picture yet. Numpy.

Source: ``get_matched_noise``, stable-diffusion-webui 1.10.1 ``scripts/outpainting_mk_2.py``, after parlance-zz/g-diffuser-bot.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.float64]
PLANE = (0, 1)
NOISE_SEED = 0
"""Of the noise before it is shaped: the same for every picture."""


def matched_noise(picture: Pixels, mask: Pixels, *, falloff: float, color_variation: float) -> Pixels:
    """The picture with shaped noise under the mask.

    Args:
        picture: Height × width × 3, from 0 to 1; what is under the mask is not looked at.
        mask: The same shape; 1 where the picture is new, 0 where it is known.
        falloff: How much of the picture's spectrum the noise takes: lower gives more detail.
        color_variation: 0 is grey noise, 1 noise of every colour.
    Returns:
        The same shape, from 0 to 1.
    """
    new, known = mask.mean(axis=2) > 1e-6, mask.mean(axis=2) < 1e-3
    spectrum = transformed(windowed(picture, mask))
    strength = np.abs(spectrum)
    # QUIRK(A1111 1.10): a frequency that the picture does not have at all, as in drawn ones, has no phase. That makes every
    # value undefined but those whose colours are matched below, so what is known of the picture comes out black.
    with np.errstate(invalid="ignore", divide="ignore"):
        phase = spectrum / strength
    noise = transformed(softened(coloured_noise(picture.shape, color_variation)))
    shaped = stretched(restored(np.abs(noise) ** 2 * strength**falloff * phase))
    if known.any():
        shaped[new] = with_colours_of(shaped[new], picture[known])
    return np.nan_to_num(np.clip(picture * (1 - mask) + shaped * mask, 0, 1), nan=0.0)


def windowed(picture: Pixels, mask: Pixels) -> Pixels:
    """What is known, as bright as it can be, and the average where nothing is known: black would be a feature."""
    known = picture * (1 - mask.mean(axis=2, keepdims=True))
    return known / (known.max() or 1) + picture.mean() * mask


def coloured_noise(shape: tuple[int, ...], color_variation: float) -> Pixels:
    noise = np.random.default_rng(NOISE_SEED).random(shape)
    grey = noise.mean(axis=2, keepdims=True)
    return noise * color_variation + grey * (1 - color_variation)


def softened(noise: Pixels) -> Pixels:
    """With less of the high frequencies."""
    height, width = noise.shape[:2]
    shorter = min(height, width)
    y, x = ((np.arange(side) / side * 2 - 1) * (side / shorter) for side in (height, width))
    window = 1 / ((y[:, None] ** 2 + 1) * (x[None, :] ** 2 + 1))
    return restored(transformed(noise) * window[..., None])


def stretched(noise: Pixels) -> Pixels:
    lifted = noise - noise.min()
    return lifted / (lifted.max() or 1)


def with_colours_of(noise: Pixels, picture: Pixels) -> Pixels:
    """Each channel's values replaced so that they are distributed as the picture's: both are lists of pixels, n × 3."""
    return np.stack([distributed(own, like) for own, like in zip(noise.T, picture.T, strict=True)], axis=1)


def distributed(values: Pixels, like: Pixels) -> Pixels:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    wanted, wanted_counts = np.unique(like, return_counts=True)
    shares, wanted_shares = np.cumsum(counts) / values.size, np.cumsum(wanted_counts) / like.size
    return np.interp(shares, wanted_shares, wanted)[place]


def transformed(data: Pixels) -> npt.NDArray[np.complex128]:
    """Two-dimensional Fourier transform of every channel, the zero frequency in the middle."""
    return np.fft.ifftshift(np.fft.fft2(np.fft.fftshift(data, PLANE), axes=PLANE, norm="ortho"), PLANE)


def restored(spectrum: npt.NDArray[Any]) -> Pixels:
    """The way back from ``transformed``; the part that is not real is dropped."""
    return np.real(np.fft.ifftshift(np.fft.ifft2(np.fft.fftshift(spectrum, PLANE), axes=PLANE, norm="ortho"), PLANE))
