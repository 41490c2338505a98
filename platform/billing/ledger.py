"""The only code that writes the book. Lines are appended inside the caller's transaction; nothing is ever changed."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any

from django.db.models import OuterRef, Subquery
from django.db.models.functions import Now

from billing.models import Account, LedgerLine, LedgerTransaction, Placement, TransactionKind, UsageRecord
from billing.pricing import Price, Terms

ROWS_PER_STATEMENT = 500
OF_ITSELF = {"id", "event_id", "kind", "occurred_at", "placement", "gpu_us", "note"}
"""What a reversal says by itself; the rest it says as its charge did."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One attempt at one image, and whose it was."""

    job_id: uuid.UUID
    image_id: int
    attempt_id: int
    team_id: int
    project_id: int | None
    user_id: int
    token_id: int | None = None
    pool_id: int
    lane: int | None = None
    checkpoint_sha256: str
    checkpoint_name: str
    gpu_us: int
    service: str = ""
    """Name of the EAS service it came through."""
    tags: dict[str, Any] = field(default_factory=dict)

    def columns(self) -> dict[str, Any]:
        """What ledger and usage both say of it."""
        return {
            "attempt_id": self.attempt_id,
            "job_id": self.job_id,
            "image_id": self.image_id,
            "team_id": self.team_id,
            "project_id": self.project_id,
            "user_id": self.user_id,
            "token_id": self.token_id,
            "pool_id": self.pool_id,
            "checkpoint_sha256": self.checkpoint_sha256,
            "checkpoint_name": self.checkpoint_name,
            "gpu_us": self.gpu_us,
        }

    def line(self) -> dict[str, Any]:
        """What the ledger says of it."""
        return {**self.columns(), "lane": self.lane, "service": self.service, "tags": self.tags}


def charge_append(*, work: Work, terms: Terms) -> Decimal:
    """Charge one delivered image, once for ever, and record the usage; returns what the team pays.

    Raises:
        IntegrityError: The image has been charged before; the caller's transaction cannot commit.
    """
    paid, beyond = terms.charge(work.gpu_us)
    others = {Account.BEYOND_HOLD: beyond} if beyond else {}
    if terms.deployed:
        others = {Account.DEPLOYED: terms.covered(work.gpu_us)}
    debits = {Account.TEAM_SPEND: paid, **others}
    _append(f"charge:{work.image_id}", TransactionKind.CHARGE, terms.price, debits, **work.line())
    _usage(work, "delivered", charged=True, pixel_steps=terms.pixel_steps)
    return paid


def charges_of(job_ids: Collection[uuid.UUID], entries: Collection[int] | None) -> list[LedgerTransaction]:
    """Charges that can be taken back, each with what was ``paid``: neither those that were, nor those that cost nothing.

    Args:
        entries: Keys of the charges meant; None for every charge of the jobs.
    """
    found = LedgerTransaction.objects.filter(job_id__in=job_ids)
    bill = LedgerLine.objects.filter(transaction=OuterRef("pk"), account=Account.TEAM_SPEND).values("amount")
    reversed_images = found.filter(kind=TransactionKind.REVERSAL).values("image_id")
    charges = found.filter(kind=TransactionKind.CHARGE).exclude(image_id__in=reversed_images)
    if entries is not None:
        charges = charges.filter(pk__in=entries)
    return list(charges.annotate(paid=Subquery(bill)).exclude(paid=0).order_by("pk"))


def reversals_append(charges: Sequence[LedgerTransaction], *, note: str) -> None:
    """Take charges, with what was ``paid``, off the bill. Of GPU time there is no line twice.

    Raises:
        IntegrityError: One of them has been taken back before.
    """
    same = [field.attname for field in LedgerTransaction._meta.concrete_fields if field.name not in OF_ITSELF]
    entries = LedgerTransaction.objects.bulk_create(
        (
            LedgerTransaction(
                event_id=f"reversal:{charge.image_id}",
                kind=TransactionKind.REVERSAL,
                occurred_at=Now(),
                placement=Placement.POOL,  # with the causer it would be back on the bill
                gpu_us=0,
                note=note,
                **{name: getattr(charge, name) for name in same},
            )
            for charge in charges
        ),
        batch_size=ROWS_PER_STATEMENT,
    )
    LedgerLine.objects.bulk_create(
        (
            LedgerLine(transaction=entry, account=account, amount=sign * charge.paid)  # type: ignore[attr-defined]
            for entry, charge in zip(entries, charges, strict=True)
            for account, sign in ((Account.TEAM_SPEND, -1), (Account.TAKEN_BACK, 1))
        ),
        batch_size=ROWS_PER_STATEMENT,
    )


