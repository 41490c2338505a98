"""Money is set aside for a job on all its budgets at once or not at all, settled image by image, released at the job's end.

Every function is a part of its caller's transaction. Accounts of budgets are locked in the order of the budgets; jobs, where
the caller has them, before. What one image may cost is fixed with the hold, so the charges of a job never exceed it (S24).
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from django.db.models import Q
from django.db.models.functions import Now

from billing.errors import ApprovalNeededError, BudgetExceededError
from billing.estimates import Estimate
from billing.mails import approval_asked, notices_tell
from billing.models import (
    BillingProfile,
    Budget,
    BudgetNotice,
    BudgetPeriod,
    BudgetScope,
    BudgetSpan,
    BudgetThreshold,
    Hold,
    ThresholdAction,
)
from billing.models.money import MOST_AMOUNT
from billing.pricing import Terms
from billing.ratecards import price_of
from billing.subjects import Subject
from common.database import database_now
from common.errors import ConflictError

TOTAL = "total"


@dataclass(frozen=True, slots=True)
class Placed:
    """``refusal`` is what a door says that cannot wait for the approval; None when none is needed."""

    hold: Hold
    approval: ApprovalNeededError | None


@dataclass(frozen=True, slots=True)
class Free:
    """What a budget has left for a submission, before it is blocked."""

    account: BudgetPeriod
    most: Decimal | None
    """None for a budget that does not block."""

    @property
    def free(self) -> Decimal | None:
        return None if self.most is None else max(Decimal(0), self.most - self.account.spent - self.account.held)


def hold_place(*, subject: Subject, estimate: Estimate) -> Placed:
    """Set the estimate aside on every budget that concerns the job; for pictures of deployed instances that is nothing.

    Raises:
        BudgetExceededError: It does not fit into one of them; the caller's transaction must end.
        ConflictError: A budget is in another currency than the price, or it might cost more than can be counted.
    """
    asked = estimate.most
    if asked > MOST_AMOUNT:
        raise ConflictError(f"It might cost {asked:f}; at most {MOST_AMOUNT:f} can be held for a job.")
    accounts = [] if estimate.deployed else accounts_locked(budgets_of(subject, estimate.price.currency))
    refuse_what_does_not_fit(accounts, asked)
    hold = Hold.objects.create(
        job_id=subject.job_id,
        price_id=estimate.price.price_id,
        pixel_steps=estimate.pixel_steps,
        per_image=estimate.per_image,
        shows_cost=not BillingProfile.objects.filter(team_id=subject.team_id, cost_in_files=False).exists(),
        deployed=estimate.deployed,
        amount=asked,
        remaining=asked,
        created_at=Now(),
    )
    approval = None
    if accounts:
        for account in accounts:
            account.held += asked
            account.most = blocked_above(account.budget)
        BudgetPeriod.objects.bulk_update(accounts, ["held", "most"])
        hold.periods.set(accounts)
        note_what_is_passed(accounts, subject.job_id)
        approval = approval_needed(accounts, asked)
        if approval:
            approval_asked(subject.job_id, approval)
    return Placed(hold, approval)


def hold_settle(*, job_id: uuid.UUID, amount: Decimal) -> None:
    """What was held becomes spent. The caller has the job locked."""
    hold = Hold.objects.filter(job_id=job_id).first()
    if hold is None or not amount:
        return
    hold.settled += amount
    hold.remaining -= amount
    hold.save(update_fields=["settled", "remaining"])
    _move(hold, spent=amount)


def hold_release(*, job_id: uuid.UUID) -> None:
    """Give back what the job did not use. Releasing twice changes nothing. The caller has the job locked."""
    hold = Hold.objects.filter(job_id=job_id, ended_at=None).first()
    if hold is None:
        return
    left = hold.remaining
    hold.released, hold.remaining = hold.released + left, Decimal(0)
    hold.ended_at = database_now()
    hold.save(update_fields=["released", "remaining", "ended_at"])
    _move(hold, released=left)


def holds_give_back(amounts: Mapping[uuid.UUID, Decimal]) -> None:
    """What was spent is not any more, by job: charges were taken back. The caller has the jobs locked."""
    holds = list(Hold.objects.filter(job_id__in=amounts).prefetch_related("periods"))
    by_account: dict[int, Decimal] = {}
    for hold in holds:
        amount = amounts[hold.job_id]
        hold.settled -= amount
        hold.released += amount
        for account in hold.periods.all():
            by_account[account.pk] = by_account.get(account.pk, Decimal(0)) + amount
    accounts = _locked(list(by_account))
    for account in accounts:
        account.spent -= by_account[account.pk]
    Hold.objects.bulk_update(holds, ["settled", "released"])
    BudgetPeriod.objects.bulk_update(accounts, ["spent"])


def holds_locked(job_ids: Collection[uuid.UUID]) -> None:
    """Lock the accounts of several jobs at once, for a caller that will settle or release more than one of them."""
    _locked(BudgetPeriod.objects.filter(holds__job_id__in=job_ids).values("pk"))


def terms_of(job_ids: Collection[uuid.UUID]) -> dict[uuid.UUID, Terms]:
    """The terms of jobs, in one query; a job without a hold is not among them."""
    holds = Hold.objects.filter(job_id__in=job_ids).select_related("price__card")
    return {
        hold.job_id: Terms(
            price=price_of(hold.price),
            pixel_steps=hold.pixel_steps,
            most_per_image=hold.per_image,
            shows_cost=hold.shows_cost,
            deployed=hold.deployed,
        )
        for hold in holds
    }


def free_budgets(*, subject: Subject, currency: str) -> list[Free]:
    """What is left of every budget that concerns the subject. Reads only: by the time of a submission it may be less."""
    budgets = budgets_of(subject, currency)
    now = database_now()
    names = {budget.pk: period_of(budget, now) for budget in budgets}
    stored = {
        row.budget_id: row
        for row in BudgetPeriod.objects.filter(budget__in=budgets)
        if row.period == names[row.budget_id]
    }
    rows = [stored.get(budget.pk) or BudgetPeriod(budget=budget, period=names[budget.pk]) for budget in budgets]
    for row, budget in zip(rows, budgets, strict=True):
        row.budget = budget
    return [Free(row, blocked_above(row.budget)) for row in rows]


def budgets_of(subject: Subject, currency: str) -> list[Budget]:
    """Every budget that concerns the subject, by id, with its thresholds.

    Raises:
        ConflictError: One of them is in another currency.
    """
    mine = Q(team_id=subject.team_id)
    matching = Q(scope=BudgetScope.ORGANISATION) | Q(mine, scope=BudgetScope.TEAM)
    matching |= Q(mine, scope=BudgetScope.MEMBER, user_id=subject.user_id)
    if subject.project_id:
        matching |= Q(scope=BudgetScope.PROJECT, project_id=subject.project_id)
    for key, value in subject.tags.items():
        matching |= Q(mine | Q(team=None), scope=BudgetScope.TAG, tag_key=key, tag_value=value)
    budgets = list(Budget.objects.filter(matching, enabled=True).order_by("pk").prefetch_related("thresholds"))
    if wrong := [budget for budget in budgets if budget.currency != currency]:
        raise ConflictError(
            f"Budget {wrong[0].name} is in {wrong[0].currency}, but the price in force is in {currency}."
        )
    return budgets


def concerns(budget: Budget, subject: Subject) -> bool:
    """The rule of ``budgets_of`` for one budget that is of no team or of the subject's."""
    match budget.scope:
        case BudgetScope.MEMBER:
            return budget.user_id == subject.user_id
        case BudgetScope.PROJECT:
            return budget.project_id == subject.project_id
        case BudgetScope.TAG:
            return subject.tags.get(budget.tag_key) == budget.tag_value
    return True


