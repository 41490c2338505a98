"""Charges are taken back: reversing lines in the period that is open. What was booked stays as it was.

The bill of the team, the budgets that had spent it, and the costs of picture and job are less by it; the card's time was used all
the same, so its cost stays in the book as nobody's. ``renderjobs`` registers what it has to do about pictures and jobs.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from django.db import transaction

from accounts.models import User
from billing.holds import holds_give_back
from billing.ledger import charges_of, reversals_append
from billing.models import LedgerTransaction, TransactionKind
from common.errors import FieldError, InvalidRequestError

MOST_REASON = 200


@dataclass(frozen=True, slots=True)
class TakenBack:
    """Of what was asked for; the rest had been taken back before or cost nothing."""

    charges: int
    amounts: Mapping[str, Decimal]


@dataclass(frozen=True, slots=True)
class Costs:
    """What the app of the jobs does: hold off everybody else, and lower what pictures and jobs say they cost."""

    lock: Callable[[Collection[uuid.UUID]], Any]
    lower: Callable[[Sequence[int], Mapping[uuid.UUID, Decimal]], None]


_costs: list[Costs] = []


def costs_register(costs: Costs) -> None:
    _costs[:] = [costs]


def charges_take_back(*, entries: Collection[int], whole_jobs: bool = False, reason: str, by: User) -> TakenBack:
    """Reverse charges of delivered pictures, each once for ever.

    Args:
        entries: Keys of charges in the book; of what is none, nothing happens.
        whole_jobs: Also every other charge of the same jobs.
        reason: 1 to 200 characters; it stands in the book beside the name of ``by``.
    Raises:
        InvalidRequestError: There is no usable reason.
    """
    reason = " ".join(reason.replace("\x00", "").split())
    if not 0 < len(reason) <= MOST_REASON:
        raise InvalidRequestError([FieldError("reason", f"Say why in 1 to {MOST_REASON} characters.", reason[:80])])
    (costs,) = _costs
    with transaction.atomic():
        charged = LedgerTransaction.objects.filter(kind=TransactionKind.CHARGE, pk__in=entries)
        job_ids = set(charged.values_list("job_id", flat=True))
        costs.lock(job_ids)
        charges = charges_of(job_ids, None if whole_jobs else entries)
        reversals_append(charges, note=f"{by.username}: {reason}")
        by_job = _summed(charges, "job_id")
        holds_give_back(by_job)
        costs.lower([charge.image_id for charge in charges], by_job)
    return TakenBack(len(charges), _summed(charges, "currency"))


def _summed(charges: Sequence[Any], column: str) -> dict[Any, Decimal]:
    sums: dict[Any, Decimal] = {}
    for charge in charges:
        key = getattr(charge, column)
        sums[key] = sums.get(key, Decimal(0)) + charge.paid
    return sums
