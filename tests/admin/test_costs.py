"""The cost page: the ledger's numbers on every level from the team to the image, the same in files, and fast for a month's many."""

from __future__ import annotations

import csv
import io
import json
import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from django.core.management import call_command
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from accounts.models import Role, User
from accounts.services import member_ensure
from billing.deployments import deployments_settle
from billing.models import LedgerLine
from billing.reports import TREE
from tests.admin.pages import client_of, rendered_job
from tests.billing.deployed import a_priced_platform, a_service, logged, rendered
from tests.billing.test_reports import a_month, book, instances_of_ten_days, this_month
from tests.factories import a_caller

pytestmark = pytest.mark.django_db


@pytest.fixture
def root() -> Client:
    return client_of(User.objects.create_superuser("root"))


@pytest.fixture
def lead() -> Client:
    user = member_ensure(team_name="team-a", user_name="lena", role=Role.LEAD).user
    User.objects.filter(pk=user.pk).update(is_staff=True)
    return client_of(User.objects.get(pk=user.pk))


def costs(client: Client, address: str = "", **asked: str):
    return client.get(reverse("admin:billing_costs") + address, asked or None)


def booked() -> Decimal:
    return sum(LedgerLine.objects.filter(account="team_spend").values_list("amount", flat=True), Decimal(0))


def test_m10_every_level_down_to_the_image_adds_up_to_the_level_above(root):
    a_month()
    address, total = "", booked()
    for level in TREE:
        shown = costs(root, address).context
        rows = shown["rows"]
        assert shown["question"].by == level
        assert sum(row["amount"] for row in rows) == total == shown["totals"]["USD"]["amount"]
        assert [row["amount"] for row in rows] == sorted((row["amount"] for row in rows), reverse=True)
        address, total = rows[0]["address"], rows[0]["amount"]
    assert address == "" and LedgerLine.objects.filter(amount=total, account="team_spend").exists()


def test_m10_the_files_are_what_the_command_prints(root):
    a_month()
    page = costs(root)
    files = {file["name"]: root.get(file["address"]) for file in page.context["files"]}
    written = {name: b"".join(answer.streaming_content).decode() for name, answer in files.items()}
    assert 'filename="costs-' in files["every image, CSV"]["Content-Disposition"]
    for name, by in (("what is shown", "team"), ("every image", ",".join(TREE))):
        printed = {}
        for form in ("csv", "json"):
            out = io.StringIO()
            call_command("usage_report", month=this_month(), by=by, format=form, stdout=out)
            printed[form] = out.getvalue()
        assert written[f"{name}, CSV"] == printed["csv"] and written[f"{name}, JSON"] == printed["json"]
        assert json.loads(printed["json"]) == list(csv.DictReader(io.StringIO(printed["csv"])))


def test_a_part_and_its_file_have_the_same_sum(root):
    a_month()
    page = costs(root, team="team-a", project="film", member="ada")
    (file,) = [file for file in page.context["files"] if file["name"] == "what is shown, CSV"]
    lines = list(csv.DictReader(io.StringIO(b"".join(root.get(file["address"]).streaming_content).decode())))
    assert sum(Decimal(line["amount"]) for line in lines) == page.context["totals"]["USD"]["amount"] > 0
    assert {line["cost"] for line in lines} == {"images"} and {line["member"] for line in lines} == {"ada"}


def test_costs_are_divided_by_tag_pool_lane_and_day_too(root):
    a_month()
    for by, names in (("tag:shot", {"film", "game"}), ("lane", None), ("pool", None), ("day", None)):
        shown = costs(root, by=by).context
        assert sum(row["amount"] for row in shown["rows"]) == booked()
        assert names is None or {row["name"] for row in shown["rows"]} == names
    shot = next(row for row in costs(root, by="tag:shot").context["rows"] if row["name"] == "game")
    assert costs(root, shot["address"]).context["totals"]["USD"]["amount"] == shot["amount"] < booked()


def test_m7_what_is_on_no_bill_stands_beside_the_whole_and_the_page_of_a_part_says_where(root):
    a_month()
    whole = costs(root)
    assert [row["name"] for row in whole.context["nobodys"]] == ["Failed Attempts"]
    assert "Failed Attempts" in whole.content.decode()
    part = costs(root, team="team-a", project="film")
    assert not part.context["nobodys"] and whole.context["question"].address(by=None, team="team-a").replace(
        "&", "&amp;"
    ) in (part.content.decode())


