"""Requests recorded from A1111 1.10.1: what this door makes of them without rendering, against the recorded answers."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from renderjobs.compat.sdapi import wire
from renderjobs.compat.sdapi.errors import HandlerError, WireError, answer_of
from renderjobs.compat.sdapi.profile import default_options
from renderjobs.compat.sdapi.translate import to_request
from renderjobs.compat.sdapi.wire import IMG2IMG, OURS, TXT2IMG
from renderjobs.expansion import seeds_of
from tests.engine.recordings import A1111, needs_recordings

pytestmark = needs_recordings
FIELDS = {"txt2img": TXT2IMG, "img2img": IMG2IMG}


def generations() -> list[str]:
    """Cases of one call each; selectable scripts make several of one."""
    index = A1111 / "index.json"
    cases = json.loads(index.read_text()) if index.is_file() else []
    names = [case["name"] for case in cases if case["status"] == 200]
    return [name for name in names if not recorded(name, "request.json").get("script_name")]


def recorded(name: str, file: str) -> dict[str, Any]:
    return json.loads((A1111 / "cases" / name / file).read_text())


@pytest.mark.parametrize("name", generations())
def test_echo_and_seeds_are_the_recorded_ones(name):
    body, answer = recorded(name, "request.json"), recorded(name, "response.json")
    kind = "img2img" if "init_images" in body else "txt2img"
    values = wire.parsed(body, {**FIELDS[kind], **OURS})
    request = to_request(values, options=default_options(), kind=kind).build()
    info, echo = json.loads(answer["info"]), {field: values[field] for field in FIELDS[kind]}
    if kind == "img2img":
        echo, answer["parameters"] = (
            {**shown, "init_images": None, "mask": None} for shown in (echo, answer["parameters"])
        )
    assert json.dumps(echo) == json.dumps(answer["parameters"])
    seeds = [seed for seed, _ in seeds_of(request, random.Random(0))]
    assert request.seed == -1 or seeds == info["all_seeds"]
    assert request.sampler == info["sampler_name"]


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
