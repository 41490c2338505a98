"""`/controlnet/render_openpose_json`: what is drawn of poses, and what of a document is refused, by its place."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pytest
from django.test import Client
from PIL import Image

from renderjobs.compat.sdapi.poses import BODY_COLOURS, BODY_POINTS, FARTHEST_PX, HAND_POINTS, LIMBS, MOST_PEOPLE
from renderjobs.models import InputFile, RenderJob
from tests.factories import a_caller

pytestmark = pytest.mark.django_db
PATH = "/controlnet/render_openpose_json"
WIDTH, HEIGHT = 96, 128
SURE = [(8 + 5 * index, 10 + 6 * ((index * 7) % BODY_POINTS), 1) for index in range(BODY_POINTS)]
"""Joints that lie apart."""


@pytest.fixture
def door() -> Client:
    return Client(headers={"Authorization": f"Bearer {a_caller().token.text}"})


def flat(points: Any) -> list[float]:
    return [part for point in points for part in point]


def person(**changes: Any) -> dict[str, Any]:
    return {"pose_keypoints_2d": flat(SURE), **changes}


def document(*people: Any, **changes: Any) -> dict[str, Any]:
    return {"people": list(people), "canvas_width": WIDTH, "canvas_height": HEIGHT, **changes}


def post(door: Client, body: Any):
    return door.post(PATH, body, content_type="application/json")


def maps(door: Client, *documents: Any) -> list[np.ndarray]:
    answer = post(door, list(documents))
    assert answer.status_code == 200 and answer.json()["info"] == "Success", answer.content
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(image)))) for image in answer.json()["images"]]


def colours_of(picture: np.ndarray) -> set[tuple[int, ...]]:
    return {tuple(map(int, pixel)) for pixel in picture.reshape(-1, 3)}


def test_every_joint_has_its_colour_and_every_limb_a_darker_one(door):
    (picture,) = maps(door, document(person()))
    assert picture.shape == (HEIGHT, WIDTH, 3)
    for (x, y, _), colour in zip(SURE, BODY_COLOURS, strict=True):
        assert tuple(picture[y, x]) == colour
    dark = {tuple(int(part * 0.6) for part in colour) for colour in BODY_COLOURS[: len(LIMBS)]}
    assert colours_of(picture) == {(0, 0, 0), *BODY_COLOURS, *dark}


def test_a_joint_that_is_not_sure_is_left_out_with_its_limbs(door):
    unsure = [(x, y, 0.9 if index == 2 else 1) for index, (x, y, _) in enumerate(SURE)]
    whole, without = maps(door, document(person()), document(person(pose_keypoints_2d=flat(unsure))))
    assert BODY_COLOURS[2] in colours_of(whole) and BODY_COLOURS[2] not in colours_of(without)
    dark = tuple(int(part * 0.6) for part in BODY_COLOURS[0])  # of the limb between joints 1 and 2
    assert dark in colours_of(whole) and dark not in colours_of(without)


def test_points_within_one_are_shares_of_the_canvas(door):
    shares = flat((x / WIDTH, y / HEIGHT, 1) for x, y, _ in SURE)
    pixels, parts = maps(door, document(person()), document(person(pose_keypoints_2d=shares)))
    assert (pixels != parts).any(axis=2).mean() < 0.02  # where a share was rounded down by one pixel


def test_hands_are_rainbows_with_blue_points_and_faces_are_white(door):
    line = flat((4 + 4 * index, 20, 1) for index in range(HAND_POINTS))
    nobody = [0] * 3 * BODY_POINTS
    people = [person(pose_keypoints_2d=nobody, **{name: line}) for name in
              ("hand_left_keypoints_2d", "hand_right_keypoints_2d", "face_keypoints_2d")]  # fmt: skip
    left, right, face = maps(door, *(document(one) for one in people))
    assert np.array_equal(left, right) and tuple(left[20, 8]) == (0, 0, 255)
    assert colours_of(face) == {(0, 0, 0), (255, 255, 255)}


def test_a_canvas_without_people_is_black_and_no_document_no_answer(door):
    assert not maps(door, document())[0].any()
    for nothing in ([], ""):
        assert post(door, nothing).json() == {"info": "No pose data detected."}


def test_points_outside_the_canvas_do_no_harm(door):
    away = flat((x - 60, y + 90, 1) for x, y, _ in SURE)
    assert maps(door, document(person(pose_keypoints_2d=away)))[0].any()
    maps(door, document(person(pose_keypoints_2d=[FARTHEST_PX, -FARTHEST_PX, 1] * BODY_POINTS)))


REFUSED = {
    "an object": ({"people": []}, ["body"], "type_error.list"),
    "a document that is none": ([3], ["body", 0], "type_error.dict"),
    "no people": ([{"canvas_width": 8, "canvas_height": 8}], ["body", 0, "people"], "value_error.missing"),
    "people that are none": ([document("me")], ["body", 0, "people", 0], "type_error.dict"),
    "a width that is none": ([document(canvas_width="wide")], ["body", 0, "canvas_width"], "type_error.integer"),
    "no height": ([document(canvas_height=0)], ["body", 0, "canvas_height"], "value_error.number.not_ge"),
    "a canvas too large": ([document(canvas_width=10**6)], ["body"], "value_error"),
    "too many people": ([document(*[person()] * (MOST_PEOPLE + 1))], ["body"], "value_error"),
    "too few joints": ([document(person(pose_keypoints_2d=[1, 2, 1]))], ["pose_keypoints_2d"], "value_error.list.min_items"),
    "half a point": ([document(person(pose_keypoints_2d=flat(SURE)[:-1]))], ["pose_keypoints_2d"], "value_error"),
    "text": ([document(person(face_keypoints_2d=["a", 1, 1]))], ["face_keypoints_2d"], "type_error.float"),
    "a point too far": ([document(person(face_keypoints_2d=[1e9, 1, 1]))], ["face_keypoints_2d"], "value_error"),
    "a short hand": ([document(person(hand_left_keypoints_2d=[1, 2, 1]))],
        ["hand_left_keypoints_2d"], "value_error.list.min_items"),
    "too long a face": ([document(person(face_keypoints_2d=[1] * 900))], ["face_keypoints_2d"], "value_error.list.max_items"),
    "no JSON": ("[", ["body", 1], "value_error.jsondecode"),
}  # fmt: skip


@pytest.mark.parametrize(("body", "place", "kind"), REFUSED.values(), ids=REFUSED)
def test_what_is_wrong_is_told_with_its_place(door, body, place, kind):
    answer = post(door, body)
    (detail,) = answer.json()["detail"]
    where = place if place[0] == "body" else ["body", 0, "people", 0, *place]
    assert (answer.status_code, detail["loc"], detail["type"]) == (422, where, kind)
    assert not RenderJob.objects.exists() and not InputFile.objects.exists()


def test_it_asks_for_a_token():
    assert Client().post(PATH, [], content_type="application/json").status_code == 401