def accounts_locked(budgets: Sequence[Budget], *, at: datetime | None = None) -> list[BudgetPeriod]:
    """The budgets' accounts of a moment's period, opened where they are new, locked until the transaction ends.

    Args:
        at: None for the period that runs.
    """
    if not budgets:
        return []
    moment = at or database_now()
    names = {budget.pk: period_of(budget, moment) for budget in budgets}
    stored = BudgetPeriod.objects.filter(budget__in=budgets, period__in=set(names.values()))
    existing = set(stored.values_list("budget_id", "period"))
    missing = [BudgetPeriod(budget_id=pk, period=name) for pk, name in names.items() if (pk, name) not in existing]
    if missing:
        BudgetPeriod.objects.bulk_create(missing, ignore_conflicts=True)  # another submitter may be as fast
    by_id = {budget.pk: budget for budget in budgets}
    accounts = [row for row in _locked(stored.values("pk")) if row.period == names[row.budget_id]]
    for account in accounts:
        account.budget = by_id[account.budget_id]
    return accounts


def refuse_what_does_not_fit(accounts: Sequence[BudgetPeriod], asked: Decimal) -> None:
    for account in accounts:
        blocked = blocked_above(account.budget)
        most = MOST_AMOUNT if blocked is None else blocked
        if account.spent + account.held + asked > most:
            raise BudgetExceededError(account, most=most, asked=asked)


