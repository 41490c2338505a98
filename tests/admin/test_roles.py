"""Who may do what in the admin: one table of every page and action, and what is of another team is as if it were not there."""

from __future__ import annotations

import re
from itertools import product

import pytest
from django.contrib import admin
from django.test import Client
from django.urls import get_resolver, reverse

from accounts.models import Role, User
from accounts.services import member_ensure
from billing.models import RateCard
from renderjobs.models import RenderJob, TeamFile
from tests.admin.pages import client_of, model_of, one_of, page, rendered_job
from tests.factories import a_caller, a_job, a_platform

pytestmark = pytest.mark.django_db

TEAM_ROLES = {"lead", "member", "viewer", "team finance"}
EVERYBODY = {"root", "finance", *TEAM_ROLES, "staff of no team", "lead who is not staff"}
ROOT = {"root"}
LEADS = {"root", "lead"}
WORKERS = {"root", "lead", "member"}
TEAM = {"root", "lead", "member", "viewer"}
MONEY = {"root", "finance", "lead", "team finance"}
NOBODY: set[str] = set()

PAGES: dict[str, dict[str, set[str]]] = {
    "renderjobs_renderjob": {
        "read": TEAM, "/image": TEAM, "/gallery": TEAM, "/export": TEAM, "cancel": WORKERS, "pause": WORKERS,
        "resume": WORKERS,
        "render_again": WORKERS, "approve": LEADS, "decline": LEADS,
    },
    "renderjobs_batchtemplate": {
        "read": TEAM, "add": LEADS, "change": LEADS, "delete": LEADS, "delete_selected": LEADS, "/submit": WORKERS,
    },
    "renderjobs_batchschedule": {
        "read": TEAM, "add": LEADS, "change": LEADS, "delete": LEADS, "delete_selected": LEADS,
    },
    "renderjobs_teamfile": {
        "read": TEAM, "delete": WORKERS, "delete_selected": WORKERS, "/areas": TEAM, "/folder": TEAM, "/public": TEAM,
    },
    "renderjobs_directoryimport": {
        "read": ROOT, "add": ROOT, "delete": ROOT, "delete_selected": ROOT, "stop": ROOT, "go_on": ROOT,
    },
    "renderjobs_promptexpansion": {"read": TEAM, "add": WORKERS, "/use": NOBODY},  # leads on to a template's form
    "renderjobs_safetypolicy": {
        "read": TEAM, "add": ROOT, "change": ROOT, "delete": ROOT, "delete_selected": ROOT,
    },
    "renderjobs_easservice": {
        "read": LEADS, "add": ROOT, "change": ROOT, "renew_token": LEADS, "stop": ROOT, "start": ROOT,
        "/import": ROOT, "/calling": LEADS, "/document": LEADS,
    },
    "billing_ledgertransaction": {
        "read": MONEY, "/export": MONEY, "/costs": MONEY, "/costs.csv": MONEY, "take_back": {"root", "finance"},
    },
    "billing_usagerecord": {"read": MONEY, "/export": MONEY},
    "billing_deploymentspan": {"read": MONEY},
    "billing_budget": {"read": MONEY, "/export": MONEY, "/import": ROOT, "add": LEADS, "change": LEADS},
    "billing_budgetnotice": {"read": MONEY},
    "billing_billingprofile": {
        "read": MONEY, "add": LEADS, "change": LEADS, "delete": LEADS, "delete_selected": LEADS,
    },
    "billing_quota": {
        "read": MONEY, "add": ROOT, "change": ROOT, "delete": ROOT, "delete_selected": ROOT, "/export": MONEY, "/import": ROOT,
    },
    "billing_outgoingmail": {"read": ROOT, "send_again": ROOT},
    "billing_hold": {"read": {"root", "finance"}},
    "billing_ratecard": {
        "read": {"root", "finance"}, "add": ROOT, "change": ROOT, "delete": ROOT, "delete_selected": ROOT, "publish": ROOT,
    },
    "accounts_team": {
        "read": LEADS, "add": ROOT, "change": LEADS, "delete": ROOT, "delete_selected": ROOT, "/export": LEADS, "/import": ROOT,
    },
    "accounts_apitoken": {
        "read": LEADS, "add": LEADS, "delete": ROOT, "delete_selected": ROOT, "revoke": LEADS,
    },
    "auditlog_logentry": {"read": ROOT, "/audit.csv": ROOT},
    "accounts_user": {
        "read": ROOT, "add": ROOT, "change": ROOT, "delete": ROOT, "delete_selected": ROOT, "/password": ROOT, "/export": ROOT,
        "end_sessions": ROOT, "reset_second_factor": ROOT, "unlock": ROOT,
    },
    "assets_asset": {
        "read": ROOT, "add": ROOT, "change": ROOT, "/export": ROOT,
        "make_default": ROOT, "retire": ROOT, "restore": ROOT, "check_again": ROOT,
    },
    "assets_zooimport": {"read": ROOT, "/zoo": ROOT},
    "fleet_pool": {"read": ROOT, "add": ROOT, "change": ROOT},
    "fleet_worker": {"read": ROOT, "drain": ROOT, "resume": ROOT, "quarantine": ROOT, "release": ROOT},
}  # fmt: skip
OF_A_TEAM = {name for name, rights in PAGES.items() if rights["read"] & TEAM_ROLES}
PAGE_OF_ADMIN = {"changelist", "add", "history", "delete", "change"}
OF_FILES = {"export", "import", "process_import"}
"""Of django-import-export; the last one only takes what the one before has shown."""


