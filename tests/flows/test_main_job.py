"""The main job, end to end, with the product's own engine and real clients: submit, render, deliver, read, pay."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Iterator

import pytest
import requests
from PIL import Image
from playwright.sync_api import Page

from tests.flows.conftest import Client, RunningPlatform, chromium_browser, patient_context


@pytest.fixture(scope="module")
def client(real_platform: RunningPlatform) -> Client:
    return Client(real_platform)


def picture_at(url: str) -> tuple[bytes, Image.Image]:
    answer = requests.get(url, timeout=60)
    assert answer.status_code == 200 and answer.headers["Content-Type"] == "image/png"
    return answer.content, Image.open(io.BytesIO(answer.content))


def test_a_job_is_rendered_delivered_and_paid(client):
    job = client.wait(client.submit(n_iter=2, batch_size=2, seed=5, steps=8, prompt="a red circle on blue")["id"])
    images = client.images(job["id"])
    assert job["state"] == "succeeded" and job["progress"] == 1 and [image["seed"] for image in images] == [5, 6, 7, 8]
    for image in images:
        data, picture = picture_at(image["url"])
        assert hashlib.sha256(data).hexdigest() == image["sha256"] and picture.size == (64, 64)
        assert picture.info["parameters"] == image["infotext"]
    spent = sum(float(image["cost"]["amount"]) for image in images)
    assert abs(spent - float(job["cost"]["amount"])) < 1e-9 and spent > 0


def test_the_same_request_gives_the_same_pixels(client):
    jobs = [client.wait(client.submit(seed=9, steps=6, prompt="a ring")["id"]) for _ in range(2)]
    first, second = (picture_at(client.images(job["id"])[0]["url"])[1].tobytes() for job in jobs)
    assert first == second


def test_the_grid_of_a_job_is_one_picture(client):
    job = client.wait(client.submit(n_iter=4, steps=4)["id"])
    grid = client.session.get(f"{client.base}/jobs/{job['id']}/grid", timeout=60).json()
    assert picture_at(grid["url"])[1].size == (128, 128) and grid["images"] == 4


def test_the_request_of_the_seed_document_returns_images_seeds_and_infotexts(real_platform, client):
    payload = {
        "alwayson_scripts": {"sd_model_checkpoint": "renderkiln-miniature.safetensors"},
        "prompt": "a green meadow under a blue sky",
        "negative_prompt": "night",
        "steps": 4,
        "n_iter": 2,
        "batch_size": 1,
        "seed": 21,
        "width": 576,
        "height": 576,
    }
    answer = requests.post(
        f"{real_platform.address}/sdapi/v1/txt2img", json=payload, headers={"Authorization": client.token}, timeout=600
    )
    assert answer.status_code == 200, answer.text
    info = json.loads(answer.json()["info"])
    pictures = [Image.open(io.BytesIO(base64.b64decode(data))) for data in answer.json()["images"]]
    assert [picture.size for picture in pictures] == [(576, 576)] * 2 and info["all_seeds"] == [21, 22]
    assert [picture.info["parameters"] for picture in pictures] == info["infotexts"]
    assert "Negative prompt: night" in info["infotexts"][0]


def test_the_published_client_webuiapi_renders_an_image(real_platform, client):
    import webuiapi

    api = webuiapi.WebUIApi(host="127.0.0.1", port=real_platform.port, sampler="Euler a", steps=4)
    api.set_auth("ada", client.token)
    result = api.txt2img(prompt="a yellow square", seed=3, width=64, height=64)
    assert result.image.size == (64, 64) and result.info["all_seeds"] == [3]
    assert [model["model_name"] for model in api.get_sd_models()] == ["renderkiln-miniature"]
    assert "Euler a" in [sampler["name"] for sampler in api.get_samplers()]


def test_team_b_cannot_see_team_as_job(real_platform, client):
    job = client.submit(steps=4)
    stranger = Client(real_platform, team="rivals", user="eve")
    for path in ("", "/images", "/grid"):
        answer = stranger.session.get(f"{stranger.base}/jobs/{job['id']}{path}", timeout=60)
        assert answer.status_code == 404 and answer.json()["code"] == "not_found"
    assert stranger.session.post(f"{stranger.base}/jobs/{job['id']}/cancel", timeout=60).status_code == 404
    assert stranger.session.get(f"{stranger.base}/jobs", timeout=60).json()["results"] == []
    client.wait(job["id"])


def test_a_broken_request_leaves_nothing_behind(real_platform, client):
    before = client.session.get(f"{client.base}/jobs", params={"limit": 1000}, timeout=60).json()["results"]
    body = {"kind": "txt2img", "request": {"steps": -1, "width": 100_000, "nonsense": 1}}
    answer = client.session.post(f"{client.base}/jobs", json=body, timeout=60)
    pointers = {error["pointer"] for error in answer.json()["errors"]}
    assert answer.status_code == 422 and pointers == {"#/request/steps", "#/request/width", "#/request/nonsense"}
    after = client.session.get(f"{client.base}/jobs", params={"limit": 1000}, timeout=60).json()["results"]
    assert [job["id"] for job in after] == [job["id"] for job in before]


@pytest.fixture(scope="module")
def page(real_platform: RunningPlatform) -> Iterator[Page]:
    with chromium_browser() as browser:
        yield patient_context(browser, real_platform).new_page()


@pytest.mark.parametrize(
    ("path", "shown"), [("/api/docs/", "/api/v1/jobs/{job_id}/cancel"), ("/admin/login/", 'name="username"')]
)
def test_the_pages_open_in_a_real_browser(page, path, shown):
    page.goto(path)
    # Long paths may be broken at invisible places.
    there = "shown => document.documentElement.outerHTML.replaceAll(/\\u200b|<wbr>/g, '').includes(shown)"
    page.wait_for_function(there, arg=shown)


def test_the_invariants_hold_after_all_of_it(real_platform):
    real_platform.assert_invariants()
