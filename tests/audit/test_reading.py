"""P14: who was shown the pictures of somebody else's job is kept once per person, job and window, and survives whatever stops."""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta

import pytest
from auditlog.models import LogEntry
from django.db import connection, transaction
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from accounts.models import Role, User
from audit import reading
from audit.models import Reading
from audit.reading import readings_enter
from audit.sealing import broken_seals, seal_entries
from audit.tasks import seal
from renderjobs.models import RenderImage, RenderJob
from tests.admin.pages import client_of, page, rendered_job
from tests.factories import a_caller, a_job
from tests.renderjobs.test_delivery import begun, deliver

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def a_fresh_process(monkeypatch) -> None:
    reading._seen.clear()
    monkeypatch.setattr(reading.time, "time", lambda: 1_000_000.0)


@pytest.fixture
def job() -> RenderJob:
    return rendered_job("team-a", "ada")


@pytest.fixture
def root() -> Client:
    return client_of(User.objects.create_superuser("root"))


def kept() -> list[tuple[str, str, str]]:
    seal()
    entries = LogEntry.objects.filter(content_type__model="renderjob").order_by("pk")
    return [(one.additional_data["by"], one.additional_data["did"], one.object_pk) for one in entries]


def token_client(**caller: str) -> Client:
    return Client(headers={"Authorization": f"Bearer {a_caller(**caller).token.text}"})


def test_a_look_at_anothers_job_is_one_entry_however_often_within_the_window(root, job):
    for _ in range(3):
        root.get(page("renderjobs_renderjob", "change", job.pk), REMOTE_ADDR="10.1.2.3")
        root.get(reverse("admin:renderjobs_image", args=[job.pk, 0]))
    assert kept() == [("root", "looked at the pictures", str(job.pk))]
    entry = LogEntry.objects.get(content_type__model="renderjob")
    assert entry.remote_addr == "10.1.2.3" and entry.actor.username == "root" and list(broken_seals()) == []
    assert "looked at the pictures" in root.get(page("auditlog_logentry", "changelist")).content.decode()


def test_the_next_window_and_another_process_count_as_they_should(root, job, monkeypatch):
    address = page("renderjobs_renderjob", "change", job.pk)
    root.get(address)
    reading._seen.clear()  # another process
    root.get(address)
    assert len(kept()) == 1
    monkeypatch.setattr(reading.time, "time", lambda: 1_000_000.0 + reading.WINDOW_SECONDS)
    root.get(address)
    assert len(kept()) == 2


def test_the_own_pictures_and_jobs_without_any_are_no_reading(root, job):
    waiting = a_job(a_caller())
    root.get(page("renderjobs_renderjob", "change", waiting.pk))
    token_client().get(f"/api/v1/jobs/{job.pk}/images")
    assert kept() == []


@pytest.mark.parametrize("what", ["images", "grid"])
def test_pictures_given_by_the_api_count_too(job, what):
    RenderJob.objects.filter(pk=job.pk).update(finished_at=timezone.now(), grid_key="g.png")
    colleague = token_client(user="max")
    with suppress(FileNotFoundError):  # the sheet itself is none of this test's
        colleague.get(f"/api/v1/jobs/{job.pk}/{what}")
    assert kept() == [("max", "was given the pictures", str(job.pk))]


def test_the_gallery_and_its_comparison_count_for_each_job_and_cost_one_statement(root, job):
    others = []
    for _ in range(2):
        others.append(a_job(a_caller("team-b", "eve")))
        deliver(begun(), key=f"{others[-1].pk}.png")
    with CaptureQueriesContext(connection) as queries:
        root.get(reverse("admin:renderjobs_gallery"))
    assert sum("INSERT" in query["sql"] and "audit_reading" in query["sql"] for query in queries) == 1
    reading._seen.clear()
    images = list(RenderImage.objects.filter(state="delivered").values_list("pk", flat=True))
    root.get(reverse("admin:renderjobs_compare"), {"image": images})
    assert {pk for _, _, pk in kept()} == {str(one.pk) for one in (job, *others)}


def test_who_may_not_see_a_job_leaves_no_reading(job):
    for client in (token_client(team="team-b", user="eve"), Client()):
        assert client.get(f"/api/v1/jobs/{job.pk}/images").status_code in (401, 404)
    user = a_caller("team-b", "lena", Role.LEAD).user
    User.objects.filter(pk=user.pk).update(is_staff=True)
    lead = client_of(User.objects.get(pk=user.pk))
    assert lead.get(page("renderjobs_renderjob", "change", job.pk)).status_code == 302
    assert kept() == []


def test_within_a_window_a_reader_costs_one_statement_and_then_none(root, job):
    address = page("renderjobs_renderjob", "change", job.pk)
    writes = []
    for _ in range(2):
        with CaptureQueriesContext(connection) as queries:
            root.get(address)
        writes.append(sum("audit_reading" in query["sql"] for query in queries))
    assert writes == [1, 0]


def test_a_reading_is_entered_once_when_the_task_is_killed_or_comes_twice(root, job, monkeypatch):
    root.get(page("renderjobs_renderjob", "change", job.pk))
    monkeypatch.setattr(Reading.objects, "bulk_update", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        readings_enter()
    monkeypatch.undo()
    assert not LogEntry.objects.filter(content_type__model="renderjob").exists()
    assert (readings_enter(), readings_enter(), seal_entries() > 0) == (1, 0, True)


def test_the_account_may_go_and_the_name_stays(job):
    user = User.objects.create_superuser("gone")
    client_of(user).get(page("renderjobs_renderjob", "change", job.pk))
    user.delete()
    assert kept() == [("gone", "looked at the pictures", str(job.pk))]


def test_rows_that_have_long_been_entries_go(root, job):
    root.get(page("renderjobs_renderjob", "change", job.pk))
    kept()
    Reading.objects.update(read_at=timezone.now() - timedelta(days=2))
    assert len(kept()) == 1 and not Reading.objects.exists()