@pytest.fixture
def people() -> dict[str, Client]:
    a_platform()
    RateCard.objects.create(name="a draft", valid_from="2099-01-01T00:00Z")
    User.objects.create_superuser("root")
    User.objects.create_user("finance", is_staff=True, is_finance=True)
    User.objects.create_user("staff of no team", is_staff=True)
    roles = {"lead": Role.LEAD, "member": Role.MEMBER, "viewer": Role.VIEWER, "team finance": Role.FINANCE}
    for name, role in roles.items():
        member_ensure(team_name="team-a", user_name=name.replace(" ", "-"), role=role)
    User.objects.filter(username__in=[name.replace(" ", "-") for name in roles]).update(is_staff=True)
    member_ensure(team_name="team-a", user_name="lead-who-is-not-staff", role=Role.LEAD)
    by_name = {user.username.replace("-", " "): client_of(user) for user in User.objects.all()}
    return {name: by_name[name] for name in EVERYBODY}


def may(client: Client, name: str, pk: object) -> set[str]:
    """What the page of ``name`` lets the client do with the row ``pk``."""
    listed = client.get(page(name, "changelist"))
    if listed.status_code != 200:
        assert client.get(page(name, "change", pk)).status_code in (302, 403), "a row is shown whose list is not"
        offered = set()
    else:
        offered = set(listed.context["cl"].model_admin.get_actions(listed.wsgi_request))
    open_pages = {
        "read": client.get(page(name, "change", pk)),
        "add": client.get(page(name, "add")),
        "change": client.post(page(name, "change", pk), {"name": ""}),
        "delete": client.get(page(name, "delete", pk)),
        **{f"/{more}": client.get(address) for more, address in pages_of_its_own(name, pk).items()},
    }
    return offered | {right for right, answer in open_pages.items() if answer.status_code == 200}


def pages_of_its_own(name: str, pk: object) -> dict[str, str]:
    """Addresses beside Django's five, by what they are for."""
    found: dict[str, dict[str, tuple[str, list[object]]]] = {
        "renderjobs_renderjob": {
            "image": ("renderjobs_image", [pk, 0]),
            "gallery": ("renderjobs_gallery", []),
        },
        "renderjobs_batchtemplate": {"submit": ("renderjobs_batchtemplate_submit", [pk])},
        "renderjobs_easservice": {
            "import": ("renderjobs_easservice_import_document", []),
            "calling": ("renderjobs_easservice_calling", [pk]),
            "document": ("renderjobs_easservice_document", [pk]),
        },
        "renderjobs_promptexpansion": {"use": ("renderjobs_prompt_use", [pk])},
        "accounts_user": {"password": ("auth_user_password_change", [pk])},
        "auditlog_logentry": {"audit.csv": ("audit_export", [])},
        "renderjobs_teamfile": {
            "areas": ("renderjobs_files", []),
            "folder": (
                "renderjobs_files_folder",
                list(TeamFile.objects.filter(pk=pk).values_list("team", flat=True)) or ["0"],
            ),
            "public": ("renderjobs_files_folder", ["public"]),
        },
        "assets_zooimport": {"zoo": ("assets_zoo", [])},
        "billing_ledgertransaction": {"costs": ("billing_costs", []), "costs.csv": ("billing_costs_file", ["csv"])},
    }
    addresses = {more: reverse(f"admin:{address}", args=args) for more, (address, args) in found.get(name, {}).items()}
    for more in ("export", "import"):
        if f"{name}_{more}" in admin_addresses():
            addresses[more] = page(name, more)
    return addresses


