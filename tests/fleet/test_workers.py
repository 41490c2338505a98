"""Workers as people see and steer them: what they render and keep, and a quarantine that no restart ends."""

from __future__ import annotations

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from accounts.models import User
from assets.models import Asset
from common.errors import ConflictError, InvalidRequestError
from fleet.models import Worker
from fleet.profiles import pass_measured, pass_too_large
from fleet.services import (
    worker_may_claim,
    worker_quarantine,
    worker_register,
    worker_release,
    worker_seen,
    workers_claiming,
)
from gpuworker.heartbeat import Heartbeat
from renderjobs.delivery import image_fail
from tests.admin.pages import client_of, page
from tests.factories import a_job, a_pool
from tests.renderjobs.test_delivery import begun

pytestmark = pytest.mark.django_db


@pytest.fixture
def root() -> Client:
    return client_of(User.objects.create_superuser("root"))


def a_worker(name: str = "w1", card: str = "") -> Worker:
    return worker_register(name=name, pool=a_pool(), device="cpu", card=card)


def test_i13_a_quarantine_outlives_a_restart_and_ends_by_a_person():
    worker = a_worker()
    worker_quarantine(worker=worker, reason="Falls off the bus.")
    again = a_worker()
    assert again.quarantine_reason == "Falls off the bus." and not worker_may_claim(again.pk)
    worker_release(worker=again)
    assert worker_may_claim(again.pk) and Worker.objects.get().quarantine_reason == ""


def test_i13_another_process_on_the_card_claims_nothing_either():
    worker = a_worker("w-1", card="GPU-7")
    worker_quarantine(worker=worker, reason="x")
    restarted, other = a_worker("w-2", card="GPU-7"), a_worker("w-3", card="GPU-8")
    assert not worker_may_claim(restarted.pk) and worker_may_claim(other.pk)
    assert list(workers_claiming()) == [other]
    worker_release(worker=restarted)
    assert worker_may_claim(worker.pk) and workers_claiming().count() == 3


def test_processes_without_a_card_are_told_apart_by_their_names():
    worker_quarantine(worker=a_worker("w-1"), reason="x")
    assert worker_may_claim(a_worker("w-2").pk)


def test_the_first_reason_is_kept():
    worker = a_worker()
    for reason in ("first", "second"):
        worker_quarantine(worker=worker, reason=reason)
    assert Worker.objects.get().quarantine_reason == "first"


def test_a_quarantine_has_a_reason_and_only_one_that_is_there_ends():
    worker = a_worker()
    with pytest.raises(InvalidRequestError, match="Say why"):
        worker_quarantine(worker=worker, reason=" ")
    with pytest.raises(ConflictError, match="not quarantined"):
        worker_release(worker=worker)


def test_the_action_asks_for_the_reason_and_keeps_who(root):
    worker = a_worker()
    chosen = {"action": "quarantine", "_selected_action": [worker.pk]}
    asked = root.post(page("fleet_worker", "changelist"), chosen).content.decode()
    assert "Reason" in asked and not Worker.objects.get().quarantined_at
    root.post(page("fleet_worker", "changelist"), {**chosen, "confirmed": "yes", "reason": "Too hot."})
    kept = Worker.objects.get()
    assert (kept.quarantine_reason, kept.quarantined_by) == ("Too hot.", "root")
    for address in (
        page("fleet_worker", "change", worker.pk),
        page("fleet_worker", "changelist"),
        reverse("admin:index"),
    ):
        assert "quarantined" in root.get(address).content.decode()
    assert "Too hot." in root.get(reverse("admin:index")).content.decode()
    root.post(page("fleet_worker", "changelist"), {"action": "release", "_selected_action": [worker.pk]})
    assert worker_may_claim(worker.pk)
    did = root.get(page("auditlog_logentry", "changelist")).content.decode()
    assert "is quarantined: Too hot." in did and "is released from quarantine" in did


