"""One worker's loop with dictated pixels: from claim to stored, charged pictures."""

from __future__ import annotations

import hashlib
import io
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from decimal import Decimal
from typing import Any

import pytest
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage, storages
from django.core.management import call_command
from django.db import connections
from PIL import Image

from assets.models import Asset
from billing.models import BillingProfile, LedgerTransaction, UsageRecord
from fleet.models import Worker
from fleet.services import worker_register, worker_release
from gpuworker.contract import ImageOutcome, RenderSpec
from gpuworker.engine import DiffusersRenderer
from gpuworker.heartbeat import Heartbeat
from gpuworker.runner import Runner, is_of_the_card
from renderjobs.models import Claim, RenderImage
from renderjobs.submission import job_cancel
from tests.engine.flow_models import pipeline
from tests.factories import a_caller, a_checkpoint, a_job, a_pool
from tests.fakes import PatternRenderer
from tests.services import PATIENCE_SECONDS

pytestmark = pytest.mark.django_db(transaction=True)
WEIGHTS = b"weights"


@pytest.fixture(autouse=True)
def checkpoint(settings, tmp_path) -> Asset:
    settings.WORKER_CACHE_DIR = tmp_path / "cache"
    sha256 = hashlib.sha256(WEIGHTS).hexdigest()
    asset = a_checkpoint(sha256=sha256, short_hash=sha256[:10], file_key="checkpoint/w.safetensors")
    storages["assets"].save(asset.file_key, ContentFile(WEIGHTS))
    return asset


def a_runner(renderer: PatternRenderer | None = None) -> Runner:
    worker = worker_register(name="w1", pool=a_pool(), device="pattern")
    heartbeat = Heartbeat(worker_id=worker.pk)
    runner = Runner(
        worker=worker, renderer=renderer or PatternRenderer(), heartbeat=heartbeat, draining=threading.Event()
    )
    RUNNERS.append(runner)
    return runner


RUNNERS: list[Runner] = []


@pytest.fixture(autouse=True)
def threads_of_the_runners_end(settings) -> Iterator[None]:
    """Each keeps a connection of the database's pool, which has fewer than these tests have threads."""
    settings.LEASE_SECONDS = 3600  # no heartbeat renews them here
    yield
    while RUNNERS:
        runner = RUNNERS.pop()
        end_threads(runner._deliveries)
        end_threads(runner._claims)
        end_threads(runner._readers)


def end_threads(pool: ThreadPoolExecutor) -> None:
    """As many tasks as there may be threads, and none ends before all have begun: each thread has one of them."""
    all_here = threading.Barrier(pool._max_workers)

    def end() -> None:
        all_here.wait(PATIENCE_SECONDS)
        connections.close_all()

    wait([pool.submit(end) for _ in range(all_here.parties)])
    pool.shutdown()


def test_every_image_is_stored_with_its_recipe_and_charged():
    job = a_job(n_iter=3)
    renderer = PatternRenderer()
    renderer.step_seconds = 0.005
    renderer.load_us = 5_000_000
    a_runner(renderer).run_until_empty()
    job.refresh_from_db()
    images = list(job.images.all())
    assert job.state == "succeeded" and LedgerTransaction.objects.filter(kind="charge").count() == 3
    loads = LedgerTransaction.objects.filter(kind="overhead")  # of no image: what the renderer spent on loading (M7)
    assert [load.gpu_us for load in loads] == [5_000_000] * 2  # a pass of one image, then one of two
    assert loads[0].lines.get(account="model_loads").amount == Decimal("0.005")
    for image in images:
        data = default_storage.open(image.file_key).read()
        assert hashlib.sha256(data).hexdigest() == image.sha256
        texts = Image.open(io.BytesIO(data)).info
        assert texts["parameters"] == image.infotext
        assert texts["cost"] == (
            f"GPU seconds: {image.gpu_us / 1e6:.6f}, Amount: {image.cost_amount:.6f} USD, Rate card: v1"
        )
        assert f"Seed: {image.seed}" in image.infotext
    assert job.gpu_us == sum(image.gpu_us for image in images) and job.cost_amount > 0