def test_m9_a_budget_is_shown_against_what_is_spent_and_held(root):
    rendered_job("team-a", "ada")
    (budget,) = costs(root).context["budgets"]
    assert (budget["spent"], budget["held"], budget["limit"]) == (booked(), 0, 1) and budget["share"] > 0


def test_the_chart_has_a_bar_for_every_day_and_the_months_sum(root):
    a_month()
    (chart,) = costs(root).context["charts"]
    bars = json.loads(chart["data"])["datasets"][0]["data"]
    assert 28 <= len(bars) <= 31 and sum(bars) == pytest.approx(float(booked()))


def test_j6_instances_stand_apart_and_what_is_on_no_bill_yet_is_shown(root):
    a_priced_platform()
    service, caller, start = a_service(), a_caller(), datetime(2021, 5, 3, tzinfo=UTC)
    job = rendered(service, caller, start + timedelta(hours=1), 900_000_000)
    logged(service, (start, 1), (start + timedelta(hours=1), 0))
    before = costs(root, month="2021-05")
    assert [(row["name"], row["amount"]) for row in before.context["deployments"]] == [
        ("Not settled yet", Decimal("3.6"))
    ]
    deployments_settle()
    page = costs(root, month="2021-05", by="job")
    total, rows = page.context["totals"]["USD"], {row["label"]: row["amount"] for row in page.context["rows"]}
    assert total["amount"] == total["deployment"] == Decimal("3.6") and page.context["deployments"] == []
    assert rows == {str(job.pk): Decimal("0.9"), "no job: deployed instances": Decimal("2.7")}
    assert "3.60 of it for deployed instances" in page.content.decode()
    by_service = costs(root, month="2021-05", by="service").context["rows"][0]
    part = costs(root, by_service["address"].replace("by=", "")).context
    assert part["question"].of == {"service": "sd"} and part["totals"]["USD"]["images"] == 1


def test_a_month_without_charges_says_so(root):
    assert "Nothing was charged." in costs(root, month="2020-01").content.decode()


def test_p11_a_lead_sees_the_own_teams_costs_and_no_trace_of_others(lead):
    rendered_job("hidden-team", "zoltan")
    own = rendered_job("team-a", "ada")
    page = costs(lead)
    assert page.context["totals"]["USD"]["amount"] == own.__class__.objects.get(pk=own.pk).cost_amount
    for address in ("", "?by=member", "?by=image", "?month=2020-01"):
        assert not re.search("hidden-team|zoltan", costs(lead, address).content.decode())
    files = [b"".join(lead.get(file["address"]).streaming_content).decode() for file in page.context["files"]]
    assert not any(re.search("hidden-team|zoltan", text) for text in files)
    refused = costs(lead, team="hidden-team")
    assert refused.status_code == 400 and not refused.context["question"].team


@pytest.mark.parametrize(
    "asked",
    ["month=2026-13", "month=9999-12", "month=x", "by=colour", "team=nobody", "job=7", "lane=x", "after=-1", "member=%00"],
)  # fmt: skip
def test_a_wrong_choice_is_named_and_answered_with_the_whole(root, asked):
    page = costs(root, f"?{asked}")
    name = asked.split("=")[0]
    assert page.status_code == 400 and f"{name} is " in page.context["refusal"] in page.content.decode().replace(
        "&#x27;", "'"
    )
    file = root.get(reverse("admin:billing_costs_file", args=["csv"]) + f"?{asked}")
    assert file.status_code == 400 and f"{name} is ".encode() in file.content


def test_m10_a_hundred_thousand_charges_take_the_statements_of_a_thousand(root):
    caller = a_caller()
    instances_of_ten_days()
    statements: dict[str, list[int]] = {}
    costs(root)
    for first, last in ((1, 1000), (1001, 100_000)):
        book(caller, first, last)
        for by in ("team", "model", "service", "job", "image"):
            with CaptureQueriesContext(connection) as captured:
                page = costs(root, by=by)
            assert page.context["totals"]["USD"]["images"] == last
            statements.setdefault(by, []).append(len(captured))
    assert all(few == many <= 12 for few, many in statements.values()), statements
