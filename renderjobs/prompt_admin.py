"""Prompts in the admin: a short one is typed, a language model writes long ones, and one of them goes into a template's form."""

from __future__ import annotations

import uuid
from typing import Any
from urllib.parse import urlencode

from django import forms
from django.conf import settings
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import Max, OuterRef, Q, QuerySet, Subquery
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import URLPattern, path, reverse
from unfold.decorators import display
from unfold.widgets import UnfoldAdminIntegerFieldWidget, UnfoldAdminSelectWidget, UnfoldAdminTextareaWidget

from accounts.admin import TeamAdmin, TeamFilter, is_superuser, teams_as
from accounts.authentication import Caller
from accounts.models import Role, Team
from assets.models import Access, Asset, AssetKind, AssetState
from common.errors import InvalidRequestError, PlatformError
from renderjobs.api.serializers import seconds
from renderjobs.choices import EXPANSION_OPEN, ExpansionState
from renderjobs.models import PromptExpansion, TemplateVersion
from renderjobs.prompt_expansions import (
    DEFAULT_PROMPTS,
    MAX_SEED,
    MOST_PROMPTS,
    NO_MODEL,
    SWITCHED_OFF,
    expansion_submit,
)

COLOURS = {
    ExpansionState.WAITING: "info",
    ExpansionState.WRITING: "primary",
    ExpansionState.WRITTEN: "success",
    ExpansionState.FAILED: "danger",
}
TEMPLATES_OFFERED = 100


