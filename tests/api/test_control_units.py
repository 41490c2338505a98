"""Control units of the job API: taken strictly, refused by name and place, shown with their maps."""

from __future__ import annotations

import base64
import io
import json

import pytest
from django.test import Client
from PIL import Image

from assets.models import AssetKind
from gpuworker.contract import Recipe
from renderjobs.expansion import recipe_from
from renderjobs.models import ImageAttachment, InputFile, RenderImage, RenderJob
from tests.factories import a_caller, a_checkpoint, a_platform
from tests.renderjobs.test_delivery import begun, deliver

pytestmark = pytest.mark.django_db


def picture_text(width: int = 8, height: int = 8) -> str:
    data = io.BytesIO()
    Image.new("RGB", (width, height)).save(data, "PNG")
    return base64.b64encode(data.getvalue()).decode()


PICTURE = picture_text()
UNIT = {"module": "canny", "model": "edges [d14c016b]", "image": PICTURE}


@pytest.fixture
def caller():
    a_platform()
    a_checkpoint("edges", kind=AssetKind.CONTROLNET, family="controlnet", listed_hash="d14c016b", is_default=False)
    return a_caller()


@pytest.fixture
def api(caller) -> Client:
    return Client(headers={"Authorization": f"Bearer {caller.token.text}"})


def post(api: Client, *units: object, kind: str = "txt2img", **request: object):
    asked = {"prompt": "a ring", "width": 64, "height": 64, "control": list(units), **request}
    return api.post("/api/v1/jobs", json.dumps({"kind": kind, "request": asked}), content_type="application/json")


def problems(answer) -> dict[str, str]:
    assert answer.status_code == 422, answer.content
    return {error["pointer"]: error["detail"] for error in answer.json()["errors"]}


def nothing_is_kept() -> bool:
    return not RenderJob.objects.exists() and not InputFile.objects.exists()


def test_a_unit_is_pinned_with_its_picture_and_its_modules_numbers(api, caller):
    assert post(api, {**UNIT, "threshold_a": 20}).status_code == 201
    job = RenderJob.objects.get()
    recipe = recipe_from(job.lock)
    assert isinstance(recipe, Recipe)
    (unit,) = recipe.control
    assert (unit.weights.name, unit.picture.width, unit.processor_res) == ("edges", 8, 512)
    assert (unit.threshold_a, unit.threshold_b) == (20.0, 200)
    assert {asset.name for asset in job.assets.all()} == {"mini", "edges"} and job.inputs.count() == 1


def test_more_units_are_taken_than_a_page_of_a1111_has(api):
    assert post(api, *[UNIT] * 4).status_code == 201
    assert list(problems(post(api, *[UNIT] * 11))) == ["#/request/control"]


def test_a_unit_that_is_switched_off_takes_no_part(api):
    assert post(api, {"enabled": False, "model": "nobody"}, UNIT).status_code == 201
    assert len(RenderJob.objects.get().request["control"]) == 1


WRONG = {
    "a field nobody knows": ({"strength": 1}, "strength", "unknown"),
    "a module nobody knows": ({"module": "nothing"}, "module", "accepted are"),
    "a module that is not here": ({"module": "depth"}, "module", "accepted are"),
    "a module that is no text": ({"module": 7}, "module", "accepted are"),
    "a weight out of range": ({"weight": 3}, "weight", "accepted are 0 to 2"),
    "a weight as a text": ({"weight": "1"}, "weight", "a number is accepted"),
    "a number for a mode": ({"control_mode": 2}, "control_mode", "Balanced"),
    "a number for a resize mode": ({"resize_mode": 1}, "resize_mode", "Just Resize"),
    "an hires option nobody knows": ({"hr_option": "Sometimes"}, "hr_option", "Both"),
    "a threshold out of the module's range": ({"threshold_a": 999}, "threshold_a", "accepted are 1 to 255"),
    "a resolution out of range": ({"processor_res": 7}, "processor_res", "accepted are 64 to 2048"),
    "a resolution between pixels": ({"processor_res": 512.5}, "processor_res", "a whole number"),
    "a window from end to start": ({"guidance_start": 0.8, "guidance_end": 0.2}, "guidance_start", "lies behind"),
    "a flag that is none": ({"pixel_perfect": 1}, "pixel_perfect", "true or false"),
    "an enabled that is none": ({"enabled": "yes"}, "enabled", "true or false"),
    "weights that are no list": ({"advanced_weighting": 1}, "advanced_weighting", "a list is accepted"),
    "weights that are none": ({"advanced_weighting": ["heavy"]}, "advanced_weighting", "a number is accepted"),
    "too many weights": ({"advanced_weighting": [1] * 14}, "advanced_weighting", "at most 13"),
    "a picture that is none": ({"image": "bm90IGE="}, "image", "no picture"),
    "an address": ({"image": "https://example.com/a.png"}, "image", "Requests not allowed"),
    "a picture that is no text": ({"image": {"image": PICTURE}}, "image", "base64"),
    "a mask of another size": ({"mask": picture_text(16, 8)}, "mask", "16 x 8 pixels"),
    "a picture too thin for the canvas": ({"image": picture_text(4000, 1)}, "image", "the limit is"),
    "a network nobody knows": ({"model": "nobody [00000000]"}, "model", "'nobody [00000000]' is unknown"),
    "no network": ({"model": None}, "model", "needs a ControlNet"),
    "no picture": ({"image": None}, "image", "has no picture"),
    "a mask without a picture": ({"image": None, "mask": PICTURE}, "mask", "without a picture"),
}


