"""The cost allocation page of the admin: one month, from the teams down to the image, and the same as a file.

Reads only, and only what ``reports`` sums; who may visit is decided by the ledger's page, which these addresses belong to.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

from django.db.models import F, FilteredRelation, Q
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.utils import timezone

from accounts.models import Team
from audit.recording import record
from billing.deployments import ACCRUED, UNBILLED, unsettled
from billing.exports import csv_lines, json_lines, report_lines
from billing.models import Account, Budget
from billing.periods import month_bounds
from billing.reports import DIMENSIONS, TAG, TREE, Period, gpu_hours, is_dimension, unallocated, usage_rows
from common.errors import FieldError, InvalidRequestError
from fleet.models import Pool

ROWS_PER_PAGE = 50
BUDGETS_SHOWN = 50
CHOICES = ("project", "member", "model", "job", "service", "pool", "lane")
"""What one can choose a part by, beside the team and tags."""
LEVELS = (*TREE, "service", "pool", "lane", "day")
UNSETTLED_NAMES = {ACCRUED: "Not settled yet", UNBILLED: "Not billed: no price for instances"}
FORMS = {"csv": "text/csv; charset=utf-8", "json": "application/json"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What the address asks: a month (``YYYY-MM``, UTC), a part of it, and by what to divide that."""

    month: str
    team: str
    of: dict[str, str]
    by: str
    after: int
    period: Period

    def address(self, **changes: Any) -> str:
        """Of the page that asks the same but for ``changes``; None takes a part away."""
        asked = {"month": self.month, "team": self.team or None, **self.of, "by": self.by, **changes}
        return "?" + urlencode({name: value for name, value in asked.items() if value is not None})

    @property
    def dimensions(self) -> tuple[str, ...]:
        """Of the file that holds what the page shows."""
        return TREE[: TREE.index(self.by) + 1] if self.by in TREE else (self.by,)


def question_of(request: HttpRequest, team_ids: Sequence[int] | None) -> Question:
    """Raises: InvalidRequestError."""
    given = request.GET
    start, end = month_bounds(given.get("month") or f"{timezone.now():%Y-%m}")
    team = given.get("team", "")
    if team:
        team_ids = _team_ids(team, team_ids)
    of = {name: value for name, value in given.items() if is_choice(name) and (value or name in TREE)}
    _check(of)
    by = given.get("by") or _next_level(team, of)
    if not is_dimension(by):
        raise _wrong("by", by, f"{', '.join(DIMENSIONS)}, tag:KEY")
    after = given.get("after", "0")
    if not (after.isdecimal() and after.isascii() and len(after) < 10):
        raise _wrong("after", after, "a number of rows")
    period = Period(start=start, end=end, team_ids=team_ids, of=of)
    return Question(month=f"{start:%Y-%m}", team=team, of=of, by=by, after=int(after), period=period)


def is_choice(name: str) -> bool:
    return name in CHOICES or (name.startswith(TAG) and is_dimension(name))


def _team_ids(name: str, visible: Sequence[int] | None) -> list[int]:
    found = list(Team.objects.filter(name=name).values_list("pk", flat=True)) if "\x00" not in name else []
    if not found or (visible is not None and found[0] not in visible):
        raise _wrong("team", name, "a team of yours")
    return found


def _check(of: dict[str, str]) -> None:
    for name, value in of.items():
        if "\x00" in value:
            raise _wrong(name, value, "text")
    if (lane := of.get("lane")) and not (lane.isascii() and lane.isdecimal() and len(lane) < 5):
        raise _wrong("lane", lane, "a lane's number")
    if job := of.get("job"):
        try:
            UUID(job)
        except ValueError:
            raise _wrong("job", job, "a job's id") from None


def _next_level(team: str, of: dict[str, str]) -> str:
    """The first level of the tree below what was chosen."""
    chosen = [level for level in TREE if level in of or (level == "team" and team)]
    return TREE[TREE.index(chosen[-1]) + 1] if chosen else TREE[0]


def _wrong(name: str, value: str, accepted: str) -> InvalidRequestError:
    return InvalidRequestError([FieldError(name, f"{name} is {value[:80]!r}; accepted is {accepted}.")])


def costs_page(request: HttpRequest, team_ids: Sequence[int] | None, frame: dict[str, Any]) -> HttpResponse:
    """The month's costs of ``team_ids`` (None: of all) within the admin's ``frame``."""
    try:
        question, refusal = question_of(request, team_ids), ""
    except InvalidRequestError as error:
        question, refusal = question_of(HttpRequest(), team_ids), error.errors[0].message
    context = {**frame, "title": "Costs", "refusal": refusal, **_answer(question, team_ids)}
    return render(request, "billing/costs.html", context, status=400 if refusal else 200)


def costs_file(request: HttpRequest, form: str, team_ids: Sequence[int] | None) -> HttpResponse:
    """What the page shows, whole, as the other reports write it."""
    try:
        question = question_of(request, team_ids)
    except InvalidRequestError as error:
        return HttpResponse(error.errors[0].message, status=400, content_type="text/plain; charset=utf-8")
    record(request.user, f"took the costs away as {form}", question=request.GET.urlencode()[:500])  # type: ignore[arg-type]
    lines = report_lines(question.dimensions, question.period)
    pieces = csv_lines(question.dimensions, lines) if form == "csv" else json_lines(lines)
    headers = {"Content-Disposition": f'attachment; filename="costs-{question.month}.{form}"'}
    return StreamingHttpResponse(pieces, content_type=FORMS[form], headers=headers)