def waste_append(*, work: Work, terms: Terms, outcome: str) -> None:
    """Record an attempt that delivered nothing. Its cost is a line of its own and on no team's bill."""
    _usage(work, outcome, charged=False, pixel_steps=terms.pixel_steps)
    if work.gpu_us:
        overhead_append(
            event_id=f"failed:{work.attempt_id}",
            account=Account.DEPLOYED if terms.deployed else Account.FAILED_ATTEMPTS,
            price=terms.price,
            **work.line(),
        )


def load_append(*, claim_id: int, work: Work, terms: Terms) -> None:
    """The time a claim spent on loading weights; ``work`` is that of the image they were loaded for."""
    columns = {**work.line(), "image_id": None, "attempt_id": None}
    if not LedgerTransaction.objects.filter(event_id=f"load:{claim_id}").exists():
        overhead_append(
            event_id=f"load:{claim_id}",
            account=Account.DEPLOYED if terms.deployed else Account.MODEL_LOADS,
            price=terms.price,
            **columns,
        )


def idle_append(
    *, pool_id: int, day: str, occurred_at: datetime, idle_us: int, reserved_us: int = 0, price: Price
) -> None:
    """The time of a pool's workers on which nothing was rendered.

    Args:
        idle_us: Of workers that waited for anybody.
        reserved_us: Of those that deployed instances, which are on a bill, kept waiting for their services.
    """
    common: dict[str, Any] = {"price": price, "occurred_at": occurred_at, "pool_id": pool_id}
    overhead_append(event_id=f"idle:{pool_id}:{day}", account=Account.IDLE_TIME, gpu_us=idle_us, **common)
    if reserved_us:
        overhead_append(event_id=f"reserved:{pool_id}:{day}", account=Account.DEPLOYED, gpu_us=reserved_us, **common)


def deployment_append(
    *, event_id: str, price: Price, parts: Sequence[tuple[Mapping[str, Any], Decimal, int]], **columns: Any
) -> list[LedgerTransaction]:
    """The parts of a cost of deployed instances: what each stands for, its amount and its microseconds.

    Raises:
        IntegrityError: The event was written before.
    """
    entries = LedgerTransaction.objects.bulk_create(
        (
            LedgerTransaction(
                event_id=f"{event_id}:{number}",
                kind=TransactionKind.DEPLOYMENT,
                currency=price.currency,
                rate_card_id=price.rate_card_id,
                placement=price.placement,
                gpu_us=instance_us,
                **columns,
                **whose,
            )
            for number, (whose, _, instance_us) in enumerate(parts)
        ),
        batch_size=ROWS_PER_STATEMENT,
    )
    LedgerLine.objects.bulk_create(
        (
            LedgerLine(transaction=entry, account=account, amount=sign * amount)
            for entry, (_, amount, _) in zip(entries, parts, strict=True)
            for account, sign in ((Account.TEAM_SPEND, 1), (Account.DEPLOYED, -1))
        ),
        batch_size=ROWS_PER_STATEMENT,
    )
    return entries


def overhead_append(*, event_id: str, account: str, price: Price, gpu_us: int, **columns: Any) -> None:
    """Raises: IntegrityError: The event was written before."""
    amount = price.of_time(gpu_us)
    _append(event_id, TransactionKind.OVERHEAD, price, {account: amount}, gpu_us=gpu_us, **columns)


def _append(event_id: str, kind: str, price: Price, debits: Mapping[str, Decimal], **columns: Any) -> None:
    transaction = LedgerTransaction.objects.create(
        **{
            "event_id": event_id,
            "kind": kind,
            "occurred_at": Now(),
            "currency": price.currency,
            "rate_card_id": price.rate_card_id,
            "placement": price.placement,
            **columns,
        }
    )
    lines = {**debits, Account.RENDER_REVENUE: -sum(debits.values(), Decimal(0))}
    LedgerLine.objects.bulk_create(
        LedgerLine(transaction=transaction, account=account, amount=amount) for account, amount in lines.items()
    )


def _usage(work: Work, outcome: str, *, charged: bool, pixel_steps: int) -> None:
    UsageRecord.objects.create(
        **work.columns(), pixel_steps=pixel_steps, charged=charged, outcome=outcome, ended_at=Now()
    )
