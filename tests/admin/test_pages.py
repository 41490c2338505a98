"""The admin as people use it: every page answers, a lead sees the own teams only, uploads, tokens, cancelling, costs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from accounts.models import ApiToken, Role, User
from accounts.services import member_ensure, team_ensure
from assets.models import Asset
from billing.models import Budget, LedgerTransaction, RateCard
from renderjobs.models import RenderJob
from tests.admin.pages import client_of, one_of, page, rendered_job
from tests.assets.test_cards import a_picture
from tests.billing.budgets import a_budget
from tests.factories import a_caller, a_checkpoint, a_job, a_platform, a_template
from tests.weights import a_checkpoint_file

pytestmark = pytest.mark.django_db
NEVER_WRITTEN = {
    "renderjobs_renderjob", "billing_ledgertransaction", "billing_usagerecord", "billing_budgetnotice", "billing_hold",
    "fleet_worker", "renderjobs_promptexpansion",
}  # fmt: skip


@pytest.fixture
def root() -> Client:
    a_platform()
    return client_of(User.objects.create_superuser("root"))


@pytest.fixture
def lead() -> Client:
    membership = member_ensure(team_name="team-a", user_name="lena", role=Role.LEAD)
    User.objects.filter(pk=membership.user.pk).update(is_staff=True)
    return client_of(User.objects.get(pk=membership.user.pk))


def upload(client: Client, data: bytes, **changes: object):
    given = {"kind": "checkpoint", "file": SimpleUploadedFile("dream.safetensors", data), "access": "public", **changes}
    return client.post(page("assets_asset", "add"), given, follow=True)


def stored(tmp_path: Path) -> int:
    return sum(path.is_file() for path in (tmp_path / "assets").rglob("*"))


@pytest.mark.parametrize("name", sorted(NEVER_WRITTEN))
def test_jobs_and_the_book_can_be_neither_changed_nor_deleted(root, name):
    rendered_job("team-a", "ada")
    assert root.post(page(name, "change", one_of(name)), {}).status_code == 403
    assert root.post(page(name, "delete", one_of(name)), {"post": "yes"}).status_code == 403


def test_an_uploaded_checkpoint_is_usable_at_once(root):
    assert "approved" in upload(root, a_checkpoint_file()).content.decode()
    assert Asset.objects.get(name="dream").state == "approved"


def test_a_refused_upload_shows_its_reason_and_leaves_no_file(root, tmp_path):
    body = upload(root, b"this is no model at all").content.decode()
    asset = Asset.objects.get(name="dream")
    assert asset.state == "quarantined" and asset.reason in body and stored(tmp_path) == 0


@pytest.mark.parametrize(
    "wrong",
    [{"config": SimpleUploadedFile("c.yaml", b"[1]")}, {"name": "///"}, {"access": "teams"}],
    ids=["a YAML that is no map", "a name of nothing", "chosen teams, none chosen"],
)
def test_a_wrong_form_stores_nothing(root, tmp_path, wrong):
    assert upload(root, a_checkpoint_file(), **wrong).status_code == 200
    assert not Asset.objects.filter(name="dream").exists() and stored(tmp_path) == 0


def test_p2_a_models_card_is_written_in_its_form_and_shown_escaped(root):
    asset = a_checkpoint("dream")
    card = {"access": "public", "description": "<script>alert(1)</script>", "trigger_words": "ring", "licence": "MIT"}
    given = {**card, "preview": SimpleUploadedFile("a.png", a_picture())}
    assert root.post(page("assets_asset", "change", asset.pk), given).status_code == 302
    asset.refresh_from_db()
    assert (asset.trigger_words, asset.licence) == ("ring", "MIT")
    body = root.get(page("assets_asset", "change", asset.pk)).content.decode()
    assert "<script>alert" not in body and "&lt;script&gt;alert" in body
    for shown in (body, root.get(page("assets_asset", "changelist")).content.decode()):
        assert root.get(re.search(r"/models/previews/[\w:.-]+", shown)[0]).status_code == 200
    root.post(page("assets_asset", "change", asset.pk), {**card, "without_preview": "on"})
    asset.refresh_from_db()
    assert asset.preview_key == ""


@pytest.mark.parametrize(
    "wrong",
    [{"source_page": "javascript:alert(1)"}, {"preview": SimpleUploadedFile("a.png", b"x")}, {"licence": "x" * 201}],
    ids=["no address", "no picture", "too long"],
)
def test_a_wrong_card_in_the_form_changes_nothing(root, wrong):
    asset = a_checkpoint("dream")
    answer = root.post(page("assets_asset", "change", asset.pk), {"access": "public", "notes": "new", **wrong})
    asset.refresh_from_db()
    assert answer.status_code == 200 and not asset.card


def test_an_uploaded_file_has_the_card_of_its_form(root):
    upload(root, a_checkpoint_file(), trigger_words="ring", base_model="SD 1.5")
    assert (Asset.objects.get(name="dream").trigger_words, Asset.objects.get(name="dream").base_model) == (
        "ring",
        "SD 1.5",
    )


def test_p12_a_tokens_text_is_shown_once_and_its_digest_never(root):
    caller = a_caller()
    form = {"user": caller.user.pk, "team": caller.team.pk, "name": "ci", "scopes": ["sdapi"]}
    text = re.search(r"rk_[\w-]{40,}", root.post(page("accounts_apitoken", "add"), form, follow=True).content.decode())[
        0
    ]
    token = ApiToken.objects.get(name="ci")
    for address in (page("accounts_apitoken", "changelist"), page("accounts_apitoken", "change", token.pk)):
        body = root.get(address).content.decode()
        assert token.prefix in body and text not in body and token.digest not in body
    assert Client().get("/api/v1/jobs", headers={"Authorization": text}).status_code == 403  # known, without the scope


def test_p12_a_token_is_given_its_networks_and_a_wrong_one_is_named(root):
    caller = a_caller()
    form = {"user": caller.user.pk, "team": caller.team.pk, "name": "ci", "scopes": ["sdapi"]}
    assert (
        "10.1.2.3/8" in root.post(page("accounts_apitoken", "add"), {**form, "networks": "10.1.2.3/8"}).content.decode()
    )
    root.post(page("accounts_apitoken", "add"), {**form, "networks": "10.1.0.0/16, 192.0.2.7"})
    token = ApiToken.objects.get(name="ci")
    assert token.networks == ["10.1.0.0/16", "192.0.2.7/32"]
    assert "192.0.2.7/32" in root.get(page("accounts_apitoken", "change", token.pk)).content.decode()


def test_a_token_is_for_members_of_its_team(root):
    form = {"user": a_caller("team-b", "bob").user.pk, "team": a_caller().team.pk, "scopes": ["sdapi"], "name": "ci"}
    assert "is not a member" in root.post(page("accounts_apitoken", "add"), form).content.decode()


def test_a_job_is_cancelled_by_the_list_and_by_no_address(lead):
    job = a_job(a_caller("team-a", "ada"))
    address = page("renderjobs_renderjob", "changelist")
    lead.get(address, {"action": "cancel", "_selected_action": job.pk})
    assert RenderJob.objects.get().state == "queued"
    lead.post(address, {"action": "cancel", "_selected_action": [job.pk]})
    assert RenderJob.objects.get().state == "cancelled"


def test_a_jobs_page_shows_pictures_cost_and_events(root):
    job = rendered_job("team-a", "ada")
    body = root.get(page("renderjobs_renderjob", "change", job.pk)).content.decode()
    assert "/files/" in body and "seed 1000" in body and "0.002000" in body and "delivered" in body


@pytest.mark.parametrize("name", ["renderjobs_renderjob", "billing_ledgertransaction"])
def test_a_list_costs_the_same_queries_for_many_rows(root, name):
    job, counts = rendered_job("team-a", "ada"), []
    charge = LedgerTransaction.objects.get()
    for more in (10, 1000):
        RenderJob.objects.bulk_create(RenderJob(**like(job, "id")) for _ in range(more))
        LedgerTransaction.objects.bulk_create(
            LedgerTransaction(**like(charge, "id") | {"event_id": f"{more}-{n}", "image_id": more * 1000 + n})
            for n in range(more)
        )
        root.get(page(name, "changelist"))
        with CaptureQueriesContext(connection) as queries:
            assert root.get(page(name, "changelist")).status_code == 200
        counts.append(len(queries))
    assert counts[0] == counts[1] <= 8


def like(row: object, *but: str) -> dict[str, object]:
    return {field.attname: getattr(row, field.attname) for field in row._meta.concrete_fields if field.name not in but}


def test_a_template_is_submitted_with_changes_and_its_job_opens(root):
    member = a_caller()
    template = a_template(member.user, member.team, locked=["steps"])
    User.objects.get(username="root").memberships.create(team=member.team)
    url = reverse("admin:renderjobs_batchtemplate_submit", args=[template.pk])
    assert "Submit nightly v1" in root.get(url).content.decode()
    answer = root.post(url, {"prompt": "a disc", "width": 128, "height": 64, "steps": 99})
    job = RenderJob.objects.get()
    assert answer.url == page("renderjobs_renderjob", "change", job.pk)
    assert (job.request["prompt"], job.request["width"], job.request["steps"]) == ("a disc", 128, 2)


def test_one_form_of_a_template_makes_one_job_until_something_in_it_is_changed(root):
    template = a_template(User.objects.get(username="root"), team_ensure("team-a"))
    url = reverse("admin:renderjobs_batchtemplate_submit", args=[template.pk])
    sent = {**template.newest.request, "once": root.get(url).context["once"]}
    pages = [root.post(url, {**sent, **changes})["Location"] for changes in ({}, {}, {"prompt": "a disc"})]
    assert pages[0] == pages[1] != pages[2] and RenderJob.objects.count() == 2
    root.post(url, {**sent, "once": root.get(url).context["once"]})
    assert RenderJob.objects.count() == 3


def test_a_wrong_change_of_a_template_is_shown_and_submits_nothing(root):
    member = a_caller()
    template = a_template(member.user, member.team)
    url = reverse("admin:renderjobs_batchtemplate_submit", args=[template.pk])
    answer = root.post(url, {"prompt": "a disc", "width": -1, "height": 64, "steps": 2})
    assert "width is -1" in answer.content.decode() and not RenderJob.objects.exists()


BUDGET = {
    "name": "spring", "scope": "team", "span": "month", "limit": "100", "currency": "USD", "enabled": "on",
    "thresholds-TOTAL_FORMS": 1, "thresholds-INITIAL_FORMS": 0, "thresholds-0-percent": 100, "thresholds-0-action": "block",
    "periods-TOTAL_FORMS": 0, "periods-INITIAL_FORMS": 0,
}  # fmt: skip


def new_budget(client: Client, **changes: object) -> Budget | None:
    client.post(page("billing_budget", "add"), {**BUDGET, **changes})
    return Budget.objects.filter(name="spring").first()


def test_m9_a_lead_sets_a_budget_of_the_own_team(lead):
    budget = new_budget(lead, team=a_caller().team.pk)
    assert budget and budget.thresholds.get().action == "block"
    edited = {**BUDGET, "limit": "200", "thresholds-TOTAL_FORMS": 0, "scope": "organisation"}
    assert lead.post(page("billing_budget", "change", budget.pk), edited).status_code == 302
    budget.refresh_from_db()
    assert (budget.limit, budget.scope) == (200, "team")


@pytest.mark.parametrize("whose", ["everybody's", "another team's", "everybody's tag", "without a person"])
def test_p11_a_lead_sets_no_budget_of_others(lead, whose):
    own, other = a_caller().team, a_caller("hidden-team", "zoltan").team
    changes = {
        "everybody's": {"scope": "organisation"},
        "another team's": {"team": other.pk},
        "everybody's tag": {"scope": "tag", "tag_key": "shot", "tag_value": "1"},
        "without a person": {"scope": "member", "team": own.pk, "user": "zoltan"},
    }
    assert new_budget(lead, **changes[whose]) is None


def test_m6_a_draft_card_is_published_and_then_closed(root):
    card = RateCard.objects.create(name="v7", valid_from="2099-01-01T00:00Z")
    card.prices.create(per_gpu_second=1)
    assert root.get(page("billing_ratecard", "change", card.pk)).content.decode().count("per_megapixel_step") > 0
    root.post(page("billing_ratecard", "changelist"), {"action": "publish", "_selected_action": [card.pk]})
    card.refresh_from_db()
    assert card.published_at and root.post(page("billing_ratecard", "change", card.pk), {}).status_code == 403
    assert root.post(page("billing_ratecard", "delete", card.pk), {"post": "yes"}).status_code == 403


def test_m6_a_draft_whose_date_has_passed_is_not_published(root):
    card = RateCard.objects.create(name="v7", valid_from="2024-01-01T00:00Z")
    card.prices.create(per_gpu_second=1)
    root.post(page("billing_ratecard", "changelist"), {"action": "publish", "_selected_action": [card.pk]})
    card.refresh_from_db()
    assert card.published_at is None


def test_m9_a_lead_approves_a_held_job_of_the_own_team(root, lead):
    caller = a_caller()
    a_budget("team", limit="0.1", team=caller.team, thresholds=((10, "approval"),))
    job = a_job(caller)
    lead.post(page("renderjobs_renderjob", "changelist"), {"action": "approve", "_selected_action": [job.pk]})
    job.refresh_from_db()
    assert job.state == "queued" and job.approval.approved
