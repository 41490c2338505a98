"""What people may fill in about budgets and quotas, on the pages and, row by row, in files."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from django import forms

from accounts.admin import UserNameField
from billing.models import Budget, Quota
from billing.models.money import MOST_AMOUNT


def a_currency(text: str) -> str:
    if not (len(text) == 3 and text.isascii() and text.isalpha() and text.isupper()):
        raise forms.ValidationError(f"{text!r} is no currency; three capital letters such as USD are accepted.")
    return text


class BudgetForm(forms.ModelForm):
    user = UserNameField(required=False)

    class Meta:
        model = Budget
        fields = (
            "name", "scope", "team", "project", "user", "tag_key", "tag_value", "span", "limit", "currency", "enabled",
        )  # fmt: skip

    def clean_limit(self) -> Decimal:
        limit: Decimal = self.cleaned_data["limit"]
        if not 0 <= limit <= MOST_AMOUNT:
            raise forms.ValidationError(f"The limit is {limit:f}; zero to {MOST_AMOUNT:f} is accepted.")
        return limit

    def clean_currency(self) -> str:
        return a_currency(self.cleaned_data["currency"])

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or self.cleaned_data
        team, project, user = (cleaned.get(name) for name in ("team", "project", "user"))
        if project and project.team != team:
            self.add_error("project", "The project is not the team's.")
        if user and (team is None or user.role_in(team) is None):
            self.add_error("user", "This user is not a member of the team.")
        return cleaned


class QuotaForm(forms.ModelForm):
    user = UserNameField(required=False)

    class Meta:
        model = Quota
        fields = ("team", "user", "token", "measure", "limit", "enabled")

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or self.cleaned_data
        token = cleaned.get("token")
        for name in ("team", "user"):
            if token and cleaned.get(name) and getattr(token, name) != cleaned[name]:
                self.add_error(name, f"The token is not this {name}'s, so nothing would be counted.")
        return cleaned
