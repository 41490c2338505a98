"""A month of two teams, three cards and many attempts: page, files, API, command say the same to the last digit (M7, M8, M10)."""

from __future__ import annotations

import csv
import io
import json
import random
from collections import defaultdict
from datetime import timedelta
from decimal import Decimal
from itertools import product
from typing import Any

import pytest
from django.core.management import call_command
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from accounts.models import Project, Role, User
from billing.allocation import spread
from billing.models import LedgerLine
from billing.ratecards import rate_card_publish
from operations.invariants import violations
from renderjobs.models import RenderJob
from renderjobs.models.jobs import Source
from renderjobs.submission import job_submit
from tests.factories import a_caller, a_checkpoint, a_pool, a_request
from tests.renderjobs.test_delivery import begun, deliver, image_fail

pytestmark = pytest.mark.django_db
CARDS = (("USD", "pool", "0.000333"), ("USD", "causer", "0.0007"), ("EUR", "proportional", "0.000111"))
QUESTIONS = (
    "team",
    "project",
    "member",
    "model",
    "job",
    "image",
    "day",
    "lane",
    "pool",
    "token",
    "service",
    "tag:shot",
)
FURTHER = ("team,project,member,model,job,image", "member,tag:shot,day")


@pytest.fixture
def callers() -> list[Any]:
    """Who has worked: two of one team, one of another."""
    a_pool(), a_checkpoint()
    people = [a_caller("team-a", "ada", role=Role.LEAD), a_caller("team-a", "=alan"), a_caller("team-b", "bob")]
    for one in people:
        Project.objects.get_or_create(team=one.team, name="film")
    chance, number = random.Random(7), 0
    for card, (currency, placement, price) in enumerate(CARDS):
        valid_from = timezone.now() - timedelta(minutes=3 - card)
        rate_card_publish(
            name=f"c{card}",
            currency=currency,
            placement=placement,
            valid_from=valid_from,
            per_gpu_second=Decimal(price),
        )
        for turn in range(3):
            tags = {"shot": chance.choice(["1", "2", "=x"])} if turn else {}
            request, project = a_request(n_iter=3), chance.choice(["", "film"])
            job_submit(caller=people[turn], request=request, source=Source.API, project=project, tags=tags)
            batch = begun(f"w{card}{turn}")
            for position, image in enumerate(batch.images):
                number += 1
                gpu_us = chance.randint(1, 10**7)
                if position == turn:
                    image_fail(batch=batch, image=image, code="x", message="x", retryable=False, gpu_us=gpu_us)
                else:
                    deliver(batch, position, key=f"{number}.png", gpu_us=gpu_us)
    return people


def printed(by: str, form: str, **of: str) -> str:
    out = io.StringIO()
    call_command("usage_report", month=f"{timezone.now():%Y-%m}", by=by, format=form, stdout=out, **of)
    return out.getvalue()


def rows_of(text: str) -> list[dict[str, str]]:
    """Of a CSV, without the sign that keeps a spreadsheet from running a name."""
    rows = csv.DictReader(io.StringIO(text))
    return [{name: value.removeprefix("'") for name, value in row.items()} for row in rows]


def as_texts(row: dict[str, Any]) -> dict[str, str]:
    texts = {**row, "gpu_seconds": f"{row['gpu_seconds']:.6f}"}
    return {name: "" if value is None else str(value) for name, value in texts.items()}


def said_of(rows: list[dict[str, Any]], lines: list[dict[str, str]]) -> list[dict[str, str]]:
    """The lines with nothing but what the rows say too."""
    return [{name: line[name] for name in row if name in line} for row, line in zip(rows, lines, strict=True)]


def test_m10_command_api_and_files_say_the_same_of_a_team(callers):
    for by, caller in product((*QUESTIONS, *FURTHER), (callers[0], callers[2])):
        lines = json.loads(printed(by, "json", team=caller.team.name))
        table = printed(by, "csv", team=caller.team.name)
        client = Client(headers={"Authorization": f"Bearer {caller.token.text}"})
        answered = client.get("/api/v1/usage", {"group_by": by}).json()
        billed = [line for line in lines if line["cost"] == "images"]
        nobodys = [line for line in lines if line["cost"] != "images"]
        assert rows_of(table) == lines and nobodys, by
        assert [as_texts(row) for row in answered["results"]] == said_of(answered["results"], billed), by
        for row, line in zip(answered["unallocated"], nobodys, strict=True):
            assert {name: as_texts(row)[name] for name in ("cost", "amount", "gpu_seconds", "currency")} == {
                name: line[name] for name in ("cost", "amount", "gpu_seconds", "currency")
            }, by
        download = client.get("/api/v1/usage.csv", {"group_by": by})
        assert b"".join(download.streaming_content).decode() == table, by


def test_m10_the_page_and_its_file_say_what_the_command_says(callers):
    root = Client()
    root.force_login(User.objects.create_superuser("root"))
    for by in QUESTIONS:
        lines = json.loads(printed(by, "json", team="team-a"))
        page = root.get(reverse("admin:billing_costs"), {"team": "team-a", "by": by})
        file = root.get(reverse("admin:billing_costs_file", args=["json"]), {"team": "team-a", "by": by})
        shown = {(row["name"], row["currency"]): row["amount"] for row in page.context["rows"]}
        told = {(line[by], line["currency"]): Decimal(line["amount"]) for line in lines if line["cost"] == "images"}
        assert shown == told, by
        by_currency: dict[str, Decimal] = defaultdict(Decimal)
        for (_, currency), amount in told.items():
            by_currency[currency] += amount
        assert {name: total["amount"] for name, total in page.context["totals"].items()} == by_currency, by
        in_file = [line for line in json.loads(b"".join(file.streaming_content)) if line["cost"] == "images"]
        assert sum(Decimal(line["amount"]) for line in in_file) == sum(told.values()), by


def test_m8_images_jobs_reports_and_what_is_nobodys_are_the_book(callers):
    earned: dict[str, Decimal] = defaultdict(Decimal)
    for line in LedgerLine.objects.filter(account="render_revenue").select_related("transaction"):
        earned[line.transaction.currency] -= line.amount
    reported: dict[str, Decimal] = defaultdict(Decimal)
    for row in json.loads(printed("image", "json")):
        reported[row["currency"]] += Decimal(row["amount"])
    assert reported == earned and set(earned) == {"USD", "EUR"}
    for job in RenderJob.objects.all():
        of_images = sum(job.images.values_list("cost_amount", flat=True))
        booked = LedgerLine.objects.filter(transaction__job_id=job.pk, account="team_spend")
        assert job.cost_amount == of_images == sum(booked.values_list("amount", flat=True))
    assert list(violations(objects=False)) == []


def test_m7_shares_sum_to_the_whole_whatever_the_numbers():
    chance = random.Random(1)
    for _ in range(2000):
        weights = [Decimal(chance.choice([0, 1, 3, chance.randint(0, 10**17)])).scaleb(-6) for _ in range(12)]
        amount = Decimal(chance.choice([0, 1, 7, chance.randint(0, 10**17)])).scaleb(-6)
        parts = spread(amount, weights)
        assert sum(parts) == amount and min(parts) >= 0
        assert all(part == 0 for part, weight in zip(parts, weights, strict=True) if not weight)