def test_a_failed_image_does_not_keep_its_neighbours():
    caller = a_caller()
    bad, good = a_job(caller, prompt="please fail"), a_job(caller)
    a_runner().run_until_empty()
    bad.refresh_from_db()
    good.refresh_from_db()
    assert (bad.state, bad.error_code, good.state) == ("failed", "asked_to_fail", "succeeded")


def test_a_renderer_that_breaks_fails_every_image_of_its_pass_after_the_retries(settings):
    class Broken(PatternRenderer):
        def render(self, spec: RenderSpec, **_: object) -> Iterator[ImageOutcome]:
            raise RuntimeError("boom")

    job = a_job(n_iter=2)
    a_runner(Broken()).run_until_empty()
    job.refresh_from_db()
    assert (job.state, job.images_failed, job.error_code) == ("failed", 2, "internal")
    assert "boom" not in job.error_message


def test_i13_a_card_that_fails_twice_is_quarantined_and_no_image_is_blamed():
    class Lost(PatternRenderer):
        passes = 0

        def render(self, spec: RenderSpec, **_: object) -> Iterator[ImageOutcome]:
            self.passes += 1
            raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore lines")

    job, renderer = a_job(n_iter=2), Lost()
    runner = a_runner(renderer)
    runner.run_until_empty()
    assert renderer.passes == 2 and set(job.images.values_list("state", "attempts")) == {("waiting", 0)}
    worker = Worker.objects.get()
    assert worker.quarantined_at and "illegal memory access" in worker.quarantine_reason
    a_runner().run_until_empty()  # the same name, restarted
    job.refresh_from_db()
    assert job.images_delivered == 0
    worker_release(worker=worker)
    a_runner().run_until_empty()
    job.refresh_from_db()
    assert job.state == "succeeded"


@pytest.mark.parametrize(
    ("said", "of_the_card"),
    [
        ("CUDA error: device-side assert triggered", True),
        ("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED", True),
        ("CUDA error: out of memory", False),
        ("mat1 and mat2 shapes cannot be multiplied", False),
    ],
)
def test_i13_a_full_memory_and_a_bug_of_ours_are_no_failure_of_the_card(said, of_the_card):
    assert is_of_the_card(RuntimeError(said)) is of_the_card


def test_i13_failures_of_the_card_count_only_in_a_row():
    class Flaky(PatternRenderer):
        passes = 0

        def render(self, spec: RenderSpec, **call: Any) -> Iterator[ImageOutcome]:
            self.passes += 1
            if self.passes % 2:
                raise RuntimeError("CUDA error: unspecified launch failure")
            yield from super().render(spec, **call)

    caller = a_caller()
    jobs = [a_job(caller, width=64 * number) for number in (1, 2, 3)]
    a_runner(Flaky()).run_until_empty()
    for job in jobs:
        job.refresh_from_db()
    assert {job.state for job in jobs} == {"succeeded"} and not Worker.objects.get().quarantined_at


def test_s22_weights_with_another_hash_are_not_rendered(checkpoint):
    storages["assets"].delete(checkpoint.file_key)
    storages["assets"].save(checkpoint.file_key, ContentFile(b"other"))
    job = a_job()
    a_runner().run_until_empty()
    job.refresh_from_db()
    assert job.state == "failed" and "sha-256" in job.error_message


def test_i17_a_cancel_stops_the_pass_at_the_next_step_and_keeps_nothing():
    class Cancelled(PatternRenderer):
        def render(
            self, spec: RenderSpec, *, on_step: Callable[[int, int], None], should_stop: Callable[[], bool], **_: object
        ) -> Iterator[ImageOutcome]:
            job_cancel(job=job)
            runner.heartbeat.renew(runner.heartbeat.kept()[0])
            yield from super().render(spec, on_step=on_step, should_stop=should_stop)

    job = a_job(n_iter=2)
    runner = a_runner(Cancelled())
    runner.run_until_empty()
    assert set(RenderImage.objects.values_list("state", flat=True)) == {"cancelled"}
    assert not LedgerTransaction.objects.filter(kind="charge").exists()
    assert not UsageRecord.objects.filter(charged=True).exists()