def test_a_workers_page_shows_what_it_renders_keeps_and_failed_at(root):
    job = a_job(n_iter=2)
    batch = begun()
    image_fail(batch=batch, image=batch.images[0], code="boom", message="It broke.", retryable=False, gpu_us=1)
    mini = Asset.objects.get()
    report = {
        "weights": [{"kind": "checkpoint", "sha256": mini.sha256, "bytes": 2048}, {"kind": "vae", "sha256": "a" * 64, "bytes": 1}],
        "vram_used": 1024, "vram_total": 4096, "ram_used": 10, "ram_total": 100, "ram_available": 50,
        "compiled": {"graphs": 2, "over_limit": 1},
    }  # fmt: skip
    worker = Worker.objects.get()
    worker_seen(worker_id=worker.pk, loaded_checkpoint_sha256=mini.sha256, report=report)
    shown = root.get(page("fleet_worker", "change", worker.pk))
    body = shown.content.decode()
    (current,) = shown.context["work"]["current"]
    assert [image["index"] for image in current["images"]] == [1] and current["images"][0]["job_id"] == job.pk
    assert "graphs: 2, over limit: 1" in body
    assert "It broke." in body and "1.0\xa0KB of 4.0\xa0KB" in body and "2.0\xa0KB" in body and "aaaaaaaaaa" in body
    assert "mini" in root.get(reverse("admin:index")).content.decode()
    assert "mini" in root.get(page("fleet_worker", "changelist")).content.decode()


def test_h5_a_workers_page_shows_what_its_kind_of_card_has_taught_in_as_few_queries_for_more(root):
    learned = {"device": "cpu", "build": "float32", "peak_bytes": 3 * 1024**2}
    worker, counts = a_worker(), []
    for first, last in ((0, 2), (2, 30)):
        for number in range(first, last):
            for images, time_ns in ((1, 2_500_000), (4, 1_250_000), (8, 1_240_000)):
                pass_measured(**learned, shape=f"sd1 {number}", images=images, image_call_ns=time_ns)
        with CaptureQueriesContext(connection) as queries:
            body = root.get(page("fleet_worker", "change", worker.pk)).content.decode()
        counts.append(len(queries))
    pass_too_large(device="cpu", build="float32", shape="sd1 29", images=16)
    shown = root.get(page("fleet_worker", "change", worker.pk))
    newest = shown.context["learned"][0]
    assert (newest["shape"], newest["best"], [row.images for row in newest["sizes"]]) == ("sd1 29", 4, [1, 4, 8, 16])
    assert counts[0] == counts[1] and "1.25 ms" in body and "3.0\xa0MB" in body
    assert "did not fit" in shown.content.decode()


def test_c5_the_list_and_the_first_page_cost_the_same_queries_for_more_workers(root):
    counts: dict[str, list[int]] = {}
    for first, last in ((0, 3), (3, 30)):
        for number in range(first, last):
            a_worker(f"w{number}")
        for address in (page("fleet_worker", "changelist"), reverse("admin:index")):
            root.get(address)
            with CaptureQueriesContext(connection) as queries:
                root.get(address)
            counts.setdefault(address, []).append(len(queries))
    assert all(few == many for few, many in counts.values()), counts


def test_a_heartbeat_tells_memory_and_weights_and_outlives_a_renderer_that_cannot(caplog):
    worker = a_worker()
    Heartbeat(worker_id=worker.pk, report=lambda: {"weights": [{"kind": "vae"}] * 99, "vram_total": 7}).be_seen()
    told = Worker.objects.get().report
    assert told["vram_total"] == 7 and told["ram_total"] > told["ram_used"] > 0 and len(told["weights"]) == 50

    def broken() -> dict:
        raise RuntimeError("no card")

    Heartbeat(worker_id=worker.pk, report=broken).be_seen()
    assert Worker.objects.get().report["weights"] == [] and "cannot tell" in caplog.text
