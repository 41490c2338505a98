"""Budgets and quotas from a file. Which columns there are and what names them; the checks are those of the page's forms."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from django.core.exceptions import ValidationError
from django.db.models import Model

from accounts.models import Project, Team, User
from billing.forms import BudgetForm, QuotaForm
from billing.models import Budget, BudgetThreshold, Quota, ThresholdAction
from common.importing import FormRows, as_filled_in, named

THRESHOLD = re.compile(r"(\d{1,4})\s*%?\s*(\w+)")


class QuotaRows(FormRows):
    form = QuotaForm
    columns = ("team", "user", "measure", "limit", "enabled")
    key = ("team", "user", "measure")

    class Meta(FormRows.Meta):
        model = Quota

    def found(self, row: Mapping[str, str]) -> Model | None:
        team, user = team_of(row), user_of(row)
        return Quota.objects.filter(team=team, user=user, token=None, measure=row["measure"]).order_by("pk").first()

    def form_data(self, instance: Model, row: Mapping[str, str]) -> dict[str, Any]:
        team = team_of(row)
        return {**as_filled_in(instance, row, self.columns), "team": team.pk if team else "", "user": row["user"]}


class BudgetRows(FormRows):
    """``thresholds`` are such as ``50 notify; 100 block`` and take the place of those that were there."""

    form = BudgetForm
    columns = (
        "name", "scope", "team", "project", "user", "tag_key", "tag_value", "span", "limit", "currency", "enabled",
    )  # fmt: skip
    key = ("name", "scope", "team")
    also = ("thresholds",)
    fixed = ("span", "currency")
    """As on the page: a budget's accounts are of these."""

    class Meta(FormRows.Meta):
        model = Budget

    def found(self, row: Mapping[str, str]) -> Model | None:
        about = {
            "team": team_of(row),
            "project": project_of(row),
            "user": user_of(row),
            "tag_key": row.get("tag_key", ""),
            "tag_value": row.get("tag_value", ""),
        }
        return Budget.objects.filter(name=row["name"], scope=row["scope"], **about).order_by("pk").first()

    def form_data(self, instance: Model, row: Mapping[str, str]) -> dict[str, Any]:
        for name in self.fixed if instance.pk else ():
            if name in row and row[name] != getattr(instance, name):
                raise ValidationError({name: f"{name} of this budget is {getattr(instance, name)} and stays it."})
        thresholds_of(row)
        team, project = team_of(row), project_of(row)
        chosen = {
            "team": team.pk if team else "",
            "project": project.pk if project else "",
            "user": row.get("user", ""),
        }
        return {**as_filled_in(instance, row, self.columns), **chosen}

    def after_save_instance(self, instance: Model, row: Mapping[str, str], **kwargs: Any) -> None:
        wanted = thresholds_of(row)
        if (
            wanted is None
            or list(BudgetThreshold.objects.filter(budget=instance).values_list("percent", "action")) == wanted
        ):
            return
        BudgetThreshold.objects.filter(budget=instance).delete()
        for percent, action in wanted:
            BudgetThreshold.objects.create(budget=instance, percent=percent, action=action)


def thresholds_of(row: Mapping[str, str]) -> list[tuple[int, str]] | None:
    """None where the row says nothing of them. Raises: ValidationError."""
    if "thresholds" not in row:
        return None
    found = []
    for part in filter(None, (part.strip() for part in row["thresholds"].split(";"))):
        match = THRESHOLD.fullmatch(part)
        if match is None or match[2] not in ThresholdAction.values:
            accepted = ", ".join(ThresholdAction.values)
            raise ValidationError(
                {"__all__": f"thresholds has {part!r}; a percentage and one of {accepted} is accepted."}
            )
        found.append((int(match[1]), match[2]))
    return found


def team_of(row: Mapping[str, str]) -> Team | None:
    return named(Team, "team", row["team"], name=row["team"])  # type: ignore[no-any-return]


def user_of(row: Mapping[str, str]) -> User | None:
    name = row.get("user", "")
    return named(User, "user", name, username=name)  # type: ignore[no-any-return]


def project_of(row: Mapping[str, str]) -> Project | None:
    name = row.get("project", "")
    return named(Project, "project", name, name=name, team__name=row["team"])  # type: ignore[no-any-return]