def test_a_loser_of_a_race_removes_its_own_object(monkeypatch, tmp_path):

    job = a_job()
    runner = a_runner()
    from gpuworker import delivering as module

    store = module.picture_store

    def store_then_cancel(*args: object) -> object:
        picture = store(*args)
        job_cancel(job=job)
        return picture

    monkeypatch.setattr(module, "picture_store", store_then_cancel)
    runner.run_until_empty()
    assert not [path for path in (tmp_path / "pictures").rglob("*") if path.is_file()]
    assert not LedgerTransaction.objects.filter(kind="charge").exists()


def test_i10_nothing_is_on_its_way_while_a_suspect_image_renders():
    """An image that was with a lost worker may kill this one too; its neighbours must be safe by then."""

    class Watching(PatternRenderer):
        delivered_at_start: list[int] = []

        def render(
            self, spec: RenderSpec, *, on_step: Callable[[int, int], None], should_stop: Callable[[], bool], **_: object
        ) -> Iterator[ImageOutcome]:
            self.delivered_at_start.append(RenderImage.objects.filter(state="delivered").count())
            yield from super().render(spec, on_step=on_step, should_stop=should_stop)

    renderer = Watching()
    a_job(n_iter=4)
    RenderImage.objects.update(run_alone=True)
    a_runner(renderer).run_until_empty()
    assert renderer.delivered_at_start == [0, 1, 2, 3]


class WaitingAtItsEnd(PatternRenderer):
    """At the end of its first pass, waits a while for the next micro-batch to be claimed."""

    passes = 0
    claimed_at_end: list[int]

    def __init__(self, *, seconds: float):
        super().__init__()
        self.seconds, self.claimed_at_end = seconds, []

    def render(
        self, spec: RenderSpec, *, on_step: Callable[[int, int], None], should_stop: Callable[[], bool], **_: object
    ) -> Iterator[ImageOutcome]:
        self.passes += 1
        outcomes = list(super().render(spec, on_step=on_step, should_stop=should_stop))
        deadline = time.monotonic() + self.seconds
        while not self.claimed() and not self.claimed_at_end and time.monotonic() < deadline:
            time.sleep(0.01)
        self.claimed_at_end.append(self.claimed())
        yield from outcomes

    def claimed(self) -> int:
        """Micro-batches beyond this one."""
        return Claim.objects.count() - self.passes


def test_h1_the_next_micro_batch_is_claimed_while_this_one_renders():
    job, renderer = a_job(n_iter=3), WaitingAtItsEnd(seconds=PATIENCE_SECONDS)  # one image, then two
    a_runner(renderer).run_until_empty()
    job.refresh_from_db()
    assert job.state == "succeeded" and renderer.claimed_at_end == [1, 0]
    assert set(job.images.values_list("attempts", flat=True)) == {1}


def test_h8_the_next_jobs_checkpoint_is_read_before_the_pass_ends():
    sha256 = hashlib.sha256(b"other weights").hexdigest()
    other = a_checkpoint("other", sha256=sha256, short_hash=sha256[:10], file_key="checkpoint/other.safetensors")
    storages["assets"].save(other.file_key, ContentFile(b"other weights"))
    read_at_end: list[list[str]] = []

    class Reading(PatternRenderer):
        def render(self, spec: RenderSpec, **call: Any) -> Iterator[ImageOutcome]:
            outcomes = list(super().render(spec, **call))
            deadline = time.monotonic() + (PATIENCE_SECONDS if not read_at_end else 0)
            while not self.read and time.monotonic() < deadline:
                time.sleep(0.01)
            read_at_end.append([recipe.checkpoint.name for one in self.read for recipe in one.recipes])
            yield from outcomes

        def read_ahead(self, spec: RenderSpec) -> None:
            assert spec.file_of(spec.recipes[0].checkpoint).path.read_bytes() == b"other weights"
            super().read_ahead(spec)

    caller = a_caller()
    jobs = [a_job(caller), a_job(caller, checkpoint="other")]
    a_runner(Reading()).run_until_empty()
    for job in jobs:
        job.refresh_from_db()
    assert read_at_end == [["other"], ["other"]] and {job.state for job in jobs} == {"succeeded"}


