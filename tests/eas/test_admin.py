"""Services in the admin: made by superusers, seen by their team's leads; the token is shown once."""

from __future__ import annotations

import json
import re

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client
from django.urls import reverse

from accounts.models import Role, Team, User
from accounts.services import member_ensure
from renderjobs.models import EasService
from tests.eas.calls import Calls
from tests.eas.documents import API, EVERY, RICH, STANDARD
from tests.factories import an_eas_service

pytestmark = pytest.mark.django_db
ADD, LIST = "admin:renderjobs_easservice_add", "admin:renderjobs_easservice_changelist"
CHANGE, CALLING = "admin:renderjobs_easservice_change", "admin:renderjobs_easservice_calling"
IMPORT = "admin:renderjobs_easservice_import_document"
TABS = ("synchronous", "asynchronous")
LIMITS = {"replicas": 1, "window": 8, "max_delivery": 1, "max_payload_bytes": 4096, "max_frames": 100, "keepalive_seconds": 60,
          "max_queue_size": 64, "rate_limit": 0}  # fmt: skip


def signed_in(user: User) -> Client:
    client = Client()
    client.force_login(user)
    return client


@pytest.fixture
def root() -> Client:
    return signed_in(User.objects.create_superuser("root"))


@pytest.fixture
def lead() -> Client:
    membership = member_ensure(team_name="team-a", user_name="lena", role=Role.LEAD)
    User.objects.filter(pk=membership.user.pk).update(is_staff=True)
    return signed_in(User.objects.get(pk=membership.user.pk))


def form(**changes: object) -> dict[str, object]:
    team = Team.objects.get_or_create(name="team-a")[0]
    return {
        "name": "sd",
        "edition": "api",
        "team": team.pk,
        "pool": "",
        "mounts": '{"/data": "data"}',
        **LIMITS,
    } | changes


def token_in(answer: object) -> str:
    return re.search(r"rk_[\w-]{40,}", answer.content.decode())[0]


def test_a_service_is_made_and_its_token_works_and_is_never_shown_again(root):
    text = token_in(root.post(reverse(ADD), form(), follow=True))
    service = EasService.objects.get()
    assert service.mounts == {"/data": "data"} and service.max_payload_bytes == 4096
    assert Calls("/api/predict/sd", text).put() == 1
    body = root.get(reverse(CHANGE, args=[service.pk])).content.decode()
    assert text not in body and "input: 1, sink: 0" in body and service.token.prefix in body


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "a/b"},
        {"mounts": '{"/data": "../x"}'},
        {"window": 0},
        {"edition": "other"},
        {"edition": "standard", "replicas": 2},
        {"mounts": "{}"},
        {"edition": "cluster", "mounts": "{}"},
        {"public_folders": ["upscalers"]},
        {"hidden_tabs": "x" * 101},
        {"min_ram_reserved_gb": "-1"},
    ],
    ids=[
        "a name with a slash",
        "a mount that leads out",
        "no window",
        "an edition",
        "A2 two standard instances",
        "A7 an API service without a mount",
        "A7 a cluster without a mount",
        "a folder",
        "a long tab",
        "RAM",
    ],
)
def test_a_wrong_form_makes_nothing(root, wrong):
    assert root.post(reverse(ADD), form(**wrong)).status_code == 200
    assert not EasService.objects.exists()


def test_a_change_keeps_what_callers_know(root):
    service = an_eas_service()
    address = reverse(CHANGE, args=[service.pk])
    root.post(address, form(name="other", edition="standard", window=3))
    service.refresh_from_db()
    assert (service.name, service.edition, service.window, service.enabled) == ("sd_async", "api", 3, False)


def test_a_lead_renews_the_own_teams_token_and_changes_nothing(lead):
    mine, theirs = an_eas_service(), an_eas_service("theirs", team="rivals")
    chosen = {"action": "renew_token", "_selected_action": [mine.pk, theirs.pk]}
    text = token_in(lead.post(reverse(LIST), chosen, follow=True))
    assert Calls("/api/predict/sd_async", text).put() == 1
    assert Calls.to(mine).call("POST").status_code == 401 and Calls.to(theirs).put() == 1
    address = reverse(CHANGE, args=[mine.pk])
    assert (lead.get(address).status_code, lead.post(address, form()).status_code) == (200, 403)
    assert lead.get(reverse(ADD)).status_code == 403


def test_b5_a_name_that_is_taken_is_refused(root):
    an_eas_service("sd")
    answer = root.post(reverse(ADD), form())
    assert answer.status_code == 200 and "already exists" in answer.content.decode()
    assert EasService.objects.count() == 1


