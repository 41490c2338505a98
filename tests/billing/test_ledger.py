"""The book: append-only in the database itself, balanced, at the price that was in force."""

from __future__ import annotations

import csv
import io
import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from django.core.management import CommandError, call_command
from django.db import DatabaseError, IntegrityError, connection, transaction
from django.test import Client
from django.utils import timezone

from billing.models import LedgerLine, LedgerTransaction, RatePrice
from billing.pricing import amount_for
from billing.ratecards import price_in_force, rate_card_publish
from common.errors import UnavailableError
from fleet.models import Pool
from tests.factories import a_caller, a_card_of, a_job, a_pool, a_rate_card
from tests.renderjobs.test_delivery import begun, deliver

pytestmark = pytest.mark.django_db


@pytest.fixture
def charged():
    job = a_job()
    deliver(begun())
    return job


@pytest.mark.parametrize("model", [LedgerTransaction, LedgerLine])
@pytest.mark.parametrize("verb", ["update", "delete"])
def test_r8_the_database_refuses_to_change_the_book(charged, model, verb):
    with pytest.raises(DatabaseError, match="append-only"), transaction.atomic():
        rows = model.objects.all()
        rows.update(id=0) if verb == "update" else rows._raw_delete(rows.db)
    assert model.objects.count() in (1, 2)


AGAIN = {
    "line by id": "INTO billing_ledgerline (id, transaction_id, account, amount) SELECT id, transaction_id, account, 0 "
    "FROM billing_ledgerline WHERE account = 'team_spend'",
    "line by account": "INTO billing_ledgerline (transaction_id, account, amount) SELECT transaction_id, account, 0 "
    "FROM billing_ledgerline WHERE account = 'team_spend'",
    "transaction": "INTO billing_ledgertransaction SELECT * FROM billing_ledgertransaction",
    "price": "INTO billing_rateprice SELECT * FROM billing_rateprice",
    "card": "INTO billing_ratecard SELECT * FROM billing_ratecard",
}


@pytest.mark.parametrize("statement", AGAIN)
def test_r8_no_row_of_the_book_is_replaced_by_an_insert(charged, statement):
    how = "INSERT OR REPLACE" if connection.vendor == "sqlite" else "INSERT"
    with pytest.raises(DatabaseError), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(f"{how} {AGAIN[statement]}")
    assert sorted(LedgerLine.objects.values_list("amount", flat=True)) == [Decimal("-0.002"), Decimal("0.002")]


@pytest.mark.parametrize("model", [LedgerTransaction, LedgerLine])
def test_r8_no_row_of_the_book_is_updated_by_an_insert(charged, model):
    table = model._meta.db_table
    statement = (
        f"INSERT INTO {table} SELECT * FROM {table} WHERE id > 0 ON CONFLICT (id) DO UPDATE SET id = excluded.id + 1"
    )
    with pytest.raises(DatabaseError), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(statement)


def test_i3_an_image_cannot_be_charged_twice(charged):
    entry = LedgerTransaction.objects.get()
    entry.pk, entry.event_id = None, "charge:another"
    with pytest.raises(IntegrityError), transaction.atomic():
        entry.save(force_insert=True)


def test_m5_every_transaction_sums_to_zero(charged):
    assert sorted(LedgerLine.objects.values_list("account", "amount")) == [
        ("render_revenue", Decimal("-0.002000")),
        ("team_spend", Decimal("0.002000")),
    ]


@pytest.mark.parametrize(
    ("gpu_us", "price", "amount"),
    [
        (1_000_000, "0.001", "0.001000"),
        (1, "0.001", "0.000000"),
        (500, "0.001", "0.000001"),
        (3_600_000_000, "0.000278", "1.000800"),
    ],
)
def test_amounts_are_rounded_half_up_to_six_places(gpu_us, price, amount):
    assert amount_for(gpu_us=gpu_us, per_gpu_second=Decimal(price)) == Decimal(amount)


def test_m6_the_newest_card_that_is_valid_is_in_force():
    pool = a_pool()
    a_rate_card(Decimal("1"))
    now = timezone.now()
    for name, start, price in (("v2", now - timedelta(days=1), "2"), ("v3", now + timedelta(days=1), "3")):
        rate_card_publish(name=name, currency="EUR", valid_from=start, per_gpu_second=Decimal(price))
    assert price_in_force(pool_id=pool.pk).per_gpu_second == 2


def test_a_pools_own_price_goes_before_the_cards_general_one():
    pool, other = a_pool(), a_pool("other")
    a_card_of(RatePrice(per_gpu_second=Decimal("1")), RatePrice(pool=pool, per_gpu_second=Decimal("9")))
    assert price_in_force(pool_id=pool.pk).per_gpu_second == 9
    assert price_in_force(pool_id=other.pk).per_gpu_second == 1


def test_without_a_price_nothing_is_accepted():
    with pytest.raises(UnavailableError):
        price_in_force(pool_id=a_pool().pk)


def test_a_new_card_does_not_change_old_charges(charged):
    rate_card_publish(name="v2", currency="USD", valid_from=datetime(2021, 1, 1, tzinfo=UTC), per_gpu_second=Decimal(9))
    charged.refresh_from_db()
    assert charged.cost_amount == LedgerLine.objects.get(account="team_spend").amount == Decimal("0.002000")


@pytest.mark.parametrize("form", ["table", "csv", "json"])
def test_the_months_report_has_team_member_model_and_money(charged, form, capsys):
    call_command("usage_report", "--month", f"{timezone.now():%Y-%m}", "--format", form)
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("team-a", "ada", "mini", "0.002000", "USD"))


def test_the_months_report_has_the_numbers_of_the_api(charged, capsys):
    call_command("usage_report", "--month", f"{timezone.now():%Y-%m}", "--team", "Team A", "--format", "json")
    (reported,) = json.loads(capsys.readouterr().out)
    header = {"Authorization": f"Bearer {a_caller().token.text}"}
    (answered,) = Client(headers=header).get("/api/v1/usage?group_by=team,project,member,model").json()["results"]
    answered |= {"cost": "images", "project": "", "images": "1", "gpu_seconds": f"{answered['gpu_seconds']:.6f}"}
    assert answered == reported


def test_the_months_report_can_be_read_back_as_csv(charged):
    out = io.StringIO()
    call_command("usage_report", "--month", f"{timezone.now():%Y-%m}", "--format", "csv", stdout=out)
    (row,) = csv.DictReader(io.StringIO(out.getvalue()))
    assert (row["team"], row["images"], row["gpu_seconds"], row["amount"]) == ("team-a", "1", "2.000000", "0.002000")


@pytest.mark.parametrize(("option", "value"), [("--month", "November"), ("--team", "nobody")])
def test_a_report_of_nothing_that_exists_is_refused(option, value):
    with pytest.raises(CommandError):
        call_command("usage_report", **{"month": "2026-11", option.strip("-"): value})


def test_bootstrap_makes_pool_and_price_once():
    for _ in range(2):
        call_command("bootstrap")
    assert Pool.objects.get().name == "default" and RatePrice.objects.get().per_gpu_second == Decimal("0.001")


def test_another_months_report_is_empty(charged, capsys):
    call_command("usage_report", "--month", "2020-01", "--format", "csv")
    assert (
        capsys.readouterr().out.strip()
        == "cost,team,project,member,model,images,gpu_seconds,amount,currency,deployment"
    )
