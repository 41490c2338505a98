"""Members and projects of teams from a file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django import forms
from django.db.models import Model

from accounts.models import Membership, Project, Team, User
from common.importing import FormRows, as_filled_in, named


class MemberForm(forms.ModelForm):
    class Meta:
        model = Membership
        fields = ("team", "user", "role")


class ProjectForm(forms.ModelForm):
    class Meta:
        model = Project
        fields = ("team", "name", "title")


class MemberRows(FormRows):
    form = MemberForm
    columns = ("team", "user", "role")
    key = ("team", "user")

    class Meta(FormRows.Meta):
        model = Membership
        name = "Members"

    def found(self, row: Mapping[str, str]) -> Model | None:
        return Membership.objects.filter(team__name=row["team"], user__username=row["user"]).first()

    def form_data(self, instance: Model, row: Mapping[str, str]) -> dict[str, Any]:
        user = named(User, "user", row["user"], username=row["user"])
        return {**as_filled_in(instance, row, self.columns), "team": team_key(row), "user": user.pk if user else ""}


class ProjectRows(FormRows):
    form = ProjectForm
    columns = ("team", "name", "title")
    key = ("team", "name")

    class Meta(FormRows.Meta):
        model = Project
        name = "Projects"

    def found(self, row: Mapping[str, str]) -> Model | None:
        return Project.objects.filter(team__name=row["team"], name=row["name"]).first()

    def form_data(self, instance: Model, row: Mapping[str, str]) -> dict[str, Any]:
        return {**as_filled_in(instance, row, self.columns), "team": team_key(row)}


def team_key(row: Mapping[str, str]) -> Any:
    team = named(Team, "team", row["team"], name=row["team"])
    return team.pk if team else ""
