"""Services in the admin: made by superusers, seen by their team's leads; the token is shown once."""

from __future__ import annotations

import re

import pytest
from django.test import Client
from django.urls import reverse

from accounts.models import Role, Team, User
from accounts.services import member_ensure
from renderjobs.models import EasService
from tests.eas.calls import Calls
from tests.factories import an_eas_service

pytestmark = pytest.mark.django_db
ADD, LIST = "admin:renderjobs_easservice_add", "admin:renderjobs_easservice_changelist"
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
    body = root.get(reverse("admin:renderjobs_easservice_change", args=[service.pk])).content.decode()
    assert text not in body and "input: 1, sink: 0" in body and "/api/predict/sd/sink" in body


@pytest.mark.parametrize(
    "wrong",
    [{"name": "a/b"}, {"mounts": '{"/data": "../x"}'}, {"window": 0}, {"edition": "other"}],
    ids=["a name with a slash", "a mount that leads out", "no window", "an edition"],
)
def test_a_wrong_form_makes_nothing(root, wrong):
    assert root.post(reverse(ADD), form(**wrong)).status_code == 200
    assert not EasService.objects.exists()


def test_a_change_keeps_what_callers_know(root):
    service = an_eas_service()
    address = reverse("admin:renderjobs_easservice_change", args=[service.pk])
    root.post(address, form(name="other", edition="standard", window=3))
    service.refresh_from_db()
    assert (service.name, service.edition, service.window, service.enabled) == ("sd_async", "api", 3, False)


def test_a_lead_renews_the_own_teams_token_and_changes_nothing(lead):
    mine, theirs = an_eas_service(), an_eas_service("theirs", team="rivals")
    chosen = {"action": "renew_token", "_selected_action": [mine.pk, theirs.pk]}
    text = token_in(lead.post(reverse(LIST), chosen, follow=True))
    assert Calls("/api/predict/sd_async", text).put() == 1
    assert Calls.to(mine).call("POST").status_code == 401 and Calls.to(theirs).put() == 1
    address = reverse("admin:renderjobs_easservice_change", args=[mine.pk])
    assert (lead.get(address).status_code, lead.post(address, form()).status_code) == (200, 403)
    assert lead.get(reverse(ADD)).status_code == 403
