"""Published clients, unchanged but for address and token, on a running platform with the product's own engine."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webuiapi
from PIL import Image

from tests.flows.conftest import ROOT, Client, RunningPlatform
from tests.services import PATIENCE_SECONDS, missing, npm_packages, wait_until

JAVASCRIPT = Path(__file__).parent / "javascript"
SMALL = {"width": 64, "height": 64, "seed": 3}


@pytest.fixture(scope="module")
def platform(real_platform: RunningPlatform) -> RunningPlatform:
    for stem, kind in (("miniature-canny", "controlnet"), ("miniature-x2", "upscaler")):
        real_platform.manage("import_asset", str(ROOT / "miniature" / f"{stem}.safetensors"), "--kind", kind)
    return real_platform


@pytest.fixture(scope="module")
def api(platform: RunningPlatform) -> webuiapi.WebUIApi:
    client = webuiapi.WebUIApi(host="127.0.0.1", port=platform.port, sampler="Euler a", steps=4)
    client.set_auth("anybody", Client(platform, team="python", user="guido").token)
    client.check_extensions()
    return client


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return Image.new("RGB", (64, 64), (200, 30, 30))


def half_white() -> Image.Image:
    mask = Image.new("L", (64, 64))
    mask.paste(255, (32, 0, 64, 64))
    return mask


def test_webuiapi_draws_changes_and_inpaints(api, picture):
    drawn = api.txt2img(prompt="a yellow square", **SMALL, batch_size=2)
    assert [image.size for image in drawn.images] == [(64, 64)] * 2 and drawn.info["all_seeds"] == [3, 4]
    assert api.img2img(images=[drawn.image], prompt="a red circle", **SMALL).image.size == (64, 64)
    inpainted = api.img2img(
        images=[picture], mask_image=half_white(), mask_blur=0, inpaint_full_res=False, inpainting_fill=1,
        prompt="blue", **SMALL,
    ).image  # fmt: skip
    found = np.asarray(inpainted.convert("RGB"))
    assert (found[:, :32] == (200, 30, 30)).all() and (found[:, 32:] != (200, 30, 30)).any()


def test_webuiapi_enlarges_and_reads_what_a_picture_says(api, picture):
    drawn = api.txt2img(prompt="a yellow square", **SMALL)
    assert api.extra_single_image(picture, upscaler_1="Lanczos", upscaling_resize=2).image.size == (128, 128)
    enlarged = api.extra_batch_images([picture, drawn.image], upscaler_1="miniature-x2", upscaling_resize=2)
    assert [image.size for image in enlarged.images] == [(128, 128)] * 2
    assert "Seed: 3" in api.png_info(drawn.image).info


def test_webuiapi_controls_by_edges(api, picture):
    assert "canny" in api.controlnet_module_list()
    (model,) = api.controlnet_model_list()
    assert api.controlnet_detect([half_white()], module="canny", processor_res=64).image.size == (64, 64)
    unit = webuiapi.ControlNetUnit(image=half_white(), module="canny", model=model, processor_res=64)
    controlled = api.txt2img(prompt="a red circle", **SMALL, controlnet_units=[unit])
    assert len(controlled.images) == 2 and "ControlNet 0" in controlled.info["infotexts"][0]


def test_webuiapi_reads_every_list_and_keeps_options(api):
    assert api.util_get_model_names() == ["renderkiln-miniature.safetensors [" + api.get_sd_models()[0]["hash"] + "]"]
    assert "Euler a" in api.util_get_sampler_names() and "karras" in [row["name"] for row in api.get_schedulers()]
    lists = (
        api.get_sd_vae, api.get_upscalers, api.get_latent_upscale_modes, api.get_loras, api.get_hypernetworks,
        api.get_face_restorers, api.get_realesrgan_models, api.get_prompt_styles,
    )  # fmt: skip
    assert all(isinstance(read(), list) for read in lists)
    assert {"loaded", "skipped"} == set(api.get_embeddings()) and {"ram", "cuda"} == set(api.get_memory())
    assert api.get_cmd_flags()["listen"] is False and "x/y/z plot" in api.get_scripts()["txt2img"]
    assert api.refresh_checkpoints() is None
    api.set_options({"CLIP_stop_at_last_layers": 2})
    options = api.get_options()
    assert options["CLIP_stop_at_last_layers"] == 2 and api.set_options(options) is None
    api.util_set_model("renderkiln-miniature")
    assert api.util_get_current_model().startswith("renderkiln-miniature")


def test_webuiapi_follows_and_interrupts_its_call(api):
    assert api.get_progress()["state"]["job_count"] == 0
    ended: list[Any] = []
    call = threading.Thread(target=lambda: ended.append(api.txt2img(prompt="x", **{**SMALL, "steps": 100}, n_iter=40)))
    call.start()
    wait_until(lambda: api.get_progress()["progress"] > 0.02, what="Progress")
    assert api.skip() is None and api.interrupt() == {}
    call.join(PATIENCE_SECONDS)
    assert len(ended[0].images) < 40
    api.util_wait_for_ready(check_interval=0.1)


@pytest.fixture(scope="module")
def tour(platform: RunningPlatform) -> Callable[[str, Client], dict[str, Any]]:
    """Run one of the scripts, with the packages that their lock file names."""
    node = shutil.which("node") or missing("node")
    npm_packages(JAVASCRIPT)

    def run(script: str, client: Client) -> dict[str, Any]:
        command = [node, script, platform.address, client.token]
        done = subprocess.run(command, cwd=JAVASCRIPT, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


def test_stable_diffusion_api_of_the_npm_registry_completes_its_tour(platform, tour):
    seen = tour("webui_tour.js", Client(platform, team="javascript", user="brendan"))
    assert seen["models"] == ["renderkiln-miniature"] and seen["samplers"] == 20 and seen["cmdFlags"] == "boolean"
    assert seen["txt2img"] == {"sizes": [[64, 64]] * 2, "seeds": [3, 4]} and seen["img2img"] == [64, 64]
    assert seen["inpaint"]["kept"] == [200, 30, 30]
    assert seen["extraSingle"] == [128, 128]
    assert seen["pngInfo"] == "3" and seen["controlModules"] and seen["detect"] == [64, 64]
    assert seen["control"] == {"pictures": 2, "told": True}
    assert seen["options"] == 2 and seen["currentModel"].startswith("renderkiln-miniature")
    assert seen["idle"] == [0, 0] and seen["progress"] == [True, 40, 100] and seen["interrupted"] < 40


def test_openais_own_client_completes_its_tour(platform, tour):
    seen = tour("images_tour.js", Client(platform, team="openai", user="sam"))
    assert seen["models"] == ["renderkiln-miniature"] and seen["generated"] == [[64, 64, "png"]] * 2
    assert (
        seen["usage"]["output_tokens"] == 8 and seen["linked"] == [64, 64, "webp"] and seen["edited"] == [64, 64, "png"]
    )
    kinds = [kind for kind, _ in seen["events"]]
    assert kinds[-1] == "image_generation.completed" and set(kinds[:-1]) <= {"image_generation.partial_image"}
    assert seen["error"] == ["NotFoundError", 404, "model_not_found", "model"]
