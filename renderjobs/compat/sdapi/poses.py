"""Poses written as JSON drawn as the map that openpose networks read: bodies, hands and faces on black.

Source: sd-webui-controlnet 1.1.455, ``scripts/api.py`` and ``annotator/openpose/util.py``. OpenCV draws, because its rounding is
what the maps of the extension are made of.
"""

from __future__ import annotations

import colorsys
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from django.conf import settings
from PIL import Image

from renderjobs.compat.sdapi.errors import WireError, json_detail
from renderjobs.compat.sdapi.wire import Mismatch, integer, items, number

LIMB_HALF_WIDTH_PX = 4
LIMB_BRIGHTNESS = 0.6
POINT_RADIUS_PX, FACE_RADIUS_PX = 4, 3
HAND_LINE_PX = 2
BODY_POINTS, HAND_POINTS = 18, 21
MOST_POINTS, MOST_PEOPLE = 200, 200
"""Of one list, and of all documents of a call."""
FARTHEST_PX = 100_000.0
"""A point may lie outside the canvas, but not so far that drawing it takes time."""
LIMBS = (
    (1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13), (1, 0), (0, 14),
    (14, 16), (0, 15), (15, 17),
)  # fmt: skip
BODY_COLOURS = (
    (255, 0, 0), (255, 85, 0), (255, 170, 0), (255, 255, 0), (170, 255, 0), (85, 255, 0), (0, 255, 0), (0, 255, 85),
    (0, 255, 170), (0, 255, 255), (0, 170, 255), (0, 85, 255), (0, 0, 255), (85, 0, 255), (170, 0, 255), (255, 0, 255),
    (255, 0, 170), (255, 0, 85),
)  # fmt: skip
"""Of a limb by its place in ``LIMBS``, darkened; of a point by its own."""
FINGERS = tuple(
    (0 if joint == 0 else finger * 4 + joint, finger * 4 + joint + 1) for finger in range(5) for joint in range(4)
)
HAND_POINT_COLOUR, FACE_COLOUR = (0, 0, 255), (255, 255, 255)
Point = tuple[float, float]
Points = Sequence[Point | None]
"""None where the detector was not sure."""


@dataclass(frozen=True, slots=True)
class Person:
    body: Points
    left_hand: Points
    right_hand: Points
    face: Points


@dataclass(frozen=True, slots=True)
class PoseDocument:
    width: int
    height: int
    people: tuple[Person, ...]


# --- reading ---------------------------------------------------------------------------------------------------------


def pose_documents(data: bytes) -> list[PoseDocument]:
    """The documents of a request: a bare list, and no body is an empty one.

    Raises:
        WireError: With every field that is wrong, as FastAPI words it; lists of points that cannot be drawn are wrong, too.
    """
    try:
        sent = json.loads(data) if data.strip() else []
    except json.JSONDecodeError as error:
        raise WireError(json_detail(error)) from error
    except (UnicodeDecodeError, RecursionError, ValueError) as error:
        raise WireError({"loc": ["body"], "msg": "body is not valid JSON", "type": "value_error.jsondecode"}) from error
    reader = _Reader()
    found = [
        reader.document(document, (place,)) for place, document in enumerate(reader.checked(items, sent, ()) or ())
    ]
    if sum(document.width * document.height for document in found) > settings.MAX_INPUT_PIXELS:
        reader.refuse((), f"all canvases together have at most {settings.MAX_INPUT_PIXELS} pixels", "value_error")
    if sum(len(document.people) for document in found) > MOST_PEOPLE:
        reader.refuse((), f"all documents together have at most {MOST_PEOPLE} people", "value_error")
    if reader.details:
        raise WireError(*reader.details)
    return found


class _Reader:
    """Reads on after an error, so that all are told at once."""

    def __init__(self) -> None:
        self.details: list[dict[str, Any]] = []

    def refuse(self, place: tuple[Any, ...], message: str, kind: str) -> None:
        self.details.append({"loc": ["body", *place], "msg": message, "type": kind})

    def checked(self, check: Any, value: Any, place: tuple[Any, ...]) -> Any:
        try:
            return check(value)
        except Mismatch as error:
            self.refuse(place, str(error), error.kind)
            return None

    def required(self, sent: Mapping[str, Any], name: str, check: Any, place: tuple[Any, ...]) -> Any:
        if name not in sent:
            return self.refuse((*place, name), "field required", "value_error.missing")
        if sent[name] is None:
            return self.refuse((*place, name), "none is not an allowed value", "type_error.none.not_allowed")
        return self.checked(check, sent[name], (*place, name))

    def document(self, sent: Any, place: tuple[Any, ...]) -> PoseDocument:
        if not isinstance(sent, Mapping):
            self.refuse(place, "value is not a valid dict", "type_error.dict")
            return PoseDocument(0, 0, ())
        people = self.required(sent, "people", items, place) or ()
        width, height = (self.required(sent, f"canvas_{side}", _side, place) or 0 for side in ("width", "height"))
        return PoseDocument(
            width,
            height,
            tuple(self.person(person, (*place, "people", index)) for index, person in enumerate(people)),
        )

    def person(self, sent: Any, place: tuple[Any, ...]) -> Person:
        if not isinstance(sent, Mapping):
            self.refuse(place, "value is not a valid dict", "type_error.dict")
            return Person((), (), (), ())
        body = self.required(sent, "pose_keypoints_2d", _points, place)
        if body is not None and len(body) < BODY_POINTS:
            self.too_few((*place, "pose_keypoints_2d"), BODY_POINTS)
        left, right = (
            self.optional(sent, f"hand_{side}_keypoints_2d", place, HAND_POINTS) for side in ("left", "right")
        )
        return Person(body or (), left, right, self.optional(sent, "face_keypoints_2d", place, 0))

    def optional(self, sent: Mapping[str, Any], name: str, place: tuple[Any, ...], least: int) -> Points:
        if sent.get(name) is None:
            return ()
        points: Points = self.checked(_points, sent[name], (*place, name)) or ()
        if points and len(points) < least:
            self.too_few((*place, name), least)
        return points

    def too_few(self, place: tuple[Any, ...], least: int) -> None:
        self.refuse(
            place, f"ensure this value has at least {least} points of three numbers", "value_error.list.min_items"
        )