class ExpansionForm(forms.Form):
    team = forms.ModelChoiceField(Team.objects.none(), widget=UnfoldAdminSelectWidget)
    prompt = forms.CharField(
        widget=UnfoldAdminTextareaWidget(attrs={"rows": 2}), help_text="A few words, such as: a cat in a garden."
    )
    model = forms.ChoiceField(widget=UnfoldAdminSelectWidget)
    count = forms.IntegerField(
        label="How many",
        initial=DEFAULT_PROMPTS,
        min_value=1,
        max_value=MOST_PROMPTS,
        widget=UnfoldAdminIntegerFieldWidget,
    )
    seed = forms.IntegerField(
        initial=-1,
        min_value=-1,
        max_value=MAX_SEED,
        widget=UnfoldAdminIntegerFieldWidget,
        help_text="-1 draws one; a seed that was drawn once gives the same prompts again.",
    )

    def __init__(self, teams: QuerySet[Team], models: list[str], *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.fields["team"].queryset = teams  # type: ignore[attr-defined]
        self.fields["team"].initial = teams.first()
        self.fields["model"].choices = [(name, name) for name in models]  # type: ignore[attr-defined]


@admin.register(PromptExpansion)
class PromptPage(TeamAdmin):
    readers = (Role.LEAD, Role.MEMBER, Role.VIEWER)
    writers = (Role.LEAD, Role.MEMBER)
    may_change = may_delete = False
    list_display = ("short_prompt", "state_label", "model", "count", "team", "user", "created_at")
    list_filter = (TeamFilter, "state", "created_at")
    list_select_related = ("team", "user", "model")
    search_fields = ("prompt",)
    change_form_outer_before_template = "renderjobs/expansion_prompts.html"
    fields = readonly_fields = (
        "prompt", "model", "count", "seed", "state", "error", "gpu_seconds", "team", "user", "created_at", "finished_at",
    )  # fmt: skip

    class Media:
        js = ("common/live.js",)

    def get_urls(self) -> list[URLPattern]:
        use = path("<uuid:expansion_id>/use/", self.admin_site.admin_view(self.use), name="renderjobs_prompt_use")
        return [use, *super().get_urls()]

    def add_view(self, request: HttpRequest, form_url: str = "", extra_context: Any = None) -> HttpResponse:
        if not self.has_add_permission(request):
            raise PermissionDenied
        teams = self._teams(request)
        models = _models_for(request, teams)
        form = ExpansionForm(teams, models, request.POST or None)
        if request.method == "POST" and form.is_valid() and (expansion := self._submitted(request, form)):
            return redirect("admin:renderjobs_promptexpansion_change", expansion.pk)
        if obstacle := SWITCHED_OFF if not settings.PROMPT_EXPANSION else "" if models else NO_MODEL:
            self.message_user(request, obstacle, messages.WARNING)
        context = {**self.admin_site.each_context(request), "title": "Expand a prompt", "form": form, "opts": self.opts}
        return render(request, "renderjobs/submit_template.html", context)

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        expansion = self.get_object(request, object_id)
        details = self._details(request, expansion) if expansion else {}
        return super().change_view(request, object_id, form_url, {**details, **(extra_context or {})})

    def use(self, request: HttpRequest, expansion_id: uuid.UUID) -> HttpResponse:
        """To the form of a template, which takes the prompt over."""
        expansion = self.get_object(request, str(expansion_id)) if self.may_visit(request) else None
        chosen, number = request.GET.get("template", ""), request.GET.get("number", "")
        if expansion is None or chosen not in {str(one.template_id) for one in templates_for(expansion)}:
            raise Http404
        form = reverse("admin:renderjobs_batchtemplate_submit", args=[chosen])
        return redirect(f"{form}?{urlencode({'expansion': expansion.pk, 'number': number})}")

    def _teams(self, request: HttpRequest) -> QuerySet[Team]:
        teams = Team.objects.order_by("name")
        return teams if is_superuser(request) else teams.filter(pk__in=teams_as(request, *self.writers))

    def _submitted(self, request: HttpRequest, form: ExpansionForm) -> PromptExpansion | None:
        caller = Caller(user=request.user, team=form.cleaned_data["team"])  # type: ignore[arg-type]
        values = {name: form.cleaned_data[name] for name in ("prompt", "model", "count", "seed")}
        try:
            return expansion_submit(caller=caller, **values)
        except InvalidRequestError as error:
            for item in error.errors:
                form.add_error(item.field, item.message)
        except PlatformError as error:
            form.add_error(None, error.message)
        return None

    def _details(self, request: HttpRequest, expansion: PromptExpansion) -> dict[str, Any]:
        submits = is_superuser(request) or expansion.team_id in teams_as(request, *self.writers)
        return {
            "expansion": expansion,
            "is_open": expansion.state in EXPANSION_OPEN,
            "templates": templates_for(expansion) if submits and expansion.prompts else [],
        }

    @display(description="Prompt", ordering="prompt")
    def short_prompt(self, expansion: PromptExpansion) -> str:
        return str(expansion)

    @display(description="State", ordering="state", label=COLOURS)
    def state_label(self, expansion: PromptExpansion) -> tuple[str, str]:
        return expansion.state, expansion.get_state_display()

    @display(description="GPU seconds")
    def gpu_seconds(self, expansion: PromptExpansion) -> str:
        return f"{seconds(expansion.gpu_us):.3f}, on no bill"

    @display(description="Error")
    def error(self, expansion: PromptExpansion) -> str:
        return f"{expansion.error_message} ({expansion.error_code})" if expansion.error_code else ""


def _models_for(request: HttpRequest, teams: QuerySet[Team]) -> list[str]:
    """Names of what one of the teams may use; which of them, the submission looks at."""
    allowed = (
        Q(access=Access.PUBLIC)
        | Q(access=Access.TEAMS, teams__in=teams)
        | Q(access=Access.USERS, users=request.user.pk)
    )
    usable = Asset.objects.filter(allowed, kind=AssetKind.TEXT_GENERATOR, state=AssetState.APPROVED)
    return sorted(set(usable.values_list("name", flat=True)))


def templates_for(expansion: PromptExpansion) -> list[TemplateVersion]:
    """The newest versions of the team's templates that have a prompt which may be changed."""
    newest = TemplateVersion.objects.filter(template=OuterRef("template")).order_by().values("template")
    versions = TemplateVersion.objects.filter(
        template__team=expansion.team_id, number=Subquery(newest.annotate(most=Max("number")).values("most"))
    )
    offered = versions.select_related("template").order_by("template__name")[:TEMPLATES_OFFERED]
    return [version for version in offered if "prompt" in version.request and "prompt" not in version.locked]


def prompt_chosen(request: HttpRequest, team_id: int) -> str | None:
    """The prompt that an address names by its expansion and number; None where it names none of the team's."""
    try:
        key, number = uuid.UUID(request.GET.get("expansion", "")), int(request.GET.get("number", ""))
    except ValueError:
        return None
    expansion = PromptExpansion.objects.filter(pk=key, team=team_id).first()
    return expansion.prompts[number] if expansion and 0 <= number < len(expansion.prompts) else None
