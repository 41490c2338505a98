"""How two names of a request become one sampler and one schedule."""

from __future__ import annotations

import json

import pytest

from gpuworker.contract.samplers import SAMPLERS, SCHEDULES, UnknownSamplerError, resolve_sampler
from tests.engine.recordings import A1111, needs_recordings


@pytest.mark.parametrize(
    ("name", "scheduler", "sampler", "label"),
    [
        ("Euler", None, "Euler", "Automatic"),
        ("DPM++ 2M", None, "DPM++ 2M", "Karras"),
        ("DPM++ 2M Karras", None, "DPM++ 2M", "Karras"),
        ("DPM++ 2M karras", None, "DPM++ 2M", "Karras"),
        ("DPM++ 2M SDE Karras", None, "DPM++ 2M SDE", "Karras"),
        ("DPM++ 2M Karras", "Exponential", "DPM++ 2M", "Exponential"),
        ("DPM++ 2M", "automatic", "DPM++ 2M", "Karras"),
        ("Euler a Karras", None, "Euler a", "Karras"),
        ("Euler SGMUniform", None, "Euler", "SGM Uniform"),
        ("Euler sgm_uniform", None, "Euler", "SGM Uniform"),
        ("Euler SGM Uniform", None, "Euler", "SGM Uniform"),
        ("Euler", "bogus", "Euler", "Automatic"),
        ("DDIM", None, "DDIM", "Automatic"),
        ("k_euler_a", None, "DPM++ 2M", "Karras"),
        ("foo", None, "DPM++ 2M", "Karras"),
    ],
)
def test_names_are_resolved(name, scheduler, sampler, label):
    resolved = resolve_sampler(name, scheduler)
    assert (resolved.sampler.name, resolved.schedule_label_for_infotext) == (sampler, label)


def test_unknown_sampler_is_an_error_in_strict_mode():
    with pytest.raises(UnknownSamplerError, match="foo"):
        resolve_sampler("foo Karras", None, strict=True)


@needs_recordings
def test_recorded_lists_are_met():
    recorded = json.loads((A1111 / "api" / "get_samplers.json").read_text())["body"]
    ours = [{"name": info.name, "aliases": list(info.aliases), "options": info.options} for info in SAMPLERS]
    assert ours == recorded
    recorded = json.loads((A1111 / "api" / "get_schedulers.json").read_text())["body"]
    names = [
        (row["name"], row["label"], row["aliases"], row["default_rho"], row["need_inner_model"]) for row in recorded
    ]
    ours = [
        (info.name, info.label, list(info.aliases) if info.aliases else None, info.default_rho, info.need_inner_model)
        for info in SCHEDULES
    ]
    assert ours == names


@needs_recordings
def test_recorded_infotexts_name_the_same():
    for case in sorted((A1111 / "cases").iterdir()):
        request = json.loads((case / "request.json").read_text())
        info = json.loads(json.loads((case / "response.json").read_text()).get("info", "{}"))
        if not info:
            continue
        resolved = resolve_sampler(request.get("sampler_name") or "Euler", request.get("scheduler"))
        expected = f"Sampler: {resolved.sampler.name}, Schedule type: {resolved.schedule_label_for_infotext},"
        assert expected in info["infotexts"][0], case.name
