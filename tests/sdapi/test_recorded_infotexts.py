"""Infotexts and ``extra_generation_params`` of A1111's recordings, written again from the recipes."""

from __future__ import annotations

import re

import pytest

from renderjobs.compat.sdapi.infotext import extra_parameters_of, infotext_of
from tests.engine.recordings import case_of, needs_recordings
from tests.engine.test_recorded_pictures import recorded_cases

pytestmark = needs_recordings
KNOWN_TO_DIFFER = {
    # The recorded body holds a whole number that the door makes decimal before a recipe sees it; an option would stay whole.
    ("sdxl", "alternation_ngms"),
}
CASES = [case for case in recorded_cases() if case not in KNOWN_TO_DIFFER]


@pytest.mark.parametrize(("group", "name"), CASES, ids=lambda part: part)
def test_infotexts_are_the_recorded_ones(group, name):
    case = case_of(group, name)
    wanted = case.info["infotexts"][case.info["index_of_first_image"] :]
    assert [unversioned(infotext_of(recipe)) for recipe in case.spec.recipes] == [unversioned(text) for text in wanted]
    assert extra_parameters_of(case.spec.recipes[0]) == case.info["extra_generation_params"]


def unversioned(text: str) -> str:
    return re.sub(r", Version: .*", "", text)


def test_cases_that_are_known_to_differ_exist():
    assert set(recorded_cases()) >= KNOWN_TO_DIFFER