def test_flags_are_set_and_changed_in_the_form(root):
    flags = {"public_folders": ["lora", "vae"], "hidden_tabs": "Extensions\r\n Train ", "time_log": "on",
             "safety_filter": "on", "min_ram_reserved_gb": "40"}  # fmt: skip
    root.post(reverse(ADD), form(edition="cluster", **flags))
    service = EasService.objects.get()
    assert service.public_folders == ["lora", "vae"] and service.hidden_tabs == ["Extensions", "Train"]
    assert (service.api_log, service.time_log, service.safety_filter, service.min_ram_reserved_gb) == (
        False,
        True,
        True,
        40,
    )
    page = root.get(reverse(CHANGE, args=[service.pk])).content.decode()
    assert "Extensions\nTrain" in page
    root.post(reverse(CHANGE, args=[service.pk]), form(public_folders=["extensions"], hidden_tabs="", enabled="on"))
    service.refresh_from_db()
    assert (service.public_folders, service.hidden_tabs, service.time_log) == (["extensions"], [], False)


def test_a7_mounts_cannot_be_taken_from_a_service_that_needs_them(root):
    service = an_eas_service()
    answer = root.post(reverse(CHANGE, args=[service.pk]), form(mounts="{}"))
    assert answer.status_code == 200 and "at least one mount path" in answer.content.decode()


def test_a_service_is_stopped_and_started_again(root):
    service = an_eas_service()
    calls = Calls.to(service)
    for action, status, state in (("stop", 404, "stopped"), ("stop", 404, "stopped"), ("start", 200, "running")):
        shown = root.post(reverse(LIST), {"action": action, "_selected_action": [service.pk]}, follow=True)
        assert f"{service} is {state}" in shown.content.decode()
        assert calls.call("POST").status_code == status
        own = {"Authorization": service.token.text}
        assert Client().get("/sdapi/v1/samplers", headers=own).status_code == status


@pytest.mark.parametrize("name", EVERY)
def test_b4_a_document_is_pasted_and_downloaded_again(root, name):
    given = {"team": Team.objects.create(name="team-a").pk, "text": json.dumps(EVERY[name])}
    text = token_in(root.post(reverse(IMPORT), given, follow=True))
    service = EasService.objects.get()
    assert text.startswith(service.token.prefix)
    answer = root.get(reverse("admin:renderjobs_easservice_document", args=[service.pk]))
    assert json.loads(answer.content) == EVERY[name]
    assert answer["Content-Disposition"] == f'attachment; filename="{service.name}.json"'


def test_a_document_is_uploaded_under_another_name(root):
    file = SimpleUploadedFile("sd.json", b"\xef\xbb\xbf" + json.dumps(STANDARD).encode())
    root.post(reverse(IMPORT), {"team": Team.objects.create(name="team-a").pk, "file": file, "name": "mine"})
    assert EasService.objects.get().name == "mine"


def test_a_wrong_document_is_shown_with_its_keys_and_makes_nothing(root):
    team = Team.objects.create(name="team-a").pk
    wrong = json.dumps({**API, "storage": [], "metadata": {"name": "x", "type": "Async", "instance": 0}})
    page = root.post(reverse(IMPORT), {"team": team, "text": wrong}).content.decode()
    assert "storage: mounts nothing" in page and "metadata.instance: is 0" in page and "Async" in page
    file = SimpleUploadedFile("sd.json", b"\xff\xfe")
    for given in ({"text": "{}"}, {"text": " "}, {"file": file}, {"text": "{}", "file": file}, {"text": "x" * 70_000}):
        assert root.post(reverse(IMPORT), {"team": team, **given}).status_code == 200
    assert not EasService.objects.exists()


def test_flags_without_effect_are_listed(root):
    root.post(reverse(IMPORT), {"team": Team.objects.create(name="team-a").pk, "text": json.dumps(RICH)})
    page = root.get(reverse(CHANGE, args=[EasService.objects.get().pk])).content.decode()
    assert "--theme, --tcmalloc" in page


def test_a3_e1_both_addresses_of_an_api_service_are_shown_and_never_the_token(lead):
    service = an_eas_service()
    tabs = {tab: lead.get(reverse(CALLING, args=[service.pk]), {"tab": tab}).content.decode() for tab in TABS}
    assert "<code>http://testserver</code>" in tabs["synchronous"]
    assert "<code>http://testserver/api/predict/sd_async</code>" in tabs["asynchronous"]
    for page in tabs.values():
        assert "?tab=" in page and service.token.prefix in page and service.token.text not in page


def test_a_service_without_queues_has_one_address(lead):
    service = an_eas_service("sd", edition="standard")
    page = lead.get(reverse(CALLING, args=[service.pk]), {"tab": "asynchronous"}).content.decode()
    assert "<code>http://testserver/api/predict/sd</code>" in page and "?tab=" not in page
