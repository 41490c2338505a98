"""The audit log: who did what, before and after, from where; sealed, so that nothing in it is changed or removed unseen."""

from __future__ import annotations

import csv
import io
import threading

import pytest
from auditlog.models import LogEntry
from django.contrib.contenttypes.models import ContentType
from django.db import DatabaseError, connection, transaction
from django.test import Client

from accounts.models import ApiToken, Team, User
from accounts.services import token_revoke
from audit.acting import acting
from audit.models import Seal
from audit.sealing import broken_seals, seal_entries
from billing.models import Budget
from renderjobs.models import RenderJob
from tests.admin.pages import client_of, page, rendered_job
from tests.billing.budgets import a_budget
from tests.factories import a_caller, a_job, a_platform

pytestmark = pytest.mark.django_db


@pytest.fixture
def root() -> Client:
    a_platform()
    return client_of(User.objects.create_superuser("root", password="a long password"))


def entries(obj: object) -> list[LogEntry]:
    kind = ContentType.objects.get_for_model(obj)
    return list(LogEntry.objects.filter(content_type=kind, object_pk=str(obj.pk)).order_by("pk"))


def said(entry: LogEntry, key: str) -> object:
    return (entry.additional_data or {}).get(key)


def test_p14_a_change_in_the_admin_is_kept_with_who_from_where_before_and_after(root):
    team = a_caller().team
    form = {"name": "team-a", "title": "The A team"}
    for part in ("memberships", "projects", "quotas"):
        form |= {f"{part}-TOTAL_FORMS": 0, f"{part}-INITIAL_FORMS": 0}
    assert root.post(page("accounts_team", "change", team.pk), form, REMOTE_ADDR="10.1.2.3").status_code == 302
    change = entries(team)[-1]
    assert (change.changes_dict, said(change, "by"), change.remote_addr) == (
        {"title": ["team-a", "The A team"]}, "root", "10.1.2.3",
    )  # fmt: skip
    body = root.get(page("auditlog_logentry", "changelist")).content.decode()
    assert "root" in body and "10.1.2.3" in body
    assert "The A team" in root.get(page("auditlog_logentry", "change", change.pk)).content.decode()


def test_p14_a_write_by_token_names_the_tokens_user(root):
    caller = a_caller()
    client = Client(headers={"Authorization": f"Bearer {caller.token.text}"})
    answer = client.get("/api/v1/usage.csv")
    b"".join(answer.streaming_content)
    (export,) = [entry for entry in entries(caller.user) if said(entry, "did")]
    assert (said(export, "did"), said(export, "by")) == ("took the usage away as csv", "ada")


def test_p14_actions_of_the_admin_are_kept(root):
    job, token = a_job(a_caller()), ApiToken.objects.get()
    root.post(page("renderjobs_renderjob", "changelist"), {"action": "cancel", "_selected_action": [job.pk]})
    root.post(page("accounts_apitoken", "changelist"), {"action": "revoke", "_selected_action": [token.pk]})
    assert [said(entry, "did") for entry in entries(job)] == ["is cancelled"]
    assert said(entries(token)[-1], "did") == "is revoked"


def test_p14_signing_in_and_out_and_being_refused_are_kept(root):
    user, browser = User.objects.get(), Client()
    for password in ("wrong", "a long password"):
        browser.post("/admin/login/", {"username": "root", "password": password})
    browser.post("/admin/logout/")
    did = [said(entry, "did") for entry in entries(user) if said(entry, "did")]
    assert did[-3:] == ["was refused at sign-in", "signed in", "signed out"]


def test_no_secret_is_kept(root):
    caller = a_caller()
    root.post(page("accounts_user", "add"), {"username": "eve", "password1": "k8#fq!xx0", "password2": "k8#fq!xx0"})
    token_revoke(token=caller.token)
    kept = "".join(str(entry.changes) for entry in LogEntry.objects.all())
    assert "eve" in kept
    assert not any(
        secret in kept for secret in (ApiToken.objects.get().digest, User.objects.get(username="eve").password)
    )


