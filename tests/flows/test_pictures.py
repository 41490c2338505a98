"""Pictures in, pictures out, with the product's own engine: img2img, inpainting, hires, LoRA, extras, file formats."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import numpy as np
import pytest
import requests
from PIL import Image

from tests.flows.conftest import ROOT, Client, RunningPlatform

SMALL = {"steps": 4, "width": 64, "height": 64, "seed": 3, "sampler_name": "Euler a"}
COMPANIONS = {
    "miniature-moonlight": "lora", "miniature-x2": "upscaler", "kilnharbour": "embedding", "miniature-canny": "controlnet",
}  # fmt: skip
"""Stem → kind."""


@pytest.fixture(scope="module")
def client(real_platform: RunningPlatform) -> Client:
    for stem, kind in COMPANIONS.items():
        real_platform.manage("import_asset", str(ROOT / "miniature" / f"{stem}.safetensors"), "--kind", kind)
    return Client(real_platform)


def as_text(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def pictures_of(answer: dict[str, Any]) -> list[Image.Image]:
    texts = answer.get("images") or [answer["image"]]
    return [Image.open(io.BytesIO(base64.b64decode(text))) for text in texts]


@pytest.fixture(scope="module")
def call(real_platform: RunningPlatform, client: Client):
    def post(path: str, **body: Any) -> requests.Response:
        headers = {"Authorization": client.token}
        return requests.post(f"{real_platform.address}/sdapi/v1/{path}", json=body, headers=headers, timeout=600)

    return post


def half_white() -> Image.Image:
    mask = Image.new("L", (64, 64))
    mask.paste(255, (32, 0, 64, 64))
    return mask


def test_inpainting_leaves_what_the_mask_protects(call):
    given = Image.new("RGB", (64, 64), (200, 30, 30))
    answer = call(
        "img2img", **SMALL, init_images=[as_text(given)], mask=as_text(half_white()), mask_blur=0,
        inpaint_full_res=False, inpainting_fill=1, prompt="blue", denoising_strength=0.9,
    ).json()  # fmt: skip
    (picture,) = pictures_of(answer)
    found = np.asarray(picture.convert("RGB")).astype(int)
    assert (found[:, :32] == (200, 30, 30)).all() and (found[:, 32:] != (200, 30, 30)).any()
    assert "Denoising strength: 0.9" in picture.info["parameters"]
    assert answer["parameters"]["init_images"] is None


def test_hires_lora_and_embedding_reach_the_picture_and_its_text(call):
    plain, dark = (
        call("txt2img", **SMALL, prompt=f"a white circle, kilnharbour {tag}", enable_hr=True, hr_scale=1.5).json()
        for tag in ("", "<lora:miniature-moonlight:1>")
    )
    (first,), (second,) = pictures_of(plain), pictures_of(dark)
    assert first.size == second.size == (96, 96)
    assert np.abs(np.asarray(second).astype(int) - np.asarray(first)).mean() > 10
    assert "Lora hashes" in second.info["parameters"] and "TI hashes" in second.info["parameters"]
    assert "Hires upscale: 1.5" in json.loads(dark["info"])["infotexts"][0]


def test_unknown_names_answer_as_a1111_does(call):
    drawn = call("txt2img", **SMALL, prompt="<lora:nobody:1>")
    assert drawn.status_code == 200 and "nobody" in drawn.headers["X-Warnings"]
    refused = call("txt2img", **SMALL, refiner_checkpoint="nobody")
    assert (refused.status_code, refused.json()["errors"]) == (500, "Could not find checkpoint with name nobody")


@pytest.mark.parametrize(("name", "size"), [("Lanczos", (32, 24)), ("miniature-x2", (32, 24))])
def test_extras_enlarge(call, name, size):
    given = Image.new("RGB", (16, 12), (10, 200, 90))
    answer = call("extra-single-image", image=as_text(given), upscaler_1=name, upscaling_resize=2).json()
    assert pictures_of(answer)[0].size == size
    assert answer["html_info"] == f"<p>Postprocess upscale by: 2.0, Postprocess upscaler: {name}</p>"


@pytest.mark.parametrize(
    ("name", "text"), [("Lanczos", "Postprocess upscale by: 2, Postprocess upscaler: Lanczos"), ("None", "")]
)
def test_an_extras_picture_says_what_was_done_to_it(call, name, text):
    answer = call("extra-single-image", image=as_text(Image.new("RGB", (16, 12))), upscaler_1=name).json()
    assert pictures_of(answer)[0].info["postprocessing"] == text
    assert answer["html_info"] == f"<p>{text}</p>"


def test_extras_of_many_pictures_come_in_their_order(call):
    pictures = [{"data": as_text(Image.new("RGB", (side, 16))), "name": str(side)} for side in (16, 24, 32)]
    answer = call("extra-batch-images", imageList=pictures, upscaler_1="Nearest", upscaling_resize=2).json()
    assert [picture.size for picture in pictures_of(answer)] == [(32, 32), (48, 32), (64, 32)]


def test_a_control_unit_reaches_the_picture_and_its_map_follows(call):
    edges = Image.new("L", (64, 64))
    edges.paste(255, (16, 16, 48, 18))
    unit = {"model": "miniature-canny", "image": as_text(edges), "weight": 1.5}
    plain, drawn, missing = (
        call("txt2img", **SMALL, batch_size=2, prompt="a circle", alwayson_scripts={"ControlNet": {"args": units}})
        for units in ([], [unit], [{**unit, "model": "nobody"}])
    )
    free, held, left = (pictures_of(answer.json()) for answer in (plain, drawn, missing))
    assert (len(free), len(held), len(left)) == (2, 3, 2)
    assert np.asarray(held[0]).tolist() != np.asarray(free[0]).tolist() == np.asarray(left[0]).tolist()
    assert np.array_equal(np.asarray(held[2].convert("L")), np.asarray(edges))
    assert "Model: miniature-canny, Weight: 1.5" in held[0].info["parameters"]
    assert "nobody" in missing.headers["X-Warnings"]


def test_the_file_format_is_the_callers_choice(call):
    answer = call("txt2img", **SMALL, override_settings={"samples_format": "jpg", "jpeg_quality": 90}).json()
    assert pictures_of(answer)[0].format == "JPEG"


def test_the_job_api_takes_pictures_too(real_platform, client):
    request = {**SMALL, "init_images": [as_text(Image.new("RGB", (64, 64), "green"))], "denoising_strength": 0.5}
    answer = client.session.post(f"{client.base}/jobs", json={"kind": "img2img", "request": request}, timeout=60)
    job = client.wait(answer.json()["id"])
    assert job["state"] == "succeeded" and job["kind"] == "img2img"
    real_platform.assert_invariants()


def test_the_job_api_takes_control_units_and_shows_their_maps(real_platform, client):
    unit = {"module": "canny", "model": "miniature-canny", "processor_res": 64, "image": as_text(half_white())}
    body = {"kind": "txt2img", "request": {**SMALL, "control": [unit]}}
    job = client.wait(client.session.post(f"{client.base}/jobs", json=body, timeout=60).json()["id"])
    (image,) = client.images(job["id"])
    (attachment,) = image["attachments"]
    data = requests.get(attachment["url"], timeout=60).content
    assert (job["state"], attachment["role"]) == ("succeeded", "control_map")
    assert Image.open(io.BytesIO(data)).size == (attachment["width"], attachment["height"]) == (64, 64)
    real_platform.assert_invariants()


def test_pictures_and_control_maps_lie_where_the_answer_says(call, real_platform):
    unit = {"module": "canny", "model": "miniature-canny", "image_link": as_text(half_white()), "processor_res": 64}
    mount = "/code/stable-diffusion-webui/data"
    scripts = {"save_dir": f"{mount}/outputs", "controlnet": {"args": [unit]}}
    parameters = call("txt2img", **SMALL, prompt="a red circle", n_iter=2, alwayson_scripts=scripts).json()[
        "parameters"
    ]
    (files,) = (real_platform.data_dir / "media" / "pictures").glob("*/files/data")
    grid, *pictures = (Image.open(path.replace(mount, str(files))) for path in parameters["image_url"].split(","))
    assert grid.size == (128, 64) and [picture.size for picture in pictures] == [(64, 64)] * 2
    assert "Seed: 4," in pictures[1].info["parameters"] and parameters["seed"] == "3,4"
    maps = [np.asarray(Image.open(path.replace(mount, str(files)))) for path in parameters["image_mask_url"].split(",")]
    assert len(maps) == 2 and all(drawn.any() for drawn in maps)
    real_platform.assert_invariants()
