"""A8: what a person sees who opens a service's address."""

from __future__ import annotations

import pytest
from django.test import Client

from accounts.models import Role, User
from accounts.services import member_ensure
from tests.eas.calls import Calls
from tests.factories import an_eas_service

pytestmark = pytest.mark.django_db
HTML = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


def signed_in(team: str, *, role: str = Role.MEMBER, is_staff: bool = True) -> Client:
    user = member_ensure(team_name=team, user_name=f"of-{team}", role=role).user
    User.objects.filter(pk=user.pk).update(is_staff=is_staff)
    client = Client()
    client.force_login(User.objects.get(pk=user.pk))
    return client


def opened(client: Client, name: str, slash: str = "") -> tuple[int, str]:
    answer = client.get(f"/api/predict/{name}{slash}", headers=HTML)
    assert answer["Content-Type"].startswith("text/html")
    return answer.status_code, answer.content.decode()


@pytest.mark.parametrize("slash", ["", "/"])
def test_a8_the_api_edition_says_that_it_has_no_web_ui(slash):
    service = an_eas_service()
    status, page = opened(signed_in("team-a"), service.name, slash)
    assert status == 404 and "Not available in this edition" in page
    assert "http://testserver/api/predict/sd_async" in page and "How to call it" not in page


def test_a_lead_is_led_to_the_page_that_says_how_to_call_it():
    service = an_eas_service()
    client = signed_in("team-a", role=Role.LEAD)
    page = opened(client, service.name)[1]
    address = f"/admin/renderjobs/easservice/{service.pk}/calling"
    assert f'href="{address}' in page and client.get(address, follow=True).status_code == 200


@pytest.mark.parametrize("edition", ["standard", "cluster", "serverless"])
def test_other_editions_name_their_address_and_the_admin(edition):
    service = an_eas_service("sd", edition=edition)
    page = opened(signed_in("team-a"), service.name)[1]
    assert "/api/predict/sd/sdapi/v1/" in page and "not available" not in page.lower()


def test_who_is_not_of_the_team_learns_nothing():
    an_eas_service("theirs", team="rivals")
    client = signed_in("team-a")
    foreign, unknown = opened(client, "theirs"), opened(client, "nobody")
    assert foreign == (404, unknown[1].replace("nobody", "theirs")) and "None of your teams" in foreign[1]
    foreign, unknown = opened(Client(), "theirs"), opened(Client(), "nobody")
    assert foreign == (401, unknown[1].replace("nobody", "theirs")) and "not available in the API edition" in foreign[1]


def test_a_name_is_shown_as_text():
    page = opened(Client(), "<script>&next=x")[1]
    assert "<script>" not in page and "?next=%2Fapi%2Fpredict%2F%3Cscript%3E%26next%3Dx" in page


def test_another_host_name_is_refused(settings):
    settings.ALLOWED_HOSTS = ["kiln.example.com"]
    assert Client().get("/api/predict/x", headers=HTML, HTTP_HOST="evil.example.com").status_code == 400


def test_programs_are_answered_as_before():
    service = an_eas_service()
    browser_like = Calls.to(service).call("GET", **HTML)
    assert browser_like.status_code == 400 and browser_like["Content-Type"].startswith("text/plain")
    assert Client().get("/api/predict/sd_async").status_code == 401
