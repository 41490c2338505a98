"""The safety filter from policy to delivered picture: real engine, shipped miniature, a checker of one dictated concept."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from django.core.files.storage import default_storage
from django.core.management import call_command
from django.test import Client
from PIL import Image

from assets.models import Asset
from billing.models import LedgerTransaction
from gpuworker.engine import DiffusersRenderer
from gpuworker.runner import Runner
from renderjobs.models import RenderImage, RenderJob, SafetyPolicy
from renderjobs.submission import job_repeat
from tests.engine.companions import a_safety_checker
from tests.factories import a_caller, a_job, a_platform
from tests.gpuworker.test_runner import a_runner, threads_of_the_runners_end  # noqa: F401

pytestmark = pytest.mark.django_db(transaction=True)
MINIATURE = Path(__file__).resolve().parents[2] / "miniature" / "renderkiln-miniature.safetensors"
CAUGHT, LET_THROUGH = 11, 12
"""Seeds."""
REQUEST = {
    "prompt": "a red circle on a blue background",
    "checkpoint": "renderkiln-miniature",
    "steps": 4,
    "seed": CAUGHT,
}


@pytest.fixture
def runner(settings, tmp_path) -> Runner:
    settings.WORKER_CACHE_DIR = tmp_path / "cache"
    a_platform()
    call_command("import_asset", str(MINIATURE), kind="checkpoint", verbosity=0)
    settings.MAX_MICROBATCH = 1  # pictures differ by a rounding in company
    return a_runner(DiffusersRenderer())


def picture_of(image: RenderImage) -> Image.Image:
    with default_storage.open(image.file_key) as file:
        return Image.open(io.BytesIO(file.read())).convert("RGB")


def rendered(runner: Runner, **changes: object) -> list[RenderImage]:
    job = a_job(a_caller(), **{**REQUEST, "n_iter": 2, **changes})
    runner.run_until_empty()
    return list(RenderImage.objects.filter(job=job).order_by("index"))


@pytest.fixture
def plain(runner) -> list[Image.Image]:
    """The two pictures as they are without a filter; from then on the first one is the concept that is caught."""
    pictures = [picture_of(image) for image in rendered(runner)]
    return pictures


@pytest.fixture
def checker(plain, tmp_path) -> Asset:
    folder = a_safety_checker(tmp_path / "watchful", caught=plain[0], let_through=plain[1], wrapped=True)
    call_command("import_asset", str(folder), kind="safety_filter", verbosity=0)
    return Asset.objects.get(kind="safety_filter")


def policy(mode: str) -> None:
    SafetyPolicy.objects.update_or_create(team=a_caller().team, defaults={"mode": mode})


def api_images(job: RenderJob) -> list[dict]:
    client = Client(headers={"Authorization": f"Bearer {a_caller().token.text}"})
    return client.get(f"/api/v1/jobs/{job.pk}/images").json()["results"]


def test_a_team_without_a_policy_has_its_pictures_looked_at_by_nobody(runner, checker, plain):
    images = rendered(runner)
    assert [image.safety_verdict for image in images] == ["", ""]
    assert [picture_of(image).tobytes() for image in images] == [picture.tobytes() for picture in plain]


def test_what_is_caught_is_delivered_blurred_with_a_flag_and_charged(runner, checker, plain):
    policy("blur")
    caught, passed = images = rendered(runner)
    assert [image.safety_verdict for image in images] == ["blurred", "passed"]
    assert picture_of(passed).tobytes() == plain[1].tobytes()
    before, after = (np.asarray(picture, dtype=float) for picture in (plain[0], picture_of(caught)))
    edges = [np.abs(np.diff(values, axis=1)).max() for values in (before, after)]
    assert after.shape == before.shape and edges[1] < edges[0] / 2
    assert np.abs(after.mean(axis=(0, 1)) - before.mean(axis=(0, 1))).max() < 12
    assert caught.warnings == ["The safety filter caught this picture; it is delivered blurred."]
    assert [one["safety"] for one in api_images(caught.job)] == ["blurred", "passed"]
    charged = LedgerTransaction.objects.filter(kind="charge", job_id=caught.job_id).values_list("image_id", flat=True)
    assert set(charged) == {caught.pk, passed.pk} and caught.job.state == "succeeded"


def test_what_is_refused_is_delivered_black(runner, checker):
    policy("refuse")
    caught, passed = rendered(runner)
    assert (caught.safety_verdict, picture_of(caught).getextrema()) == ("blocked", ((0, 0),) * 3)
    assert passed.safety_verdict == "passed" and "Seed: 11" in caught.infotext


def test_the_filter_is_pinned_so_that_a_job_keeps_the_one_it_was_accepted_with(runner, checker, plain, tmp_path):
    policy("refuse")
    job = a_job(a_caller(), **REQUEST)
    assert job.lock["recipe"]["safety"]["weights"]["sha256"] == checker.sha256 and checker in job.assets.all()
    folder = a_safety_checker(tmp_path / "other", caught=plain[1], let_through=plain[0])
    call_command("import_asset", str(folder), kind="safety_filter", verbosity=0)
    policy("off")
    runner.run_until_empty()
    assert job.images.get().safety_verdict == "blocked"
    again = job_repeat(job=job, user=job.user, source="api")
    assert again.request["safety"] == "refuse" and again.lock["recipe"]["safety"]["weights"]["name"] == "other"


def test_exact_pictures_are_the_same_files_alone_and_in_company(runner, checker):
    policy("blur")
    together = [image.sha256 for image in rendered(runner, exact=True)]
    alone = [rendered(runner, exact=True, n_iter=1, seed=seed)[0].sha256 for seed in (CAUGHT, LET_THROUGH)]
    assert together == alone


def test_a_filter_that_cannot_be_read_fails_the_pictures_instead_of_letting_them_through(runner, checker, tmp_path):
    policy("refuse")
    (tmp_path / "assets" / checker.file_key).write_bytes(b"other")
    runner.worker.refresh_from_db()
    for copy in (tmp_path / "cache").glob(f"{checker.sha256}*"):
        copy.unlink()
    images = rendered(runner)
    assert {image.state for image in images} == {"failed"} and not any(image.file_key for image in images)


def test_nobody_sees_previews_of_what_the_filter_has_not_seen(runner, checker, monkeypatch):
    asked: list[object] = []
    render = runner.renderer.render

    def noting(spec, *, on_preview=None, **more):
        asked.append(on_preview)
        return render(spec, on_preview=on_preview, **more)

    monkeypatch.setattr(runner.renderer, "render", noting)
    rendered(runner, n_iter=1)
    policy("blur")
    rendered(runner, n_iter=1)
    assert asked[0] is not None and asked[1] is None
