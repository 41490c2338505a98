"""A control map at the size of the canvas, with its edges kept as thin and its colours as few as they were.

Source: sd-webui-controlnet 1.1.455, ``detectmap_proc``; values are its own.
"""

from __future__ import annotations

import cv2
import numpy as np

JUST, CROP, FILL = "Just Resize", "Crop and Resize", "Resize and Fill"
RESIZE_MODES = (JUST, CROP, FILL)
FEW_COLOURS = 200
"""Maps of more than two colours and fewer than these are segmentations: their colours must not mix."""
SQUARE = np.ones((3, 3), dtype=np.uint8)
ACROSS = np.array([[0, 0, 0], [1, 1, 1], [0, 0, 0]], dtype=np.uint8)
DIRECTIONS = (ACROSS, ACROSS.T.copy(), np.eye(3, dtype=np.uint8), np.fliplr(np.eye(3, dtype=np.uint8)).copy())
CORNERS = ([[-1, -1, -1], [0, 1, 0], [1, 1, 1]], [[0, -1, -1], [1, 1, -1], [0, 1, 0]])
"""Patterns of edge pixels that are taken off; with 1 an edge, with -1 none."""
ENDS = ([[-1, -1, -1], [-1, 1, -1], [0, 0, -1]], [[-1, -1, -1], [-1, 1, -1], [-1, 0, 0]])
"""Patterns of what is left over at the end of a line."""
MOST_THINNINGS = 32


def fitted(image: np.ndarray, resize_mode: str, height: int, width: int) -> np.ndarray:
    """The map at that size.

    Args:
        image: uint8, shape (height, width, 3), or 4 channels with a mask of 0…255 as the last.
        resize_mode: ``JUST`` stretches, ``CROP`` covers the canvas, ``FILL`` fits into it and pads with the colour of the edges.
    Returns:
        uint8 of the same channels, contiguous.
    """
    if resize_mode == JUST:
        return np.ascontiguousarray(_resized(image, width, height))
    down, across = height / image.shape[0], width / image.shape[1]
    factor = min(down, across) if resize_mode == FILL else max(down, across)
    inner = _resized(image, int(np.round(image.shape[1] * factor)), int(np.round(image.shape[0] * factor)))
    if resize_mode == FILL:
        return _on_its_own_colour(image, inner, height, width)
    top, left = max(0, (inner.shape[0] - height) // 2), max(0, (inner.shape[1] - width) // 2)
    return np.ascontiguousarray(inner[top : top + height, left : left + width])


def _on_its_own_colour(image: np.ndarray, inner: np.ndarray, height: int, width: int) -> np.ndarray:
    edges = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    colour = np.median(edges, axis=0).astype(image.dtype)
    if len(colour) == 4:
        colour[3] = 255  # what is beside the picture is drawn anew
    canvas = np.tile(colour, (height, width, 1))
    top, left = max(0, (height - inner.shape[0]) // 2), max(0, (width - inner.shape[1]) // 2)
    canvas[top : top + inner.shape[0], left : left + inner.shape[1]] = inner[: height - top, : width - left]
    return canvas


def _resized(image: np.ndarray, width: int, height: int) -> np.ndarray:
    colours, mask = image[:, :, :3], image[:, :, 3:]
    if image.shape[:2] != (height, width):
        colours, how = _resized_colours(np.ascontiguousarray(colours), width, height)
        if mask.size:
            mask = cv2.resize(np.ascontiguousarray(mask), (width, height), interpolation=how)[:, :, None]
    if not mask.size:
        return colours
    return np.concatenate([colours, np.where(mask > 127, np.uint8(255), np.uint8(0))], axis=2)


def _resized_colours(image: np.ndarray, width: int, height: int) -> tuple[np.ndarray, int]:
    """The resized map, and the interpolation that was used."""
    area, new_area = image.shape[0] * image.shape[1], width * height
    colours = len(np.unique(image.reshape(-1, image.shape[2]), axis=0))
    how = cv2.INTER_NEAREST if 2 < colours < FEW_COLOURS else cv2.INTER_AREA if new_area < area else cv2.INTER_CUBIC
    resized = cv2.resize(image, (width, height), interpolation=how)
    if colours == 2 and image.min() < 16 and image.max() > 240:
        resized = _black_and_white(resized, thin=_has_thin_lines(image), grown=new_area > area)
    return resized, how


def _has_thin_lines(image: np.ndarray) -> bool:
    """Whether most of what is white is lost when one pixel all around is."""
    opened = cv2.dilate(cv2.erode(image, SQUARE), SQUARE)
    return bool(np.count_nonzero(opened < image) * 2 > np.count_nonzero(image > 127))


def _black_and_white(resized: np.ndarray, *, thin: bool, grown: bool) -> np.ndarray:
    grey = resized.astype(np.float32).mean(axis=2).clip(0, 255).astype(np.uint8)
    if thin:
        grey = _ridges(grey)
    _, edges = cv2.threshold(grey, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    if thin:
        edges = _thinned(edges, prune=grown)
    return np.repeat(edges[:, :, None], 3, axis=2)


def _ridges(grey: np.ndarray) -> np.ndarray:
    """What is the largest value along one of four directions."""
    highest = np.any([cv2.dilate(grey, direction) == grey for direction in DIRECTIONS], axis=0)
    return np.where(highest, grey, np.uint8(0))


def _thinned(edges: np.ndarray, *, prune: bool) -> np.ndarray:
    for _ in range(MOST_THINNINGS):
        if not _taken_off(edges, CORNERS):
            break
    if prune:
        _taken_off(edges, ENDS)
    return edges


def _taken_off(edges: np.ndarray, patterns: tuple[list[list[int]], ...]) -> bool:
    """Remove, in place, what each pattern matches in each of four rotations; whether there was anything."""
    found = False
    for turns in range(4):
        for pattern in patterns:
            matched = cv2.morphologyEx(edges, cv2.MORPH_HITMISS, np.rot90(np.array(pattern, dtype=np.int32), turns))
            hit = matched > 127
            found = found or bool(hit.any())
            edges[hit] = 0
    return found
