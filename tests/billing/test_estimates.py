"""What a job will probably cost: from what was measured, else from a long assumed time."""

from __future__ import annotations

from decimal import Decimal

import pytest
from django.test import Client

from billing.estimates import FEWEST_SAMPLES, assumed, learned
from billing.models import Hold
from renderjobs.models import RenderJob
from renderjobs.request import RenderRequest
from renderjobs.work import pixel_steps
from tests.billing.budgets import a_budget
from tests.factories import a_caller, a_job, a_platform
from tests.renderjobs.test_races import work_until_empty

SAME = [(100, us) for us in range(1, 11)]


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        (SAME, (5, 9)),
        (SAME[: FEWEST_SAMPLES - 1], None),
        ([(50, us) for us in range(10, 20)], (28, 2 * 36)),
        ([(1000, us) for us in range(10, 20)], (14, 2 * 18)),
    ],
    ids=["same size", "too few", "smaller ones are scaled", "a small one never costs less than a large one"],
)
def test_m1_p50_and_p90_are_learned_from_images_alike(samples, expected):
    assert learned(samples, 100) == expected


def test_what_was_never_measured_is_assumed_to_take_long():
    assert assumed(1)[1] == 30_000_000 and assumed(100_000_000)[1] == 1_000_000_000


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, 64 * 64 * 4),
        ({"kind": "img2img", "denoising_strength": 0.5, "img2img": True}, 64 * 64 * 3),
        ({"hires": {"scale": 2.0}, "denoising_strength": 0.5}, 64 * 64 * 4 + 128 * 128 * 3),
        ({"hires": {"scale": 2.0, "steps": 10}, "denoising_strength": 1.0}, 64 * 64 * 4 + 128 * 128 * 10),
    ],
    ids=["plain", "img2img", "hires", "hires with its own steps"],
)
def test_work_counts_pixels_and_steps_of_every_pass(values, expected):
    from gpuworker.contract import InputPicture

    if values.pop("img2img", False):
        values["img2img"] = [{"picture": InputPicture(sha256="0" * 64, width=64, height=64)}]
    request = RenderRequest.build({"width": 64, "height": 64, "steps": 4, **values})
    assert pixel_steps(request) == expected


def ask(caller, **body) -> dict:
    request = {"width": 64, "height": 64, "steps": 4, **body.pop("request", {})}
    client = Client(headers={"Authorization": f"Bearer {caller.token.text}"})
    return client.post(
        "/api/v1/jobs/estimate", {"kind": "txt2img", "request": request, **body}, content_type="application/json"
    )


@pytest.mark.django_db
def test_m1_the_estimate_has_price_and_free_budget_and_stores_nothing():
    a_platform()
    caller = a_caller()
    a_budget("team", limit="1", team=caller.team, name="spring")
    answer = ask(caller, request={"n_iter": 2}).json()
    assert (answer["images"], answer["most"], answer["likely"]) == (2, "0.060000", "0.030000")
    assert (answer["currency"], answer["rate_card"], answer["measured"], answer["fits"]) == ("USD", "v1", False, True)
    assert answer["free"] == "1.000000" and answer["budgets"][0]["name"] == "spring"
    assert not RenderJob.objects.exists() and not Hold.objects.exists()


@pytest.mark.django_db
def test_an_estimate_says_that_it_does_not_fit():
    a_platform()
    caller = a_caller()
    a_budget("organisation", limit="0.01")
    assert ask(caller).json()["fits"] is False


@pytest.mark.django_db
@pytest.mark.parametrize(
    "body",
    [{"request": {"steps": 0}}, {"request": {"sd_model_checkpoint": "nowhere"}}, {"project": "none"}, {"lane": "fast"}],
    ids=["steps", "checkpoint", "project", "lane"],
)
def test_an_estimate_refuses_what_a_submission_refuses(body):
    a_platform()
    caller = a_caller()
    estimated, client = ask(caller, **body), Client(headers={"Authorization": f"Bearer {caller.token.text}"})
    request = {"width": 64, "height": 64, "steps": 4, **body.pop("request", {})}
    submitted = client.post(
        "/api/v1/jobs", {"kind": "txt2img", "request": request, **body}, content_type="application/json"
    )
    assert estimated.status_code == submitted.status_code == 422 and estimated.json() == submitted.json()


@pytest.mark.django_db(transaction=True)
def test_m1_after_some_images_the_hold_is_what_they_took():
    a_job(n_iter=FEWEST_SAMPLES)
    work_until_empty("w1")
    a_job()
    assert Hold.objects.latest("pk").amount == Decimal("0.000001")  # 1000 microseconds each
