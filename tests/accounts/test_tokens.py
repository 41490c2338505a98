"""Tokens: kept as a keyed hash, usable only while they should be, read from every header A1111 clients can send."""

from __future__ import annotations

import base64
from datetime import timedelta

import pytest
from django.core.management import CommandError, call_command
from django.test import Client
from django.utils import timezone

from accounts.authentication import caller_of
from accounts.models import ApiToken, Membership, Team, User
from accounts.services import member_ensure, token_issue, token_revoke
from common.errors import ForbiddenError
from tests.factories import a_caller, an_eas_service

pytestmark = pytest.mark.django_db


def test_s4_the_text_of_a_token_is_not_stored():
    text = a_caller().token.text
    row = ApiToken.objects.values().get()
    assert text not in str(row) and len(text) >= 43


@pytest.mark.parametrize("form", ["bearer", "bare", "basic password", "basic user"])
def test_a_token_is_read_from_every_header_a_client_can_send(form):
    caller = a_caller()
    text = caller.token.text
    basic = {"basic password": f"ada:{text}", "basic user": f"{text}:"}.get(form, "")
    header = {"bearer": f"Bearer {text}", "bare": text}.get(form) or "Basic " + base64.b64encode(
        basic.encode()
    ).decode()
    found = caller_of(header)
    assert (found.user, found.team) == (caller.user, caller.team)


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer x", "Basic !!!", "Basic /w==", "nope", "Digest a b"])
def test_other_headers_are_nobody(header):
    a_caller()
    assert caller_of(header) is None


def revoked(caller) -> None:
    token_revoke(token=caller.token)


def expired(caller) -> None:
    ApiToken.objects.update(expires_at=timezone.now() - timedelta(seconds=1))


def left_the_team(caller) -> None:
    Membership.objects.all().delete()


def deactivated(caller) -> None:
    type(caller.user).objects.update(is_active=False)


@pytest.mark.parametrize("end", [revoked, expired, left_the_team, deactivated])
def test_a_token_ends_with_what_it_stands_for(end):
    caller = a_caller()
    assert caller_of(caller.token.text)
    end(caller)
    assert caller_of(caller.token.text) is None


def test_issue_token_prints_the_token_alone_and_makes_team_and_user(capsys):
    call_command("issue_token", "--team", "Studio One", "--user", "bob", "--scope", "jobs:read")
    caller = caller_of(capsys.readouterr().out.strip())
    assert (caller.team.name, caller.user.username, caller.token.scopes) == ("studio-one", "bob", ["jobs:read"])


def test_issue_token_refuses_an_unknown_scope():
    with pytest.raises(CommandError, match="'everything' is unknown"):
        call_command("issue_token", "--team", "t", "--user", "u", "--scope", "everything")
    assert not ApiToken.objects.exists()


def test_create_service_account_makes_a_program_not_a_person(capsys):
    call_command("create_service_account", "render-bot", "--team", "studio")
    assert caller_of(capsys.readouterr().out.strip()).user.is_service_account


def test_create_service_account_refuses_the_name_of_a_person_and_changes_nothing():
    a_caller("team-a", "ada")
    with pytest.raises(CommandError, match="a person's name"):
        call_command("create_service_account", "ada", "--team", "team-b")
    assert not Team.objects.filter(name="team-b").exists() and ApiToken.objects.count() == 1


@pytest.mark.parametrize("name", ["", "日本", "!!!", "x" * 65])
def test_a_team_without_a_name_of_its_own_is_refused(name):
    with pytest.raises(CommandError, match="cannot be named so"):
        call_command("issue_token", "--team", name, "--user", "u")
    assert not Team.objects.exists()


def test_a_refused_scope_leaves_no_team_and_no_user():
    with pytest.raises(CommandError):
        call_command("issue_token", "--team", "t", "--user", "u", "--scope", "everything")
    assert not Team.objects.exists() and not User.objects.exists()


def test_s5_a_token_allows_its_scopes_only():
    caller = a_caller(scopes=["jobs:read"])
    caller.require("jobs:read")
    with pytest.raises(ForbiddenError):
        caller.require("jobs:write")


def test_a_token_acts_for_its_own_team_only():
    first, second = a_caller("team-a"), a_caller("team-b")
    assert first.user == second.user
    assert [caller_of(caller.token.text).team.name for caller in (first, second)] == ["team-a", "team-b"]


NETWORKS = ["10.1.0.0/16", "2001:db8::/32", "192.0.2.7"]


@pytest.mark.parametrize(
    ("address", "usable"),
    [
        ("10.1.2.3", True), ("::ffff:10.1.2.3", True), ("192.0.2.7", True), ("2001:db8::1", True),
        ("10.2.0.1", False), ("192.0.2.8", False), ("", False), ("unix", False),
    ],
)  # fmt: skip
def test_p12_a_token_with_networks_is_usable_from_these_only(address, usable):
    member = a_caller()
    _, text = token_issue(user=member.user, team=member.team, networks=NETWORKS)
    assert bool(caller_of(text, address=address)) is usable and caller_of(member.token.text, address=address)


@pytest.mark.parametrize("door", ["/api/v1/jobs", "/sdapi/v1/options", "/v1/models", "/api/predict/sd_async?_attrs_=1"])
def test_p12_every_door_asks_from_where_the_token_comes(door):
    service = an_eas_service()
    _, text = token_issue(user=service.user, team=service.team, networks=["10.1.0.0/16"])
    member_ensure(team_name="team-a", user_name=service.user.username)
    for address, status in (("10.1.9.9", 200), ("10.2.9.9", 401)):
        answer = Client().get(door, headers={"Authorization": f"Bearer {text}"}, REMOTE_ADDR=address)
        assert answer.status_code == status, answer.content


def test_p12_a_network_that_is_none_is_refused():
    with pytest.raises(CommandError, match="10.1.2.3/8"):
        call_command("issue_token", "--team", "t", "--user", "u", "--network", "10.1.2.3/8")
    assert not ApiToken.objects.exists()


def test_two_tokens_of_one_user_are_two():
    caller = a_caller()
    _, second = token_issue(user=caller.user, team=caller.team)
    token_revoke(token=caller.token)
    assert caller_of(second)
