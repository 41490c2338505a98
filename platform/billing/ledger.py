"""The only code that writes the book. Lines are appended inside the caller's transaction; nothing is ever changed."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from django.db.models.functions import Now

from billing.models import Account, LedgerLine, LedgerTransaction, TransactionKind, UsageRecord
from billing.pricing import amount_for
from billing.ratecards import Price


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One attempt at one image, and whose it was."""

    job_id: uuid.UUID
    image_id: int
    attempt_id: int
    team_id: int
    project_id: int | None
    user_id: int
    pool_id: int
    checkpoint_sha256: str
    checkpoint_name: str
    gpu_us: int
    tags: dict[str, Any] = field(default_factory=dict)


def charge_append(*, work: Work, price: Price) -> Decimal:
    """Charge one delivered image, once for ever, and record the usage.

    Raises:
        IntegrityError: The image has been charged before; the caller's transaction cannot commit.
    """
    amount = amount_for(gpu_us=work.gpu_us, per_gpu_second=price.per_gpu_second)
    transaction = LedgerTransaction.objects.create(
        event_id=f"charge:{work.image_id}",
        kind=TransactionKind.CHARGE,
        occurred_at=Now(),
        currency=price.currency,
        rate_card_id=price.rate_card_id,
        team_id=work.team_id,
        project_id=work.project_id,
        user_id=work.user_id,
        pool_id=work.pool_id,
        checkpoint_sha256=work.checkpoint_sha256,
        checkpoint_name=work.checkpoint_name,
        job_id=work.job_id,
        image_id=work.image_id,
        attempt_id=work.attempt_id,
        gpu_us=work.gpu_us,
        tags=work.tags,
    )
    LedgerLine.objects.bulk_create(
        [
            LedgerLine(transaction=transaction, account=Account.TEAM_SPEND, amount=amount),
            LedgerLine(transaction=transaction, account=Account.RENDER_REVENUE, amount=-amount),
        ]
    )
    usage_append(work=work, outcome="delivered", charged=True)
    return amount


def usage_append(*, work: Work, outcome: str, charged: bool = False) -> None:
    UsageRecord.objects.create(
        attempt_id=work.attempt_id,
        job_id=work.job_id,
        image_id=work.image_id,
        team_id=work.team_id,
        project_id=work.project_id,
        user_id=work.user_id,
        pool_id=work.pool_id,
        checkpoint_sha256=work.checkpoint_sha256,
        checkpoint_name=work.checkpoint_name,
        gpu_us=work.gpu_us,
        charged=charged,
        outcome=outcome,
        ended_at=Now(),
    )