def _answer(question: Question, team_ids: Sequence[int] | None) -> dict[str, Any]:
    rows = list(
        usage_rows([question.by], question.period, offset=question.after, limit=ROWS_PER_PAGE + 1, dearest_first=True)
    )
    days = list(
        usage_rows(["day"], question.period)
    )  # after the rows: a charge of a new currency between them has its total
    totals = _totals(days)
    more = len(rows) > ROWS_PER_PAGE
    return {
        "question": question,
        "steps": _steps(question),
        "levels": [{"name": level, "address": question.address(by=level)} for level in LEVELS],
        "totals": totals,
        "rows": [_row(question, row, totals[row["currency"]]["amount"]) for row in rows[:ROWS_PER_PAGE]],
        "first": question.address() if question.after else "",
        "next": question.address(after=question.after + ROWS_PER_PAGE) if more else "",
        "charts": _charts(question, days),
        "nobodys": _nobodys(question),
        "deployments": _deployments(question),
        "is_part": bool(question.of),
        "whole": question.address(by=None, **dict.fromkeys(question.of)),
        "budgets": _budgets(question),
        "teams": _teams(team_ids),
        "pools": list(Pool.objects.order_by("name").values_list("name", flat=True)),
        "files": _files(question),
    }


def _totals(days: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    totals: dict[str, dict[str, Any]] = {}
    for day in days:
        total = totals.setdefault(
            day["currency"], {"images": 0, "gpu_us": 0, "amount": Decimal(0), "deployment": Decimal(0)}
        )
        for name in total:
            total[name] += day[name]
    for total in totals.values():
        total["gpu_hours"] = gpu_hours(total)
    return totals


def _row(question: Question, row: dict[str, Any], total: Decimal) -> dict[str, Any]:
    value = "" if row[question.by] is None else str(row[question.by])
    opens = bool(value) if question.by == "team" else is_choice(question.by)
    return {
        **row,
        "name": value,
        # Of what no job used there is no job, image or member, but a service.
        "label": value or (f"no {question.by}: deployed instances" if row["deployment"] else "none"),
        "gpu_hours": gpu_hours(row),
        # Of a month in which more was taken back than spent there are no shares.
        "share": max(0.0, float(100 * row["amount"] / total)) if total > 0 else 0.0,
        "address": question.address(by=None, **{question.by: value}) if opens else "",
    }


def _steps(question: Question) -> list[dict[str, str]]:
    """The way from the whole to what is shown; each step leads back to itself."""
    steps = [{"name": "All", "address": question.address(by=None, team=None, **dict.fromkeys(question.of))}]
    chosen = {"team": question.team, **question.of} if question.team else question.of
    ordered = sorted(chosen, key=lambda name: TREE.index(name) if name in TREE else len(TREE))
    for place, name in enumerate(ordered):
        later = dict.fromkeys(ordered[place + 1 :])
        steps.append({"name": f"{name} {chosen[name] or 'none'}", "address": question.address(by=None, **later)})
    return steps


def _charts(question: Question, days: list[dict[str, Any]]) -> list[dict[str, str]]:
    """One bar per day of the month for each currency, as unfold's chart component takes them."""
    last = (question.period.end - question.period.start).days
    labels = [str(day) for day in range(1, last + 1)]
    charts = []
    for currency in sorted({day["currency"] for day in days}):
        amounts = {day["day"].day: float(day["amount"]) for day in days if day["currency"] == currency}
        dataset = {
            "label": currency,
            "data": [amounts.get(day, 0) for day in range(1, last + 1)],
            "backgroundColor": "var(--color-primary-500)",
            "displayYAxis": True,
            "maxTicksXLimit": 12,
        }
        charts.append({"currency": currency, "data": json.dumps({"labels": labels, "datasets": [dataset]})})
    return charts


def _deployments(question: Question) -> list[dict[str, Any]]:
    rows = unsettled(question.period)
    return [{**row, "name": UNSETTLED_NAMES[row["cost"]], "instance_hours": gpu_hours(row)} for row in rows]


def _nobodys(question: Question) -> list[dict[str, Any]]:
    rows = unallocated(question.period)
    return [{**row, "name": Account(row["cost"]).label, "gpu_hours": gpu_hours(row)} for row in rows]


def _budgets(question: Question) -> list[dict[str, Any]]:
    """Budgets of the teams asked for, with what the month (or the whole, where it is counted once) has spent of them."""
    budgets = Budget.objects.filter(enabled=True)
    if question.period.team_ids is not None:
        budgets = budgets.filter(team__in=question.period.team_ids)
    account = FilteredRelation("periods", condition=Q(periods__period__in=[question.month, "total"]))
    rows = (
        budgets.annotate(account=account)
        .order_by("scope", "name", "pk")
        .values(
            "pk",
            "name",
            "scope",
            "span",
            "limit",
            "currency",
            owner=F("team__name"),
            spent=F("account__spent"),
            held=F("account__held"),
        )
    )
    return [_budget(row) for row in rows[:BUDGETS_SHOWN]]


def _budget(row: dict[str, Any]) -> dict[str, Any]:
    spent, held = row["spent"] or Decimal(0), row["held"] or Decimal(0)
    share = float(100 * (spent + held) / row["limit"]) if row["limit"] else 0.0
    page = reverse("admin:billing_budget_change", args=[row["pk"]])
    return {**row, "spent": spent, "held": held, "share": share, "address": page}


def _teams(team_ids: Sequence[int] | None) -> list[str]:
    teams = Team.objects.order_by("name")
    if team_ids is not None:
        teams = teams.filter(pk__in=team_ids)
    return list(teams.values_list("name", flat=True))


def _files(question: Question) -> list[dict[str, str]]:
    """What is shown, and every image of it."""
    shown = {"what is shown": question.address(), "every image": question.address(by="image")}
    return [
        {"name": f"{name}, {form.upper()}", "address": reverse("admin:billing_costs_file", args=[form]) + address}
        for name, address in shown.items()
        for form in FORMS
    ]
