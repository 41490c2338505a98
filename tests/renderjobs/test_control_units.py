"""Control units of the canonical request: what is checked whoever sends them, and which files they are pinned to."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from assets.models import AssetKind
from common.errors import InvalidRequestError
from gpuworker.contract import InputPicture, Recipe
from renderjobs.pinning import UnknownNameError, pinned
from renderjobs.request import RenderRequest
from tests.factories import a_caller, a_checkpoint, a_platform, a_request

PICTURE = InputPicture(sha256="1" * 64, width=64, height=48)
UNIT = {"module": "canny", "model": "edges", "picture": PICTURE}


def test_a_request_with_units_survives_json():
    asked = a_request(control=[{**UNIT, "mask": PICTURE, "advanced_weighting": [0.5, 1], "threshold_a": 100}])
    again = RenderRequest.from_json(json.loads(json.dumps(asked.to_json())))
    assert again == asked and list(again.inputs()) == [PICTURE, PICTURE]


WRONG = {
    "resize mode": ({"resize_mode": "Stretch"}, "control.1.resize_mode"),
    "control mode": ({"control_mode": "Mine"}, "control.1.control_mode"),
    "hires option": ({"hr_option": 1}, "control.1.hr_option"),
    "flag": ({"save_detected_map": "no"}, "control.1.save_detected_map"),
    "picture": ({"picture": "text"}, "control.1.picture"),
    "window": ({"guidance_start": 1.0, "guidance_end": 0.5}, "control.1.guidance_start"),
    "mask": ({"mask": replace(PICTURE, width=32)}, "control.1.mask"),
    "thin picture": ({"picture": replace(PICTURE, width=1, height=9000)}, "control.1.picture"),
}


@pytest.mark.parametrize(("changes", "field"), WRONG.values(), ids=WRONG)
def test_a_wrong_unit_is_named_with_its_number(changes, field):
    with pytest.raises(InvalidRequestError) as refused:
        a_request(control=[UNIT, {**UNIT, **changes}])
    assert [error.field for error in refused.value.errors] == [field]


def test_a_thin_picture_is_no_harm_where_it_is_stretched():
    thin = replace(PICTURE, width=10, height=9000)
    assert a_request(control=[{**UNIT, "picture": thin, "resize_mode": "Just Resize", "processor_res": 64}]).control


UNUSABLE = {
    "network": {"model": "None"},
    "picture": {"picture": None},
    "picture for its mask": {"picture": None, "mask": PICTURE},
}


@pytest.mark.parametrize("changes", UNUSABLE.values(), ids=UNUSABLE)
def test_what_a_unit_lacks_refuses_a_strict_request_only(changes):
    assert a_request(control=[{**UNIT, **changes}]).control
    with pytest.raises(InvalidRequestError):
        a_request(control=[{**UNIT, **changes}], strict_control=True)


def test_a_module_that_needs_no_network_lacks_none():
    assert a_request(control=[{"module": "reference_only", "picture": PICTURE}], strict_control=True).control


@pytest.fixture
def caller():
    a_platform()
    return a_caller()


def a_network(name: str):
    return a_checkpoint(name, kind=AssetKind.CONTROLNET, family="controlnet", is_default=False)


@pytest.mark.django_db
def test_units_are_pinned_and_their_files_belong_to_the_job(caller):
    asset = a_network("edges")
    pins = pinned(caller, a_request(control=[UNIT, UNIT]))
    assert isinstance(pins.recipe, Recipe) and asset.pk in pins.assets and pins.warnings == []
    assert [unit.weights.sha256 for unit in pins.recipe.control] == [asset.sha256] * 2


@pytest.mark.django_db
def test_an_unknown_network_refuses_a_strict_request_and_is_told_of_otherwise(caller):
    a_network("edges")
    asked = a_request(control=[UNIT, {**UNIT, "model": "nobody"}])
    assert "'nobody' of unit 1" in pinned(caller, asked).warnings[0]
    with pytest.raises(UnknownNameError) as refused:
        pinned(caller, replace(asked, strict_control=True))
    assert refused.value.errors[0].field == "control.1.model"
