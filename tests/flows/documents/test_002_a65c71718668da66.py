"""Document 002, an article on the API of A1111 (Chinese, 2024): its one request and what it shows of the answer."""

from __future__ import annotations

import base64
import io
import json

from PIL import Image

from tests.flows.documents.conftest import Documented, body_of

REQUEST = """
{
    "batch_size": 1,
    "cfg_scale": 7,
    "negative_prompt": "NSFW",
    "override_settings": {
        "sd_model_checkpoint": "anythingv5nijimix_25BEST.safetensors [8bc735ed57]"
    },
    "clip_skip": 1,
    "prompt": "full body,  a  girl,  blue hand, Long yellow hair,   blue shoes, write background,  <lora:20240320-1710939437372:1>",
    "restore_faces": false,
    "sampler_index": "DPM++ SDE Karras",
    "sampler_name": "",
    "script_args": [],
    "seed": -1,
    "steps": 20,
    "tiling": false,
    "width": 512,
    "height": 512
}
"""
INFO = {
    "prompt", "all_prompts", "negative_prompt", "all_negative_prompts", "seed", "all_seeds", "subseed", "all_subseeds",
    "subseed_strength", "width", "height", "sampler_name", "cfg_scale", "steps", "batch_size", "restore_faces",
    "face_restoration_model", "sd_model_name", "sd_model_hash", "sd_vae_name", "sd_vae_hash", "seed_resize_from_w",
    "seed_resize_from_h", "denoising_strength", "extra_generation_params", "index_of_first_image", "infotexts", "styles",
    "job_timestamp", "clip_skip", "is_using_inpainting_conditioning", "version",
}  # fmt: skip


def test_01_a_request_with_a_checkpoint_and_a_lora(documented: Documented):
    answer = documented.request("/sdapi/v1/txt2img", body_of(REQUEST))
    info, echo = json.loads(answer["info"]), answer["parameters"]
    assert Image.open(io.BytesIO(base64.b64decode(answer["images"][0]))).size == (512, 512)
    assert set(info) == INFO and info["sampler_name"] == "DPM++ SDE" and info["seed"] >= 0
    assert info["sd_model_name"] == "anythingv5nijimix_25BEST"
    assert list(info["extra_generation_params"]["Lora hashes"].partition(":")[:1]) == ["20240320-1710939437372"]
    assert (echo["seed"], echo["sampler_index"], echo["steps"]) == (-1, "DPM++ SDE Karras", 20)
    assert echo["override_settings"] == {"sd_model_checkpoint": "anythingv5nijimix_25BEST.safetensors [8bc735ed57]"}
