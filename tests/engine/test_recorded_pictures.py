"""Pictures A1111 made, made again: no value of any picture may be further than 1 of 255 from the recorded one.

The few that are further stand in ``docs/recorded-cases.md`` with distance and reason; that table is what is asserted here.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from gpuworker.engine import DiffusersRenderer
from tests.engine.recordings import A1111, MORE, array_of, case_folder, case_of, distance, needs_recordings

pytestmark = needs_recordings

TABLE = Path(__file__).resolve().parents[2] / "docs" / "recorded-cases.md"
ROW = re.compile(r"^\| `(\w+)/(\w+)` \| (\d+) \|", re.MULTILINE)
GROUPS = ("a1111", "controlnet", "inpaint_model", "networks", "sd2", "sdxl", "upscalers")


def recorded_cases() -> list[tuple[str, str]]:
    """Every answered generation request but those of selectable scripts."""
    if not A1111.is_dir():
        return []
    found = []
    for group in GROUPS:
        for case in json.loads(((A1111 if group == "a1111" else MORE / group) / "index.json").read_text()):
            folder = case_folder(group, case["name"])
            generated = case["endpoint"].endswith(("/txt2img", "/img2img")) and case["status"] == 200
            if (
                generated
                and case["images"]
                and not json.loads((folder / "request.json").read_text()).get("script_name")
            ):
                found.append((group, case["name"]))
    return found


@cache
def allowed() -> dict[tuple[str, str], int]:
    return {(group, name): int(levels) for group, name, levels in ROW.findall(TABLE.read_text())}


@pytest.fixture(scope="module")
def recorded_renderer() -> DiffusersRenderer:
    return DiffusersRenderer()


@pytest.mark.parametrize(("group", "name"), recorded_cases(), ids=lambda part: part)
def test_recorded_picture_is_met(recorded_renderer, group, name):
    case = case_of(group, name)
    outcomes = list(recorded_renderer.render(case.spec, on_step=lambda *_: None, should_stop=lambda: False))
    assert distance(case, outcomes) <= allowed().get((group, name), 1), outcomes
    if group == "controlnet":
        maps = [array_of(one.picture) for one in outcomes[0].attachments if one.role == "control_map"]
        recorded = [one if one.ndim == 3 else one[:, :, None] for one in case.others]
        assert [one.shape for one in maps] == [one.shape for one in recorded]
        assert all(np.abs(one - other).max() <= 1 for one, other in zip(maps, recorded, strict=True))


def test_table_names_no_case_that_is_not_there():
    assert allowed().keys() <= set(recorded_cases())