@pytest.mark.parametrize("name", PAGES)
def test_every_page_and_action_is_for_the_roles_of_the_table(people, name):
    rendered_job("team-a", "ada")
    pk = one_of(name)
    rights = {who: may(client, name, pk) for who, client in people.items()}
    expected = {who: {right for right, owners in PAGES[name].items() if who in owners} for who in EVERYBODY}
    assert rights == expected


def test_the_table_knows_every_page():
    registered = {f"{model._meta.app_label}_{model._meta.model_name}" for model in admin.site._registry}
    assert registered == set(PAGES)


def test_the_table_knows_every_address_of_the_admin():
    """A page outside Django's own names must be added to a table of this file, which asks every role for it.

    ``search`` is unfold's over the names of pages; its search over rows stays off. The pages of the second factor are everybody's
    own (``tests/accounts/test_second_factor.py``).
    """
    of_models = {f"{name}_{kind}" for name in PAGES for kind in PAGE_OF_ADMIN | OF_FILES}
    of_django = {"index", "login", "logout", "password_change", "password_change_done", "autocomplete", "jsi18n",
                 "view_on_site", "app_list", "search", None}  # fmt: skip
    of_oneself = {"login_code", "login_enrolment", "second_factor", "second_factor_new"}
    ours = {
        "renderjobs_batchtemplate_submit",
        "auth_user_password_change",
        "billing_costs",
        "billing_costs_file",
        "renderjobs_image",
        "renderjobs_easservice_import_document",
        "renderjobs_easservice_calling",
        "renderjobs_easservice_document",
        "renderjobs_gallery",
        # The next three are about one picture: tests/admin/test_gallery.py asks every role for them.
        "renderjobs_thumbnail",
        "renderjobs_compare",
        "renderjobs_review",
        "renderjobs_prompt_use",
        "audit_export",
        "renderjobs_files",
        "renderjobs_files_folder",
        "renderjobs_files_upload",  # these two take posts only, and are asked by every role below
        "renderjobs_files_delete",
        "assets_zoo",
    }
    assert set(admin_addresses()) - of_models - of_django - of_oneself == ours


def admin_addresses() -> list[str | None]:
    (mount,) = [part for part in get_resolver().url_patterns if getattr(part, "namespace", None) == "admin"]
    found: list[str | None] = []
    rest = list(mount.url_patterns)
    while rest:
        pattern = rest.pop()
        if hasattr(pattern, "url_patterns"):
            rest += pattern.url_patterns
        elif pattern.pattern.describe() and "final_catch_all" not in str(pattern.callback):
            found.append(pattern.name)
    return found


@pytest.mark.parametrize("name", sorted(OF_A_TEAM))
def test_what_is_of_another_team_is_as_if_it_were_not_there(people, name):
    rendered_job("hidden-team", "zoltan")
    foreign = one_of(name, team="hidden-team")
    rendered_job("team-a", "ada")
    for who in TEAM_ROLES:
        client = people[who]
        listed = client.get(page(name, "changelist"))
        body = listed.content.decode()
        assert "hidden-team" not in body and "zoltan" not in body, who
        closed = [page(name, kind, foreign) for kind in ("change", "delete", "history")]
        of_the_row = [at for at in pages_of_its_own(name, foreign).values() if f"/{foreign}/" in at]
        for address in [*closed, *of_the_row]:
            for answer in (client.get(address), client.post(address, {"post": "yes"})):
                assert answer.status_code in (302, 403, 404), (who, address)
        assert model_of(name).objects.filter(pk=foreign).exists()
        if listed.status_code == 200:
            for action in listed.context["cl"].model_admin.get_actions(listed.wsgi_request):
                client.post(page(name, "changelist"), {"action": action, "_selected_action": [foreign], "post": "yes"})
    assert model_of(name).objects.filter(pk=foreign).exists()
    assert not admin.models.LogEntry.objects.exists()