def test_h8_a_checkpoint_that_cannot_be_read_ahead_harms_nobody_but_its_own_job(checkpoint):
    other = a_checkpoint("other", file_key="checkpoint/nowhere.safetensors")
    assert not storages["assets"].exists(other.file_key)
    caller = a_caller()
    good, bad = a_job(caller, steps=50), a_job(caller, checkpoint="other")
    a_runner().run_until_empty()
    good.refresh_from_db()
    bad.refresh_from_db()
    assert (good.state, bad.state, bad.error_code) == ("succeeded", "failed", "weights_unavailable")


def test_h1_nothing_is_claimed_early_in_a_long_pass(settings):
    settings.MAX_MICROBATCH = 1
    seen: list[int] = []

    class Long(WaitingAtItsEnd):
        def render(self, spec: RenderSpec, *, on_step: Callable[[int, int], None], **rest: object):
            time.sleep(0.1)
            on_step(1, 1000)  # at this speed, more than a minute is left
            time.sleep(0.2)
            seen.append(self.claimed() - 1)  # this pass is counted below
            return super().render(spec, on_step=on_step, **rest)

    a_job(n_iter=2, steps=1)
    a_runner(Long(seconds=0)).run_until_empty()
    assert seen == [0, 0]


def test_i16_what_was_claimed_ahead_goes_back_when_the_worker_drains():
    class Draining(WaitingAtItsEnd):
        def render(self, spec: RenderSpec, **rest: object) -> Iterator[ImageOutcome]:
            yield from super().render(spec, **rest)
            runner.draining.set()

    job = a_job(n_iter=4)
    runner = a_runner(Draining(seconds=PATIENCE_SECONDS))
    runner.run_until_empty()
    assert sorted(job.images.values_list("state", "attempts")) == [("delivered", 1)] + [("waiting", 0)] * 3
    assert not runner.heartbeat.kept()


def test_i10_nothing_is_claimed_ahead_of_a_suspect_image(settings):
    renderer = WaitingAtItsEnd(seconds=0.5)
    a_job(n_iter=2)
    RenderImage.objects.update(run_alone=True)
    a_runner(renderer).run_until_empty()
    assert renderer.claimed_at_end == [0, 0]


@pytest.mark.parametrize("reason", ["the team does not want it", "exact mode"])
def test_m8_a_file_without_its_cost_is_the_same_however_long_it_took(reason, settings):
    settings.MAX_MICROBATCH = 1  # the pattern shows its place in the pass
    caller, exact = a_caller(), reason == "exact mode"
    BillingProfile.objects.create(team=caller.team, cost_in_files=exact)
    jobs = [a_job(caller, exact=exact) for _ in range(2)]
    a_runner().run_until_empty()
    files = [default_storage.open(job.images.get().file_key).read() for job in jobs]
    assert files[0] == files[1] and "cost" not in Image.open(io.BytesIO(files[0])).info


def test_folder_of_flux_becomes_a_picture_with_the_real_engine(tmp_path):
    pipeline("flux").save_pretrained(tmp_path / "painter")
    a_pool()
    call_command("import_asset", str(tmp_path / "painter"), kind="checkpoint")
    job = a_job(checkpoint="painter", prompt="a (red:1.2) circle", seed=5, steps=2)
    a_runner(DiffusersRenderer()).run_until_empty()
    job.refresh_from_db()
    image = job.images.get()
    assert (job.state, image.seed) == ("succeeded", 5), image.error_message
    assert "Model: painter" in image.infotext and "weights and editing have no effect" in image.warnings[0]
    with default_storage.open(image.file_key) as file, Image.open(file) as picture:
        assert picture.size == (64, 64) and len(picture.getcolors(64 * 64)) > 100