def blocked_above(budget: Budget) -> Decimal | None:
    """The amount beyond which the budget blocks; None when it only warns."""
    most = min((found.amount(budget.limit) for found in _with(budget, ThresholdAction.BLOCK)), default=None)
    return most if most is None else min(most, MOST_AMOUNT)


def approval_needed(accounts: Sequence[BudgetPeriod], asked: Decimal) -> ApprovalNeededError | None:
    """``accounts`` have the hold on them already."""
    for account in accounts:
        for threshold in _with(account.budget, ThresholdAction.APPROVAL):
            most = threshold.amount(account.budget.limit)
            if account.spent + account.held > most:
                before = BudgetPeriod(
                    budget=account.budget, period=account.period, spent=account.spent, held=account.held - asked
                )
                return ApprovalNeededError(before, most=most, asked=asked)
    return None


def note_what_is_passed(accounts: Sequence[BudgetPeriod], job_id: uuid.UUID | None) -> None:
    passed = [
        BudgetNotice(period=account, threshold=threshold, job_id=job_id, created_at=Now())
        for account in accounts
        for threshold in account.budget.thresholds.all()
        if account.spent + account.held > threshold.amount(account.budget.limit)
    ]
    if not passed:
        return
    # One per period, whatever passes it again; the accounts are locked, so nobody else writes one meanwhile.
    told = set(BudgetNotice.objects.filter(period__in=accounts).values_list("period", "threshold"))
    new = [notice for notice in passed if (notice.period_id, notice.threshold_id) not in told]
    BudgetNotice.objects.bulk_create(new, ignore_conflicts=True)
    notices_tell(new)


def period_of(budget: Budget, moment: datetime) -> str:
    return TOTAL if budget.span == BudgetSpan.TOTAL else f"{moment:%Y-%m}"


def _with(budget: Budget, action: str) -> list[BudgetThreshold]:
    return [threshold for threshold in budget.thresholds.all() if threshold.action == action]


def _move(hold: Hold, *, spent: Decimal = Decimal(0), released: Decimal = Decimal(0)) -> None:
    accounts = list(_locked(hold.periods.values("pk")))
    for account in accounts:
        account.held -= spent + released
        account.spent += spent
    if accounts:
        BudgetPeriod.objects.bulk_update(accounts, ["held", "spent"])


def _locked(pks: Any) -> list[BudgetPeriod]:
    """In the one order in which everybody locks them."""
    rows = BudgetPeriod.objects.select_for_update().filter(pk__in=pks)
    return list(rows.order_by("budget_id", "period"))
