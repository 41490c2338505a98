"""What the admin refuses, whom runs of a schedule act as, and what stays cheap when rows are many."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from accounts.models import Role, User
from accounts.services import member_ensure
from assets.models import Access
from billing.models import RateCard
from renderjobs.models import RenderJob
from renderjobs.schedules import schedule_run
from tests.factories import TEMPLATE_REQUEST, a_caller, a_checkpoint, a_platform, a_schedule

pytestmark = pytest.mark.django_db


def client_of(user: User) -> Client:
    client = Client()
    client.force_login(user)
    return client


@pytest.fixture
def root() -> User:
    a_platform()
    return User.objects.create_superuser("root")


def new_card(root: User, **changes: str):
    prices = {"prices-TOTAL_FORMS": 1, "prices-INITIAL_FORMS": 0, "prices-0-pool": "", "prices-0-per_gpu_second": "1"}
    card = {"name": "v9", "placement": "pool", "currency": "USD", "valid_from_0": "2099-01-01", "valid_from_1": "00:00"}
    return client_of(root).post(reverse("admin:billing_ratecard_add"), {**prices, **card, **changes})


def test_a_rate_card_to_come_is_accepted(root):
    assert new_card(root, **{"prices-0-per_instance_hour": "3.6"}).status_code == 302
    assert RateCard.objects.get(name="v9").prices.get().per_instance_hour == Decimal("3.6")


@pytest.mark.parametrize(
    "change",
    [
        {"prices-0-per_instance_hour": "-1"},
        {"prices-0-per_instance_hour": "1", "prices-0-lane": "1"},
        {"prices-0-per_gpu_second": "-1"},
        {"valid_from_0": "2021-01-01"},
        {"currency": "usd"},
        {"prices-TOTAL_FORMS": 0},
    ],
    ids=[
        "negative price of instances",
        "price of instances in a lane",
        "negative price",
        "valid in the past",
        "no currency",
        "no price",
    ],
)
def test_a_wrong_rate_card_is_refused(root, change):
    assert new_card(root, **change).status_code == 200 and not RateCard.objects.filter(name="v9").exists()


def test_runs_act_as_whoever_saved_the_template_last(root):
    lead = member_ensure(team_name="team-a", user_name="lead", role=Role.LEAD)
    User.objects.filter(pk=lead.user.pk).update(is_staff=True)
    a_checkpoint("private", access=Access.USERS, is_default=False).users.set([root])
    schedule = a_schedule(root, lead.team)
    form = {"team": lead.team.pk, "name": "nightly", "kind": "txt2img", "lane": 2, "locked": "[]"}
    body = json.dumps({**TEMPLATE_REQUEST, "sd_model_checkpoint": "private"})
    url = reverse("admin:renderjobs_batchtemplate_change", args=[schedule.template_id])
    assert client_of(User.objects.get(pk=lead.user.pk)).post(url, {**form, "request": body}).status_code == 302
    [run] = schedule_run(schedule_id=schedule.pk, due=datetime.now(UTC))
    assert run.outcome == "refused" and "unknown" in run.reason and not RenderJob.objects.exists()


def test_deeply_nested_json_is_refused_in_the_form(root):
    form = {
        "team": a_caller().team.pk,
        "name": "n",
        "kind": "txt2img",
        "lane": 2,
        "request": "[" * 100_000,
        "locked": "[]",
    }
    answer = client_of(root).post(reverse("admin:renderjobs_batchtemplate_add"), form)
    assert answer.status_code == 200 and "nested too deeply" in answer.content.decode()


def test_a_teams_page_costs_the_same_queries_for_more_members(root):
    client, counts = client_of(root), []
    for first, last in ((0, 3), (3, 30)):
        for number in range(first, last):
            team = member_ensure(team_name="team-a", user_name=f"user{number}").team
        url = reverse("admin:accounts_team_change", args=[team.pk])
        client.get(url)
        with CaptureQueriesContext(connection) as queries:
            client.get(url)
        counts.append(len(queries))
    assert counts[0] == counts[1] < 10