def _side(value: Any) -> int:
    side = integer(value)
    if side < 1:
        raise Mismatch("ensure this value is greater than or equal to 1", "value_error.number.not_ge")
    return side


def _points(value: Any) -> Points:
    numbers = [number(part) for part in items(value)]
    if len(numbers) % 3:
        raise Mismatch("a list of points has three numbers for each: x, y and how sure it is", "value_error")
    if len(numbers) > 3 * MOST_POINTS:
        raise Mismatch(f"ensure this value has at most {MOST_POINTS} points", "value_error.list.max_items")
    if not all(math.isfinite(part) and abs(part) <= FARTHEST_PX for part in numbers):
        raise Mismatch(f"a point lies within {FARTHEST_PX:.0f} pixels", "value_error")
    return [(x, y) if sure >= 1 else None for x, y, sure in zip(*[iter(numbers)] * 3, strict=True)]


# --- drawing ---------------------------------------------------------------------------------------------------------


def drawn(document: PoseDocument) -> Image.Image:
    """Without people it is black."""
    canvas = np.zeros((document.height, document.width, 3), dtype=np.uint8)
    for person in document.people:
        _draw_body(canvas, _in_pixels(canvas, person.body))
        _draw_hand(canvas, _in_pixels(canvas, person.left_hand))
        _draw_hand(canvas, _in_pixels(canvas, person.right_hand))
        _draw_face(canvas, _in_pixels(canvas, person.face))
    return Image.fromarray(canvas)


def _in_pixels(canvas: np.ndarray, points: Points) -> Points:
    """Points that all lie within ±1 are shares of the canvas."""
    known = [point for point in points if point]
    if not known or any(abs(part) > 1 for point in known for part in point):
        return points
    height, width, _ = canvas.shape
    return [point and (point[0] * width, point[1] * height) for point in points]


def _draw_body(canvas: np.ndarray, points: Points) -> None:
    for (first, second), colour in zip(LIMBS, BODY_COLOURS, strict=False):
        begin, end = points[first], points[second]
        if begin and end:
            dark = [int(part * LIMB_BRIGHTNESS) for part in colour]
            cv2.fillConvexPoly(canvas, _limb(begin, end), dark)
    for point, colour in zip(points, BODY_COLOURS, strict=False):
        if point:
            cv2.circle(canvas, _whole(point), POINT_RADIUS_PX, colour, thickness=-1)


def _limb(begin: Point, end: Point) -> np.ndarray:
    """A thin ellipse from joint to joint, as a polygon."""
    middle = int((begin[0] + end[0]) / 2), int((begin[1] + end[1]) / 2)
    across, down = begin[0] - end[0], begin[1] - end[1]
    axes = int((down**2 + across**2) ** 0.5 / 2), LIMB_HALF_WIDTH_PX
    return np.asarray(cv2.ellipse2Poly(middle, axes, int(math.degrees(math.atan2(down, across))), 0, 360, 1))


def _draw_hand(canvas: np.ndarray, points: Points) -> None:
    for index, (first, second) in enumerate(FINGERS if points else ()):
        begin, end = points[first], points[second]
        if begin and end and _is_inside(begin) and _is_inside(end):
            colour = [part * 255 for part in colorsys.hsv_to_rgb(index / len(FINGERS), 1.0, 1.0)]
            cv2.line(canvas, _whole(begin), _whole(end), colour, thickness=HAND_LINE_PX)
    for point in _visible(points):
        cv2.circle(canvas, point, POINT_RADIUS_PX, HAND_POINT_COLOUR, thickness=-1)


def _draw_face(canvas: np.ndarray, points: Points) -> None:
    for point in _visible(points):
        cv2.circle(canvas, point, FACE_RADIUS_PX, FACE_COLOUR, thickness=-1)


def _visible(points: Points) -> Iterator[tuple[int, int]]:
    return (_whole(point) for point in points if point and _is_inside(point))


def _is_inside(point: Point) -> bool:
    """QUIRK(sd-webui-controlnet 1.1.455): of hands and faces the first row and column are outside the canvas."""
    return min(_whole(point)) > 0


def _whole(point: Point) -> tuple[int, int]:
    return int(point[0]), int(point[1])
