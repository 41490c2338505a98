"""`/controlnet` and control units of a call: recorded answers again, and what is wrong in the extension's own words."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import pytest
from django.test import Client
from PIL import Image

from assets.models import AssetKind
from gpuworker.contract import ControlUnit, Recipe
from gpuworker.contract.control_modules import BY_NAME
from gpuworker.engine.images.controlnet.units import control_map
from renderjobs.compat.sdapi import controlnet, wire
from renderjobs.compat.sdapi.control_units import units_of
from renderjobs.compat.sdapi.errors import HandlerError
from renderjobs.expansion import recipe_from
from renderjobs.inputs import picture_from_text
from renderjobs.models import RenderJob
from tests.engine.recordings import A1111, MORE, array_of, case_folder, needs_recordings
from tests.factories import a_caller, a_checkpoint, a_platform

pytestmark = pytest.mark.django_db


@pytest.fixture
def caller():
    a_platform()
    return a_caller()


@pytest.fixture
def client(caller) -> Client:
    return Client(headers={"Authorization": f"Bearer {caller.token.text}"})


def a_network(name: str, listed_hash: str, **changes: object):
    values = {"kind": AssetKind.CONTROLNET, "family": "controlnet", "listed_hash": listed_hash, "is_default": False}
    return a_checkpoint(name, **{**values, **changes})


def recorded(name: str) -> tuple[dict, dict]:
    folder = case_folder("controlnet", name)
    request = folder / "request.json"
    return json.loads(request.read_text()) if request.exists() else {}, json.loads(
        (folder / "response.json").read_text()
    )


def cases(*beginnings: str) -> list[str]:
    if not A1111.is_dir():
        return []
    index = json.loads((MORE / "controlnet" / "index.json").read_text())
    return [case["name"] for case in index if case["name"].startswith(beginnings)]


# --- recorded answers -------------------------------------------------------------------------------------------------

PATHS = {
    "get_version": "version", "get_settings": "settings", "get_model_list": "model_list", "get_module_list": "module_list",
    "get_module_list_alias_names_true": "module_list?alias_names=true", "get_control_types": "control_types",
}  # fmt: skip


@needs_recordings
@pytest.mark.parametrize("name", cases("get_"))
def test_lists_are_the_recorded_ones(client, name):
    a_network("tiny-control-canny", "4121a7d8")
    a_network("tiny-control-tile", "a73712c9")
    assert client.get(f"/controlnet/{PATHS[name]}").json() == recorded(name)[1]


@needs_recordings
@pytest.mark.parametrize("name", cases("detect_"))
def test_maps_and_refusals_of_detect_are_the_recorded_ones(client, tmp_path, name):
    body, answer = recorded(name)
    if "images" not in answer:
        found = client.post("/controlnet/detect", body, content_type="application/json")
        assert (found.json(), RenderJob.objects.count()) == (answer, 0)
        return
    made = controlnet.detect(wire.parsed(body, wire.DETECT))
    files = {upload.picture.sha256: tmp_path / upload.picture.sha256 for upload in made.uploads}
    for upload in made.uploads:
        files[upload.picture.sha256].write_bytes(upload.data)
    maps = [control_map(recipe, lambda picture: files[picture.sha256]) for recipe in made.build().detect]
    wanted = [np.asarray(Image.open(case_folder("controlnet", name) / file), np.int16) for file in answer["images"]]
    assert [array_of(one).shape for one in maps] == [one.shape for one in wanted]
    if name != "detect_shuffle":  # drawn anew every time
        assert all(np.array_equal(array_of(one), other) for one, other in zip(maps, wanted, strict=True))


REFUSED = ("unknown_module", "wrong_weight", "guidance_wrong_order", "resize_int_1", "mode_int_2")


@needs_recordings
@pytest.mark.parametrize("name", REFUSED)
def test_units_that_are_refused_are_refused_in_the_recorded_words(client, name):
    body, answer = recorded(name)
    found = client.post("/sdapi/v1/txt2img", {**body, "override_settings": {}}, content_type="application/json")
    assert (found.status_code, found.json(), RenderJob.objects.count()) == (500, answer, 0)


# --- units ------------------------------------------------------------------------------------------------------------


def picture_text(mode: str = "RGB") -> str:
    data = io.BytesIO()
    Image.new(mode, (8, 8)).save(data, "PNG")
    return base64.b64encode(data.getvalue()).decode()


def unit(sent: dict) -> dict:
    (found,) = units_of([sent], lambda text: picture_from_text(text).picture, save_maps=True, most=3)
    return found


def test_a_unit_that_does_not_say_whether_it_is_enabled_is():
    assert unit({})["module"] == "none"
    assert units_of([{"enabled": False}, "nothing", None], str, save_maps=True, most=3) == []


def test_units_beyond_the_installations_number_are_cut_off():
    assert len(units_of([{}] * 5, str, save_maps=True, most=3)) == 3


@pytest.mark.parametrize(
    ("sent", "field", "value"),
    [
        ({"guidance": 0.5}, "guidance_end", 0.5),
        ({"guessmode": True}, "control_mode", "ControlNet is more important"),
        ({"resize_mode": "Outer Fit (Shrink to Fit)"}, "resize_mode", "Resize and Fill"),
        ({"module": "canny", "threshold_a": 999}, "threshold_a", 100),
        ({"module": "canny", "processor_res": 7}, "processor_res", 512),
        ({"module": "shuffle", "processor_res": 128}, "processor_res", 512),
        ({"pixel_perfect": "true"}, "pixel_perfect", True),
        ({"model": None}, "model", "None"),
        ({"image": ""}, "picture", None),
    ],
    ids=lambda part: str(part)[:40],
)
def test_old_names_and_values_out_of_range_mean_what_they_meant(sent, field, value):
    assert unit(sent)[field] == value


@pytest.mark.parametrize(
    "image", [picture_text(), f"data:image/png;base64,{picture_text()}", {"image": picture_text()}, [{"image": picture_text()}]],
    ids=["base64", "data URI", "object", "list of an object"],
)  # fmt: skip
def test_a_picture_comes_in_every_form_clients_send(image):
    assert unit({"image": image})["picture"].width == 8


def test_a_mask_comes_beside_its_picture_or_inside():
    for sent in ({"image": picture_text(), "mask": picture_text()}, {"image": [picture_text(), picture_text()]}):
        assert unit({**sent, "module": "inpaint_only"})["mask"].width == 8


WRONG = {
    "a weight that is none": ({"weight": "heavy"}, 500),
    "an option that is none": ({"hr_option": "Sometimes"}, 500),
    "two values of one field": ({"guidance": 0.5, "guidance_end": 1}, 500),
    "a picture that is none": ({"image": "bm90IGE="}, 500),
    "a module that needs weights": ({"module": "depth"}, 422),
    "a picture of three parts": ({"image": ["a", "b", "c"]}, 422),
}


@pytest.mark.parametrize(("sent", "status"), WRONG.values(), ids=WRONG)
def test_a_wrong_unit_is_refused_and_nothing_is_stored(client, sent, status):
    body = {"prompt": "x", "alwayson_scripts": {"controlnet": {"args": [sent]}}}
    found = client.post("/sdapi/v1/txt2img", body, content_type="application/json")
    assert found.status_code == status and set(found.json()) == {"error", "detail", "body", "errors"}
    assert not RenderJob.objects.exists()


def pinned_unit(caller, **sent: object) -> tuple[ControlUnit, list[str]]:
    from renderjobs.compat.sdapi.profile import options_of
    from renderjobs.compat.sdapi.translate import to_request
    from renderjobs.pinning import pinned

    body = {"prompt": "x", "alwayson_scripts": {"controlnet": {"args": [{"image": picture_text(), **sent}]}}}
    values = wire.parsed(body, {**wire.TXT2IMG, **wire.OURS})
    pins = pinned(caller, to_request(values, options=options_of(caller)).build())
    assert isinstance(pins.recipe, Recipe)
    again = recipe_from(json.loads(json.dumps({"kind": "render", "recipe": pins.recipe.to_json()})))
    assert again == pins.recipe
    return pins.recipe.control[0], pins.warnings


@pytest.mark.parametrize("name", ["control_v11p_canny [d14c016b]", "control_v11p_canny", "CONTROL_V11P_CANNY", "canny"])
def test_a_network_is_found_by_every_name_the_extension_knows(caller, name):
    asset = a_network("control_v11p_canny", "d14c016b")
    found, warnings = pinned_unit(caller, model=name)
    assert (found.weights.sha256, found.model, warnings) == (asset.sha256, name, [])


def test_an_unknown_network_is_no_error_and_the_job_says_so(caller):
    found, warnings = pinned_unit(caller, model="nobody [00000000]")
    assert found.weights is None and "'nobody [00000000]' of unit 0 is unknown" in warnings[0]


def test_another_teams_network_is_unknown(caller):
    a_network("secret", "d14c016b", access="teams").teams.set([a_caller(team="rivals").team])
    assert pinned_unit(caller, model="secret")[0].weights is None


def test_a_module_without_a_network_needs_none(caller):
    assert pinned_unit(caller, module="reference_only", model="None")[1] == []


def test_every_name_of_a_module_means_the_same():
    assert all(BY_NAME[module.shown_name] is BY_NAME[module.name] for module in BY_NAME.values())


def test_a_token_is_asked_for_on_every_route():
    for name in ("version", "settings", "model_list", "module_list", "control_types"):
        assert Client().get(f"/controlnet/{name}").status_code == 401
    assert Client().post("/controlnet/detect", {}, content_type="application/json").status_code == 401


def test_what_is_no_picture_is_refused_by_name():
    with pytest.raises(HandlerError):
        controlnet.detect(wire.parsed({"controlnet_input_images": ["nothing"]}, wire.DETECT))