def test_a_lead_of_one_team_who_views_another_changes_nothing_there(people):
    rendered_job("viewed", "zoltan")
    member_ensure(team_name="viewed", user_name="lead", role=Role.VIEWER)
    client, name = people["lead"], "renderjobs_batchtemplate"
    viewed = one_of(name, team="viewed")
    assert client.get(page(name, "change", viewed)).status_code == 200
    assert client.post(page(name, "change", viewed), {}).status_code == 403
    assert client.post(page(name, "delete", viewed), {"post": "yes"}).status_code == 403
    chosen = {"action": "delete_selected", "_selected_action": [viewed], "post": "yes"}
    assert client.post(page(name, "changelist"), chosen).status_code in (302, 403)
    job = RenderJob.objects.get()
    for action in ("cancel", "pause", "render_again"):
        client.post(page("renderjobs_renderjob", "changelist"), {"action": action, "_selected_action": [job.pk]})
    job.refresh_from_db()
    assert (
        model_of(name).objects.filter(pk=viewed).exists() and job.paused_at is None and RenderJob.objects.count() == 1
    )


def test_the_first_page_shows_each_role_its_part(people):
    rendered_job("team-a", "ada")
    rendered_job("hidden-team", "zoltan")
    shown = {who: people[who].get(reverse("admin:index")).content.decode() for who in EVERYBODY}
    for who in TEAM_ROLES | {"staff of no team"}:
        assert "hidden-team" not in shown[who], who
    assert {who for who in EVERYBODY if "Cost by team" in shown[who]} == MONEY
    assert {who for who in EVERYBODY if "Last failures" in shown[who]} == TEAM
    assert {who for who in EVERYBODY if "hidden-team" in shown[who]} == {"root", "finance"}


def test_a_member_cancels_the_own_jobs_and_no_others(people):
    others = a_job(a_caller("team-a", "ada"))
    own = a_job(a_caller("team-a", "member"))
    chosen = {"action": "cancel", "_selected_action": [others.pk, own.pk]}
    people["member"].post(page("renderjobs_renderjob", "changelist"), chosen)
    states = dict(RenderJob.objects.values_list("pk", "state"))
    assert (states[others.pk], states[own.pk]) == ("queued", "cancelled")


@pytest.mark.parametrize("name", [name for name, rights in PAGES.items() if rights["read"]])
def test_an_action_on_keys_that_no_row_has_changes_nothing(admin_client, name):
    listed = admin_client.get(page(name, "changelist"))
    actions = listed.context["cl"].model_admin.get_actions(listed.wsgi_request) if listed.status_code == 200 else ()
    for action, key in product(actions, ("x", "-1", "9" * 40, "\N{SUPERSCRIPT TWO}")):
        chosen = {"action": action, "_selected_action": [key], "post": "yes"}
        assert admin_client.post(page(name, "changelist"), chosen).status_code in (200, 302), (action, key)


def links_in(answer: object) -> list[str]:
    return re.findall(r'<a[^>]* href="(/admin/[^"]*/change/)"', answer.content.decode())  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", sorted(OF_A_TEAM))
def test_a_page_links_to_no_row_that_its_reader_may_not_open(people, name):
    rendered_job("team-a", "ada")
    at = page(name, "change", one_of(name))
    found = {who: [link for link in links_in(client.get(at)) if link != at] for who, client in people.items()}
    closed = {(who, link) for who, links in found.items() for link in links if people[who].get(link).status_code != 200}
    assert not closed


def test_a_link_to_a_team_is_for_those_who_lead_that_team(people):
    job = rendered_job("viewed", "zoltan")
    member_ensure(team_name="viewed", user_name="lead", role=Role.VIEWER)
    at, team = page("renderjobs_renderjob", "change", job.pk), page("accounts_team", "change", job.team_id)
    assert team not in links_in(people["lead"].get(at)) and team in links_in(people["root"].get(at))