@pytest.mark.parametrize(("changes", "field", "words"), WRONG.values(), ids=WRONG)
def test_a_wrong_unit_is_refused_at_its_place_and_nothing_is_kept(api, changes, field, words):
    found = problems(post(api, {"enabled": False}, {**UNIT, **changes}))
    assert words in found[f"#/request/control/1/{field}"] and nothing_is_kept()


@pytest.mark.parametrize("control", [{}, "units", [1], [[]]], ids=str)
def test_what_is_no_list_of_units_is_refused(api, control):
    assert list(problems(post(api, control=control))) == ["#/request/control"]


def test_everything_that_is_wrong_with_every_unit_is_named_at_once(api):
    found = problems(post(api, {**UNIT, "weight": 3, "hr_option": "?"}, {**UNIT, "weight": 4}))
    assert set(found) == {"#/request/control/0/weight", "#/request/control/0/hr_option", "#/request/control/1/weight"}


def test_another_teams_network_is_unknown(api):
    hidden = a_checkpoint("secret", kind=AssetKind.CONTROLNET, family="controlnet", is_default=False, access="teams")
    hidden.teams.set([a_caller(team="rivals").team])
    assert "'secret' is unknown" in problems(post(api, {**UNIT, "model": "secret"}))["#/request/control/0/model"]


def test_units_as_a1111_takes_them_are_refused_by_name_too(api):
    script = {"ControlNet": {"args": [{"enabled": False}, {**UNIT, "model": "nobody"}]}}
    found = problems(post(api, control=None, alwayson_scripts=script))
    assert list(found) == ["#/request/alwayson_scripts/controlnet/args/1/model"]
    assert list(problems(post(api, UNIT, alwayson_scripts={"controlnet": {"args": [UNIT]}}))) == ["#/request/control"]


def test_a_unit_without_a_picture_takes_that_of_img2img(api):
    assert post(api, {**UNIT, "image": None}, kind="img2img", init_images=[PICTURE]).status_code == 201
    assert RenderJob.objects.get().inputs.count() == 1


@pytest.mark.parametrize("kind", ["extras", "detect"])
def test_only_drawn_pictures_take_units(api, kind):
    assert "#/request/control" in problems(post(api, UNIT, kind=kind))


def test_maps_and_warnings_are_shown_with_their_image(api):
    job_id = post(api, UNIT).json()["id"]
    deliver(begun())
    image = RenderImage.objects.get()
    values = {"role": "control_map", "sha256": "0" * 64, "size_bytes": 9, "width": 64, "height": 64}
    ImageAttachment.objects.create(image=image, position=0, file_key="map.png", **values)
    RenderImage.objects.update(warnings=["A region mask in grey switches control off."])
    (shown,) = api.get(f"/api/v1/jobs/{job_id}/images").json()["results"]
    (one,) = shown["attachments"]
    assert one["role"] == "control_map" and one["url"].startswith("http://testserver/files/")
    assert shown["warnings"] == ["A region mask in grey switches control off."]
    assert api.get(f"/api/v1/jobs/{job_id}").json()["warnings"] == []