def test_nobody_acts_after_a_request_has_ended(root):
    rendered_job("team-a", "ada")
    root.get("/admin/")
    assert acting.get() is None
    budget = Budget.objects.get()
    budget.limit = 7
    budget.save()
    assert [said(entry, "by") for entry in entries(budget)] == [None, None]


def test_the_name_stays_when_the_account_goes(root):
    other = User.objects.create_superuser("boss")
    client_of(other).post(page("accounts_team", "add"), new_team("film"))
    created = entries(Team.objects.get(name="film"))[0]
    seal_entries()
    other.delete()
    created.refresh_from_db()
    assert created.actor is None and said(created, "by") == "boss"
    assert list(broken_seals()) == []
    assert "boss" in root.get(page("auditlog_logentry", "changelist")).content.decode()


def new_team(name: str) -> dict[str, object]:
    form: dict[str, object] = {"name": name}
    for part in ("memberships", "projects", "quotas"):
        form |= {f"{part}-TOTAL_FORMS": 0, f"{part}-INITIAL_FORMS": 0}
    return form


def test_the_listed_entries_are_exported_and_the_export_is_an_entry(root):
    a_budget("team", limit="1", team=a_caller("=team").team)
    answer = root.get(page("auditlog_logentry", "changelist") + "audit.csv?q=team")
    rows = list(csv.DictReader(io.StringIO(b"".join(answer.streaming_content).decode())))
    assert rows and all("team" in row["name"] for row in rows) and len(rows) < LogEntry.objects.count()
    assert said(LogEntry.objects.order_by("pk").last(), "did") == "took the audit log away as csv"


# --- the chain --------------------------------------------------------------------------------------------------------


@pytest.fixture
def sealed() -> None:
    for number in range(5):
        Team.objects.create(name=f"team-{number}")
    assert seal_entries() == LogEntry.objects.count() == 5
    assert seal_entries() == 0 and list(broken_seals()) == []


@pytest.mark.parametrize("what", ["object_repr", "changes", "timestamp", "additional_data"])
def test_a_changed_entry_is_found(sealed, what):
    entry = LogEntry.objects.all()[2]
    value = {
        "object_repr": "another",
        "changes": {},
        "timestamp": "2020-01-01T00:00Z",
        "additional_data": {"by": "eve"},
    }
    LogEntry.objects.filter(pk=entry.pk).update(**{what: value[what]})
    assert list(broken_seals()) == [f"entry {entry.pk} of the audit log is not what was sealed."]


def test_a_removed_entry_is_found(sealed):
    entry = LogEntry.objects.all()[2].pk
    LogEntry.objects.filter(pk=entry).delete()
    assert list(broken_seals()) == [f"entry {entry} of the audit log was removed."]


def test_the_database_refuses_to_change_or_remove_a_seal(sealed):
    for change in (
        lambda: Seal.objects.update(digest="x"),
        lambda: Seal.objects.filter(number=5)._raw_delete("default"),
    ):
        with pytest.raises(DatabaseError), transaction.atomic():
            change()


def test_a_long_log_is_sealed_and_checked_in_parts(monkeypatch):
    monkeypatch.setattr("audit.sealing.AT_ONCE", 3)
    for number in range(8):
        Team.objects.create(name=f"team-{number}")
    assert seal_entries() == 8
    assert list(Seal.objects.values_list("number", flat=True)) == list(range(1, 9)) and list(broken_seals()) == []


@pytest.mark.django_db(transaction=True)
@pytest.mark.skipif(connection.vendor == "sqlite", reason="SQLite has one writer at a time")
def test_two_sealers_at_once_make_one_chain():
    for number in range(50):
        Team.objects.create(name=f"team-{number}")
    threads = [threading.Thread(target=lambda: (seal_entries(), connection.close())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seal_entries()
    assert Seal.objects.count() == 50 and list(broken_seals()) == []


def test_rendering_writes_nothing_into_the_audit_log():
    a_platform()
    caller = a_caller()
    before = LogEntry.objects.count()
    a_job(caller)
    assert RenderJob.objects.count() == 1 and LogEntry.objects.count() == before
