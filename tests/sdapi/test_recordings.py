"""Requests recorded from A1111 1.10.1: what this door makes of them without rendering, against the recorded answers."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from renderjobs.compat.sdapi import wire
from renderjobs.compat.sdapi.errors import HandlerError, WireError, answer_of
from renderjobs.compat.sdapi.infotext import extra_parameters_of, infotext_of
from renderjobs.compat.sdapi.profile import default_options
from renderjobs.compat.sdapi.translate import to_request
from renderjobs.compat.sdapi.wire import OURS, TXT2IMG
from renderjobs.expansion import recipe_of, seeds_of
from renderjobs.request import RenderRequest
from tests.engine.recordings import A1111, needs_recordings

pytestmark = needs_recordings
OTHER_FEATURES = (
    "styles", "embedding",
    # A1111 names these in the infotext only when they come from options, and a recipe does not say where they came from.
    "s_churn_options",
)  # fmt: skip
REFUSED = """alwayson_refiner_script discard_penultimate hires lora ngms override_vae pad_conds refiner rng_cpu rng_nv
    sched_override_sigmas script sgm_noise_multiplier skip_early_cfg token_merging unipc_bh2_order2 zsnr"""


def txt2img_cases() -> list[dict[str, Any]]:
    index = A1111 / "index.json"
    cases = json.loads(index.read_text()) if index.is_file() else []
    return [case for case in cases if case["endpoint"].endswith("/txt2img") and case["status"] == 200]


CASES = [case["name"] for case in txt2img_cases()]
UNSUPPORTED = [name for name in CASES if name.startswith(tuple(REFUSED.split()))]
SUPPORTED = [name for name in CASES if name not in UNSUPPORTED and not name.startswith(OTHER_FEATURES)]


def recorded(name: str, file: str) -> dict[str, Any]:
    return json.loads((A1111 / "cases" / name / file).read_text())


def translated(name: str) -> tuple[dict[str, Any], RenderRequest]:
    values = wire.parsed(recorded(name, "request.json"), {**TXT2IMG, **OURS})
    return values, to_request(values, options=default_options())


@pytest.mark.parametrize("name", SUPPORTED)
def test_echo_seeds_and_infotexts_are_the_recorded_ones(name):
    values, request = translated(name)
    answer = recorded(name, "response.json")
    info = json.loads(answer["info"])
    assert json.dumps({field: values[field] for field in TXT2IMG}) == json.dumps(answer["parameters"])
    seeds = [seed for seed, _ in seeds_of(request, random.Random(0))]
    assert request.seed == -1 or seeds == info["all_seeds"]
    pairs = zip(info["all_seeds"], info["all_subseeds"], strict=True)
    checkpoint = {"checkpoint_sha256": info["sd_model_hash"].ljust(64, "0"), "checkpoint_name": info["sd_model_name"]}
    recipes = [recipe_of(request, seed=seed, subseed=subseed, **checkpoint) for seed, subseed in pairs]
    assert [infotext_of(recipe) for recipe in recipes] == info["infotexts"][info["index_of_first_image"] :]
    assert extra_parameters_of(recipes[0]) == info["extra_generation_params"]
    assert request.sampler == info["sampler_name"] and request.prompt == info["prompt"]


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_would_draw_another_picture_here_is_refused_by_name(name):
    with pytest.raises((WireError, HandlerError)) as raised:
        translated(name)
    response = answer_of(raised.value)
    assert response.status_code == 422 and b"not supported" in response.content or b"not found" in response.content


WRONG = ["post_bad_alwayson_script", "post_bad_type_steps", "post_invalid_json", "post_prompt_list",
         "post_unknown_override_key"]  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_errors_are_answered_as_recorded(name):
    case = json.loads((A1111 / "api" / f"{name}.json").read_text())
    body = case["request"]["body"]
    data = body if isinstance(body, str) else json.dumps(body)
    with pytest.raises((WireError, HandlerError)) as raised:
        to_request(wire.parsed(wire.body_of(data.encode()), {**TXT2IMG, **OURS}), options=default_options())
    response = answer_of(raised.value)
    assert (response.status_code, json.loads(response.content)) == (case["status"], case["body"])
