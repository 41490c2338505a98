"""The safety filter at A1111's door: a caught picture is an answer like any other, and a header says which it was."""

from __future__ import annotations

import pytest
from django.test import Client

from renderjobs.models import SafetyPolicy
from tests.factories import a_caller, a_checkpoint, a_platform
from tests.sdapi.test_txt2img import post, worker  # noqa: F401

pytestmark = pytest.mark.django_db(transaction=True)
SMALL = {"width": 64, "height": 64, "steps": 2}


@pytest.fixture
def door() -> Client:
    a_platform()
    a_checkpoint("watchful", kind="safety_filter", family="safety_checker", is_default=False)
    return Client(headers={"Authorization": f"Bearer {a_caller().token.text}"})


@pytest.mark.parametrize(("mode", "verdict"), [("blur", "blurred"), ("refuse", "blocked")])
def test_a_header_says_which_pictures_were_caught(door, worker, mode, verdict):  # noqa: F811
    SafetyPolicy.objects.create(team=a_caller().team, mode=mode)
    answer = post(door, **SMALL, prompt="please catch", n_iter=2)
    assert answer.status_code == 200 and answer.headers["X-Safety-Verdicts"] == f"{verdict}, {verdict}"
    assert post(door, **SMALL, prompt="a meadow").headers["X-Safety-Verdicts"] == "passed"


def test_without_a_policy_nothing_is_said(door, worker):  # noqa: F811
    assert "X-Safety-Verdicts" not in post(door, **SMALL, prompt="please catch").headers
