"""Rate cards: drafts can be changed, published cards by nobody; a job keeps the price it was accepted at."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal

import pytest
from django.db import DatabaseError, IntegrityError, transaction
from django.utils import timezone

from billing.models import Hold, LedgerTransaction, RateCard, RatePrice
from billing.ratecards import draft_publish, price_in_force, rate_card_publish
from common.errors import ConflictError, InvalidRequestError, UnavailableError
from fleet.lanes import Lane
from operations.invariants import violations
from renderjobs.models import RenderJob
from renderjobs.models.jobs import Source
from renderjobs.submission import job_submit
from tests.factories import a_caller, a_card_of, a_checkpoint, a_job, a_platform, a_pool, a_rate_card, a_request
from tests.renderjobs.test_delivery import begun, deliver, image_fail

pytestmark = pytest.mark.django_db


def a_draft() -> RateCard:
    card = RateCard.objects.create(name="v7", valid_from=timezone.now() - timedelta(hours=1))
    RatePrice.objects.create(card=card, per_gpu_second=Decimal("7"))
    return card


def test_a_draft_is_in_force_only_when_it_is_published():
    pool, card = a_pool(), a_draft()
    with pytest.raises(UnavailableError):
        price_in_force(pool_id=pool.pk)
    draft_publish(card=card)
    assert price_in_force(pool_id=pool.pk).per_gpu_second == 7


@pytest.mark.parametrize(
    ("field", "price"),
    [
        ("per_gpu_second", "10000.000001"),
        ("per_megapixel_step", "10000.000001"),
        ("per_instance_hour", "1000000.000001"),
    ],
)
def test_a_price_that_no_amount_could_be_counted_with_is_not_published(field, price):
    card = RateCard.objects.create(name="v8", valid_from=timezone.now())
    RatePrice.objects.create(**{"card": card, "per_gpu_second": Decimal(1), field: Decimal(price)})
    with pytest.raises(InvalidRequestError) as refused:
        draft_publish(card=card)
    assert refused.value.errors[0].field == field and RateCard.objects.get(pk=card.pk).published_at is None


@pytest.mark.parametrize("field", ["per_gpu_second", "per_megapixel_step", "per_instance_hour"])
def test_a_negative_price_is_none(field):
    card = RateCard.objects.create(name="v8", valid_from=timezone.now())
    with pytest.raises(IntegrityError), transaction.atomic():
        RatePrice.objects.create(**{"card": card, "per_gpu_second": Decimal(1), field: Decimal(-1)})


@pytest.mark.parametrize("per_megapixel_step", [None, Decimal("10000")])
def test_the_dearest_price_charges_fails_and_idles_without_an_amount_too_large(per_megapixel_step):
    a_pool(), a_checkpoint()
    a_card_of(RatePrice(per_gpu_second=Decimal(10_000), per_megapixel_step=per_megapixel_step))
    job_id = a_job(n_iter=2).pk
    batch = begun()
    deliver(batch, gpu_us=10**10)
    image_fail(batch=batch, image=batch.images[1], code="x", message="x", retryable=False, gpu_us=10**11)
    assert RenderJob.objects.get(pk=job_id).state == "partly_succeeded"
    assert not list(violations(objects=False))


def test_a_draft_can_be_changed_and_removed():
    card = a_draft()
    card.prices.update(per_gpu_second=Decimal("8"))
    card.name = "v8"
    card.save()
    card.delete()
    assert not RatePrice.objects.exists()


def test_a_draft_without_a_price_is_not_published():
    with pytest.raises(InvalidRequestError, match="has no price"):
        draft_publish(card=RateCard.objects.create(name="v7", valid_from=timezone.now()))


@pytest.mark.parametrize("row", [RateCard, RatePrice])
@pytest.mark.parametrize("verb", ["save", "delete"])
def test_m6_the_model_refuses_to_change_a_published_card(row, verb):
    a_rate_card()
    with pytest.raises(ConflictError, match="published"):
        getattr(row.objects.get(), verb)()


@pytest.mark.parametrize(
    "change",
    [
        lambda: RateCard.objects.update(name="other"),
        lambda: RateCard.objects.update(published_at=None),
        lambda: RatePrice.objects.update(per_gpu_second=9),
        lambda: RatePrice.objects.all()._raw_delete("default"),
        lambda: RatePrice.objects.bulk_create([RatePrice(card=RateCard.objects.get(), lane=0, per_gpu_second=9)]),
    ],
    ids=["rename", "unpublish", "price", "drop price", "add price"],
)
def test_m6_the_database_refuses_to_change_a_published_card(change):
    a_rate_card()
    with pytest.raises(DatabaseError, match="append-only"), transaction.atomic():
        change()


def test_a_price_cannot_be_moved_to_a_published_card():
    a_rate_card()
    draft = a_draft()
    with pytest.raises(DatabaseError, match="append-only"), transaction.atomic():
        draft.prices.update(card=RateCard.objects.get(name="v1"), lane=1)


def test_the_more_exact_price_goes_before_the_more_general():
    pool = a_pool()
    a_card_of(
        RatePrice(per_gpu_second=1),
        RatePrice(lane=Lane.BACKGROUND, per_gpu_second=2),
        RatePrice(pool=pool, per_gpu_second=3),
        RatePrice(pool=pool, lane=Lane.BACKGROUND, per_gpu_second=4),
    )
    prices = {(p, lane): price_in_force(pool_id=p, lane=lane).per_gpu_second for p in (pool.pk, 0) for lane in Lane}
    assert prices[pool.pk, Lane.STANDARD] == 3 and prices[pool.pk, Lane.BACKGROUND] == 4
    assert prices[0, Lane.STANDARD] == 1 and prices[0, Lane.BACKGROUND] == 2


def test_m6_a_job_is_charged_with_the_card_that_was_valid_at_its_submission():
    job = a_job()
    rate_card_publish(name="v2", currency="USD", valid_from=timezone.now() - timedelta(seconds=1), per_gpu_second=9)
    deliver(begun())
    job.refresh_from_db()
    assert job.cost_amount == Decimal("0.002000")
    assert LedgerTransaction.objects.get().rate_card_id == RateCard.objects.get(name="v1").pk


def test_a_job_from_before_there_were_holds_is_charged_with_the_card_of_its_day():
    job = a_job()
    Hold.objects.all().delete()
    rate_card_publish(name="v2", currency="USD", valid_from=timezone.now() + timedelta(days=1), per_gpu_second=9)
    deliver(begun())
    assert RenderJob.objects.get(pk=job.pk).cost_amount == Decimal("0.002000")


def test_m6_an_image_priced_by_megapixel_steps_costs_the_same_however_long_it_took():
    a_card_of(RatePrice(per_gpu_second=1, per_megapixel_step=Decimal("0.5")))
    job = a_job(n_iter=2)  # 64 x 64 pixels, 4 steps
    batch = begun()
    deliver(batch, 0, gpu_us=1)
    deliver(batch, 1, gpu_us=99_000_000)
    job.refresh_from_db()
    assert set(job.images.values_list("cost_amount", flat=True)) == {Decimal("0.008192")}
    assert Hold.objects.get().released == 0


def test_lanes_have_their_prices():
    a_platform()
    a_card_of(
        RatePrice(per_gpu_second=1), RatePrice(lane=Lane.BACKGROUND, per_gpu_second=Decimal("0.5")), name="v2",
        valid_from=timezone.now() - timedelta(hours=1),
    )  # fmt: skip
    job_submit(caller=a_caller(), request=a_request(), source=Source.API, lane=Lane.BACKGROUND)
    assert Hold.objects.get().price.per_gpu_second == Decimal("0.5")
