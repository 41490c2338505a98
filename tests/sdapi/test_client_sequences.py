"""What real clients call, in their order and with their bodies, and what each of them reads of the answers."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.test import Client
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from renderjobs.compat.sdapi import views
from renderjobs.compat.sdapi.infotext import infotext_of
from renderjobs.delivery import StoredPicture, image_deliver
from renderjobs.models import RenderJob
from tests.factories import a_caller, a_checkpoint, a_platform
from tests.renderjobs.test_delivery import begun

pytestmark = pytest.mark.django_db
SMALL = {"prompt": "a red circle", "width": 64, "height": 64, "steps": 4, "seed": 7}
PNG_HEAD = "iVBORw0KGgo"


def png(text: str = "") -> bytes:
    chunks = PngInfo()
    chunks.add_text("parameters", text)
    file = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(file, "PNG", pnginfo=chunks if text else None)
    return file.getvalue()


PICTURE = base64.b64encode(png()).decode()


@pytest.fixture(autouse=True)
def worker(monkeypatch) -> None:
    """Whoever waits for a job finds it drawn."""

    def draw(job_id: Any) -> None:
        batch = begun()
        for image in batch.images:
            text = infotext_of(image.recipe) if hasattr(image.recipe, "prompt") else ""
            key = default_storage.save(f"{image.attempt_id}.png", ContentFile(data := png(text)))
            picture = StoredPicture(key, "0" * 64, len(data), 64, 64, text)
            image_deliver(batch=batch, image=image, picture=picture, gpu_us=1)

    async def drawn(job_id: Any) -> None:
        await sync_to_async(draw)(job_id)

    monkeypatch.setattr(views, "job_wait", drawn)


class Door:
    """As a script sees it: JSON in, JSON out, and a status that is expected."""

    def __init__(self, authorization: str):
        self.client = Client(headers={"Authorization": authorization})

    def get(self, path: str, status: int = 200) -> Any:
        return self._read(self.client.get(path), status)

    def post(self, path: str, body: Any = None, status: int = 200) -> Any:
        data = "" if body is None else json.dumps(body)
        return self._read(self.client.post(path, data, content_type="application/json"), status)

    def _read(self, answer: Any, status: int) -> Any:
        async def whole() -> bytes:
            return b"".join([part async for part in answer])

        content = async_to_sync(whole)() if answer.streaming else answer.content
        assert answer.status_code == status, content[:500]
        return json.loads(content)


@pytest.fixture
def door() -> Door:
    a_platform()
    a_checkpoint("other", is_default=False)
    pair = base64.b64encode(f"anybody:{a_caller().token.text}".encode()).decode()
    return Door(f"Basic {pair}")


def test_open_webui(door):
    options = door.get("/sdapi/v1/options")
    models = door.get("/sdapi/v1/sd-models")
    assert {"title", "model_name"} <= set(models[0]) and options["sd_model_checkpoint"] in [
        row["title"] for row in models
    ]
    chosen = next(row["title"] for row in models if row["model_name"] == "other")
    assert door.post("/sdapi/v1/options", {**options, "sd_model_checkpoint": chosen}) is None
    assert door.get("/sdapi/v1/options")["sd_model_checkpoint"] == chosen
    body = {"prompt": "x", "batch_size": 2, "width": 64, "height": 64, "steps": 4, "negative_prompt": "y",
            "sampler_name": "DPM++ 2M", "scheduler": "Karras", "cfg_scale": 7.5}  # fmt: skip
    made = door.post("/sdapi/v1/txt2img", body)
    assert all(text.startswith(PNG_HEAD) and "," not in text for text in made["images"]) and len(made["images"]) == 2
    assert json.loads(made["info"])["sd_model_name"] == "other"


def test_sillytavern(door):
    assert "forge_preset" not in door.get("/sdapi/v1/options")
    assert door.get("/sdapi/v1/upscalers")[0]["name"] == "None"
    assert {"name"} <= set(door.get("/sdapi/v1/schedulers")[0]) and door.get("/sdapi/v1/latent-upscale-modes")
    assert door.get("/sdapi/v1/sd-modules", status=404) == {"detail": "Not Found"}
    door.get("/sdapi/v1/sd-vae")
    door.post("/sdapi/v1/options", {"sd_model_checkpoint": door.get("/sdapi/v1/sd-models")[0]["title"]})
    progress = door.get("/sdapi/v1/progress")
    assert (progress["progress"], progress["state"]["job_count"]) == (0, 0)
    body = {
        **SMALL, "sampler_name": "Euler a", "scheduler": "Automatic", "cfg_scale": 7, "enable_hr": False,
        "hr_upscaler": "Latent", "hr_scale": 2, "hr_second_pass_steps": 0, "denoising_strength": 0.7,
        "restore_faces": False, "override_settings": {"CLIP_stop_at_last_layers": 1, "sd_vae": "Automatic"},
        "override_settings_restore_afterwards": True, "clip_skip": 1, "save_images": True, "send_images": True,
        "do_not_save_grid": False, "do_not_save_samples": False, "url": "http://x", "auth": "a:b",
    }  # fmt: skip
    assert len(door.post("/sdapi/v1/txt2img", body)["images"]) == 1
    assert door.post("/sdapi/v1/interrupt") == {}


def test_auto_photoshop(door):
    for path in ("sd-models", "samplers", "options", "upscalers", "scripts", "loras", "embeddings", "prompt-styles"):
        door.get(f"/sdapi/v1/{path}")
    for path in ("version", "settings", "model_list", "module_list"):
        door.get(f"/controlnet/{path}")
    door.post("/sdapi/v1/options", {"inpainting_mask_weight": 1.0})
    door.get("/sdapi/v1/progress?skip_current_image=false")
    body = {**SMALL, "uniqueDocumentId": "1", "use_prompt_shortcut": True, "prompt_shortcut": {}, "mode": "txt2img",
            "alwayson_scripts": {"controlnet": {"args": []}}}  # fmt: skip
    made = door.post("/sdapi/v1/txt2img", body)
    read = door.post("/sdapi/v1/png-info", {"image": made["images"][0]})
    parameters = read["info"].rpartition("\n")[2]
    assert parameters.startswith("Steps: 4, ") and "Seed: 7" in parameters
    door.post("/sdapi/v1/img2img", {**body, "init_images": made["images"], "mask": PICTURE, "inpaint_full_res": 0})
    door.post("/sdapi/v1/extra-single-image", {"image": made["images"][0], "upscaler_1": "Lanczos"})
    assert door.post("/sdapi/v1/interrupt") == {}


def test_openoutpaint(door):
    moved = door.client.get("/sdapi/v1/options/")
    assert (moved.status_code, moved.headers["Location"]) == (307, "/sdapi/v1/options")
    soft = {"Soft Inpainting": {"args": [True, 1, 0.5, 4, 0, 0.5, 2]}}
    body = {**SMALL, "sampler_index": "DPM++ 2M Karras", "init_images": [PICTURE], "mask": PICTURE,
            "inpainting_fill": 1, "inpaint_full_res": False, "alwayson_scripts": soft}  # fmt: skip
    made = door.post("/sdapi/v1/img2img", body)
    assert made["images"][0].startswith(PNG_HEAD) and made["parameters"]["init_images"] is None
    assert RenderJob.objects.get().request["sampler"] == "DPM++ 2M"
    assert door.get("/sdapi/v1/progress?skip_current_image=true")["current_image"] is None


def test_ai_render(door):
    body = {**SMALL, "sampler_index": "DPM++ 2S a Karras", "init_images": [PICTURE], "denoising_strength": 0.4}
    door.post("/sdapi/v1/img2img", body)
    assert RenderJob.objects.get().request["schedule"] in ("Automatic", "Karras")
    enlarged = door.post("/sdapi/v1/extra-single-image", {"image": PICTURE, "upscaler_1": "Lanczos", "resize_mode": 0})
    assert set(enlarged) == {"html_info", "image"}


def test_text_generation_webui(door):
    assert door.post("/sdapi/v1/unload-checkpoint", "") == {} and door.post("/sdapi/v1/reload-checkpoint", "") == {}
    made = door.post("/sdapi/v1/txt2img", {**SMALL, "enable_hr": False, "hr_scale": "1.0", "hr_upscaler": "ESRGAN_4x"})
    assert made["images"][0].split(",", 1)[0].startswith(PNG_HEAD)


def test_librechat(door):
    info = json.loads(door.post("/sdapi/v1/txt2img", {**SMALL, "negative_prompt": "", "cfg_scale": 4.5})["info"])
    assert info["infotexts"][0].startswith("a red circle") and (info["seed"], info["width"], info["height"]) == (
        7,
        64,
        64,
    )
    assert info["sampler_name"] == "Euler"


@pytest.mark.parametrize("spelling", ["title", "model_name", "hash", "sha256"])
def test_a_checkpoint_is_chosen_by_any_of_its_names(door, spelling):
    wanted = next(row for row in door.get("/sdapi/v1/sd-models") if row["model_name"] == "other")
    door.post("/sdapi/v1/options", {"sd_model_checkpoint": wanted[spelling]})
    assert door.get("/sdapi/v1/options")["sd_model_checkpoint"] == wanted["title"]
