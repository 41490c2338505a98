"""Control units through the whole door: what is stored, what is answered, what the infotext says and says again."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.test import Client
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from assets.models import AssetKind
from gpuworker.contract import ControlUnit, Recipe, Weights
from renderjobs.compat.sdapi import views, wire
from renderjobs.compat.sdapi.control_units import fields_of_text
from renderjobs.compat.sdapi.infotext import infotext_of, unit_text
from renderjobs.compat.sdapi.infotext_parser import parse_infotext, png_info
from renderjobs.compat.sdapi.profile import default_options
from renderjobs.compat.sdapi.translate import to_request
from renderjobs.delivery import StoredAttachment, image_deliver
from renderjobs.expansion import recipe_from
from renderjobs.models import InputFile, RenderJob
from tests.engine.recordings import A1111, MORE, case_folder, needs_recordings
from tests.factories import a_caller, a_checkpoint, a_platform
from tests.renderjobs.test_delivery import begun
from tests.sdapi.test_txt2img import a_stored_picture, post

pytestmark = pytest.mark.django_db


@pytest.fixture
def door() -> Client:
    a_platform()
    a_checkpoint("edges", kind=AssetKind.CONTROLNET, family="controlnet", listed_hash="d14c016b", is_default=False)
    return Client(headers={"Authorization": f"Bearer {a_caller().token.text}"})


def picture_text(width: int = 8, height: int = 8) -> str:
    data = io.BytesIO()
    Image.new("RGB", (width, height)).save(data, "PNG")
    return base64.b64encode(data.getvalue()).decode()


PICTURE = picture_text()
UNIT = {"module": "canny", "model": "edges [d14c016b]", "image": PICTURE}


def scripts(*units: Any, name: str = "controlnet") -> dict[str, Any]:
    return {"alwayson_scripts": {name: {"args": list(units)}}}


def stored_units() -> tuple[ControlUnit, ...]:
    recipe = recipe_from(RenderJob.objects.get().lock)
    assert isinstance(recipe, Recipe)
    return recipe.control


@pytest.fixture
def worker(monkeypatch):
    """Whoever waits for a job finds it delivered, every image with a map of every unit."""

    def deliver(job_id) -> None:
        batch = begun()
        for image in batch.images:
            stored = a_stored_picture(image, b"picture %d" % image.index)
            maps = []
            for number, unit in enumerate(image.recipe.control):
                if unit.save_detected_map:
                    one = a_stored_picture(
                        replace(image, attempt_id=10_000 + image.index * 10 + number), b"map %d" % number
                    )
                    maps.append(StoredAttachment("control_map", one.key, one.sha256, one.size_bytes, 64, 64))
            stored = replace(stored, infotext=infotext_of(image.recipe), attachments=tuple(maps))
            image_deliver(batch=batch, image=image, picture=stored, gpu_us=1000)

    async def rendered(job_id) -> None:
        await sync_to_async(deliver)(job_id)

    monkeypatch.setattr(views, "job_wait", rendered)


# --- the answer -------------------------------------------------------------------------------------------------------


def test_maps_follow_all_pictures_once_and_have_no_infotexts(door, worker):
    answer = post(door, prompt="x", batch_size=2, n_iter=2, width=64, height=64, **scripts(UNIT, UNIT))
    images = [base64.b64decode(text).decode() for text in answer.json()["images"]]
    assert images == [*(f"picture {index}" for index in range(4)), "map 0", "map 1"]
    assert len(answer.info["infotexts"]) == len(answer.info["all_seeds"]) == 4
    assert set(answer.info["extra_generation_params"]) == {"ControlNet 0", "ControlNet 1"}


def test_a_contact_sheet_still_comes_first(door, worker, monkeypatch):
    monkeypatch.setattr(views, "grid_ensure", lambda job: job.images.first().file_key)
    answer = post(door, prompt="x", batch_size=2, width=64, height=64, save_images=True, **scripts(UNIT))
    assert len(answer.json()["images"]) == 4 and answer.info["index_of_first_image"] == 1
    assert len(answer.info["infotexts"]) == 3


@pytest.mark.parametrize(
    "changes",
    [{"override_settings": {"control_net_no_detectmap": True}}, scripts({**UNIT, "save_detected_map": False})],
    ids=["option", "unit"],
)
def test_maps_are_kept_back_when_nobody_wants_them(door, worker, changes):
    answer = post(door, **{"prompt": "x", "width": 64, "height": 64, **scripts(UNIT), **changes})
    assert len(answer.json()["images"]) == 1 and "ControlNet 0" in answer.info["infotexts"][0]


def test_whether_maps_come_back_is_an_option_callers_keep(door, worker):
    kept = door.post("/sdapi/v1/options", {"control_net_no_detectmap": True}, content_type="application/json")
    assert kept.status_code == 200 and door.get("/sdapi/v1/options").json()["control_net_no_detectmap"] is True
    assert len(post(door, prompt="x", width=64, height=64, **scripts(UNIT)).json()["images"]) == 1


def test_the_scripts_name_is_matched_without_regard_to_case(door, worker):
    assert len(post(door, prompt="x", width=64, height=64, **scripts(UNIT, name="ControlNet")).json()["images"]) == 2


def test_a_field_sent_under_both_its_names_is_taken_once(door, worker):
    unit = {**UNIT, "guidance": 0.5, "guidance_end": 0.5}
    post(door, prompt="x", width=64, height=64, **scripts(unit))
    assert RenderJob.objects.get().request["control"][0]["guidance_end"] == 0.5


# --- units that cannot be used ----------------------------------------------------------------------------------------

UNUSABLE = {
    "a network nobody knows": ({"model": "nobody"}, "ControlNet 'nobody' of unit 1 is unknown"),
    "no network": ({"model": "None"}, "Unit 1 of ControlNet: Module 'canny' needs a ControlNet"),
    "no picture": ({"image": ""}, "Unit 1 of ControlNet: A control unit has no picture"),
    "a mask alone": (
        {"image": None, "mask": PICTURE},
        "Unit 1 of ControlNet: A control unit has a mask without a picture",
    ),
}


@pytest.mark.parametrize(("changes", "words"), UNUSABLE.values(), ids=UNUSABLE)
def test_a_unit_that_cannot_be_used_is_no_error_and_the_answer_says_so(door, worker, changes, words):
    answer = post(door, prompt="x", width=64, height=64, **scripts(UNIT, {**UNIT, **changes}))
    assert answer.status_code == 200 and words in answer.headers["X-Warnings"]


# --- what is wrong ----------------------------------------------------------------------------------------------------

WRONG = {
    "null for a number": ({"weight": None}, "weight\n  none is not an allowed value"),
    "a number no float holds": ({"threshold_a": 10**400}, "threshold_a\n  value is not a valid float"),
    "no number": ({"weight": float("nan")}, "weight\n  ensure this value is greater"),
    "a negative start": ({"guidance_start": -1}, "guidance_start\n  ensure this value is greater"),
    "an object for a mode": ({"control_mode": {}}, "control_mode\n  value is not a valid enumeration member"),
    "null for a mode": ({"resize_mode": None}, "resize_mode\n   (type=assertion_error)"),
    "a module that is a list": ({"module": ["canny"]}, "module\n  module(['canny']) not found"),
    "a text for weights": ({"advanced_weighting": "123"}, "advanced_weighting\n  value is not a valid list"),
    "an enabled that is none": ({"enabled": "perhaps"}, "enabled\n  value could not be parsed to a boolean"),
    "a region that is no text": ({"effective_region_mask": [1]}, "effective_region_mask\n   (type=assertion_error)"),
}


@pytest.mark.parametrize(("changes", "words"), WRONG.values(), ids=WRONG)
def test_a_wrong_value_is_refused_as_pydantic_words_it(door, changes, words):
    answer = post(door, prompt="x", **scripts({**UNIT, **changes}))
    body = answer.json()
    assert (answer.status_code, body["error"]) == (500, "ValidationError")
    assert body["errors"].startswith(f"1 validation error for ControlNetUnit\n{words}")
    assert not RenderJob.objects.exists() and not InputFile.objects.exists()


PLACED = {
    "too many weights": ({"advanced_weighting": [1.0] * 14}, "advanced_weighting"),
    "a mask of another size": ({"mask": picture_text(16, 8)}, "mask"),
    "a picture too thin for its canvas": ({"image": picture_text(4000, 1)}, "image"),
    "a model that is no text": ({"model": "a\0b"}, "model"),
}


@pytest.mark.parametrize(("changes", "field"), PLACED.values(), ids=PLACED)
def test_what_only_this_product_refuses_is_named_by_its_place(door, changes, field):
    answer = post(door, prompt="x", **scripts({"enabled": False}, {**UNIT, **changes}))
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body", "alwayson_scripts", "controlnet", "args", "1", field]
    assert not RenderJob.objects.exists()


@pytest.mark.parametrize("arguments", [UNIT, "canny", 1], ids=["a unit by itself", "a text", "a number"])
def test_arguments_that_are_no_list_are_not_passed_over(door, arguments):
    answer = post(door, prompt="x", alwayson_scripts={"controlnet": {"args": arguments}})
    assert (answer.status_code, answer.json()["detail"][0]["loc"]) == (422, ["body", "alwayson_scripts"])


def test_a_unit_that_says_off_in_words_is_off(door, worker):
    post(door, prompt="x", width=64, height=64, **scripts({**UNIT, "enabled": "False"}, {**UNIT, "enabled": None}))
    assert len(stored_units()) == 1


# --- infotexts --------------------------------------------------------------------------------------------------------


def a_recipe(*units: ControlUnit) -> Recipe:
    weights = Weights(name="mini", sha256="0" * 64)
    values = {"prompt": "x", "negative_prompt": "", "seed": 1, "subseed": 1, "sampler": "Euler", "steps": 4}
    return Recipe(**values, cfg_scale=7.0, width=64, height=64, checkpoint=weights, control=units)


def test_a_units_text_is_read_again_field_by_field():
    unit = ControlUnit(module="canny", model="edges [d14c016b]", weight=0.5, threshold_a=100, threshold_b=60.0)
    found = parse_infotext(infotext_of(a_recipe(unit)))
    assert found["ControlNet 0"] == unit_text(unit)
    again = fields_of_text(found["ControlNet 0"])
    assert replace(unit, **again) == unit


def test_png_info_shows_every_field_of_every_unit():
    text, data = PngInfo(), io.BytesIO()
    text.add_text(
        "parameters", infotext_of(a_recipe(ControlUnit(model="a"), ControlUnit(module="shuffle", weight=0.25)))
    )
    Image.new("RGB", (8, 8)).save(data, "PNG", pnginfo=text)
    parameters = png_info(data.getvalue())["parameters"]
    assert (parameters["ControlNet 0 model"], parameters["ControlNet 1 module"]) == ("a", "shuffle")
    assert parameters["ControlNet 1 weight"] == 0.25 and parameters["ControlNet 1 pixel_perfect"] is False


@pytest.mark.parametrize(
    "text", ["", "Module: nothing", "Module", "Weight: 3", "Guidance Start: first", "Control Mode: 2", "a: b: c"]
)
def test_a_text_that_is_no_unit_adds_nothing(text):
    assert fields_of_text(text) == {}


def test_a_name_that_would_read_as_other_fields_is_not_written():
    assert unit_text(ControlUnit(model="a, Weight: 2.0")) == ""


def answered() -> list[str]:
    if not A1111.is_dir():
        return []
    index = json.loads((MORE / "controlnet" / "index.json").read_text())
    return [case["name"] for case in index if case.get("infotexts")]


@needs_recordings
@pytest.mark.parametrize("name", answered())
def test_recorded_units_are_written_as_they_were_and_read_again(name):
    folder = case_folder("controlnet", name)
    body = json.loads((folder / "request.json").read_text())
    recorded = json.loads(json.loads((folder / "response.json").read_text())["info"])["infotexts"][0]
    kind, fields = ("img2img", wire.IMG2IMG) if "init_images" in body else ("txt2img", wire.TXT2IMG)
    values = wire.parsed(body, {**fields, **wire.OURS})
    made = to_request(values, options=default_options(), kind=kind).build()
    found = {key: text for key, text in parse_infotext(recorded).items() if key.startswith("ControlNet")}
    assert {f"ControlNet {index}": unit_text(unit) for index, unit in enumerate(made.control)} == found
    for text in found.values():
        read = fields_of_text(text)
        assert read and fields_of_text(unit_text(ControlUnit(**read))) == read


@pytest.mark.parametrize("script", [None, "x/y/z plot"])
def test_a_network_for_another_family_is_refused_where_it_was_sent(door, script):
    a_checkpoint(
        "xl-edges", kind=AssetKind.CONTROLNET, family="controlnet", metadata={"base": "sdxl"}, is_default=False
    )
    body = {"prompt": "a ring", **scripts({"enabled": False}, {**UNIT, "model": "xl-edges"}, name="ControlNet")}
    if script:
        body |= {"script_name": script, "script_args": [4, "20,30", "", 0, "", "", 0, "", ""]}
    answer = post(door, **body)
    (error,) = answer.json()["detail"]
    assert answer.status_code == 422 and not RenderJob.objects.exists() and not InputFile.objects.exists()
    assert error["loc"] == ["body", "alwayson_scripts", "controlnet", "args", "1", "model"]
    assert error["msg"].startswith("ControlNet 'xl-edges' is for SDXL; checkpoint")
