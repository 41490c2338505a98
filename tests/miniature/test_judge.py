"""The judge says yes to what was drawn as asked and no to anything else; and it judges the shipped checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from miniature.judge import CASES, judged, rendered
from miniature.scenes import Figure

CHECKPOINT = Path(__file__).resolve().parents[2] / "miniature" / "renderkiln-miniature.safetensors"
SINGLE = [case for case in CASES if len(case.scene.figures) == 1]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.prompt)
def test_a_scene_as_it_is_drawn_is_right(case):
    verdict = judged(case.scene.draw(64, Random(3)), case.scene)
    assert verdict.colours and verdict.shape


@pytest.mark.parametrize("case", SINGLE, ids=lambda case: case.prompt)
def test_another_shape_colour_or_place_is_wrong(case):
    (figure,) = case.scene.figures
    other = Figure(
        "square" if figure.shape != "square" else "ring",
        "cyan" if figure.colour != "cyan" and case.scene.ground != "cyan" else "pink",
        "right" if figure.position != "right" else "left",
    )
    for changes in ({"shape": other.shape}, {"position": other.position}):
        drawn = replace(case.scene, figures=(replace(figure, **changes),)).draw(64, Random(3))
        assert not judged(drawn, case.scene).shape
    recoloured = replace(case.scene, figures=(replace(figure, colour=other.colour),)).draw(64, Random(3))
    assert not judged(recoloured, case.scene).colours


def test_a_plain_picture_is_no_figure():
    plain = replace(SINGLE[0].scene, figures=()).draw(64, Random(3))
    assert not judged(plain, SINGLE[0].scene).shape


def test_the_shipped_checkpoint_follows_its_prompt():
    cases = (CASES[0], CASES[3], CASES[18], CASES[22])
    verdicts = [
        judged(picture, case.scene)
        for case, picture in zip(cases, rendered(CHECKPOINT, cases, seeds=(11,)), strict=True)
    ]
    assert all(verdict.colours for verdict in verdicts) and sum(verdict.shape for verdict in verdicts) >= 3
