"""Teams, users, tokens in the admin, and the two kinds of page every other app's admin builds on.

A superuser sees everything. Other staff see what their role in a team lets them see of that team, and nothing else; who is
marked as finance also sees the money of all teams. Django's own permission tables are not used: the role decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.options import InlineModelAdmin
from django.contrib.auth.admin import UserAdmin as DjangoUserAdmin
from django.contrib.auth.models import Group
from django.db.models import Count, Exists, ForeignKey, Model, OuterRef, Q, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import render
from django.urls import reverse
from django.utils import timezone
from django_otp.plugins.otp_totp.models import TOTPDevice
from unfold.admin import ModelAdmin, TabularInline
from unfold.decorators import action, display
from unfold.forms import AdminPasswordChangeForm, UserChangeForm, UserCreationForm
from unfold.widgets import UnfoldAdminCheckboxSelectMultipleWidget, UnfoldAdminTextInputWidget

from accounts.imports import MemberRows, ProjectRows
from accounts.links import reader_set
from accounts.models import ApiToken, Membership, Project, Role, Scope, Team, User
from accounts.second_factor import second_factor_remove
from accounts.services import networks_read, token_issue, token_revoke
from accounts.sessions import sessions_end
from accounts.throttling import sign_in_unlock
from common.errors import InvalidRequestError
from common.exporting import ListExport
from common.importing import BOTH, ListImport


def teams_as(request: HttpRequest, *roles: str) -> frozenset[int]:
    """Ids of the teams in which the signed-in person has one of the roles; one query per request, however many pages ask."""
    if not hasattr(request, "_roles_in_teams"):
        memberships = Membership.objects.filter(user_id=request.user.pk)
        request._roles_in_teams = list(memberships.values_list("role", "team_id"))  # type: ignore[attr-defined]
    return frozenset(team for role, team in request._roles_in_teams if role in roles)  # type: ignore[attr-defined]


def is_superuser(request: HttpRequest) -> bool:
    return bool(request.user.is_active and request.user.is_superuser)


def is_finance(request: HttpRequest) -> bool:
    return bool(request.user.is_active and request.user.is_staff and request.user.is_finance)


class PlatformAdmin(ModelAdmin):
    """Pages of those who run the platform: superusers. ``may_add`` and the like narrow further what a page can do."""

    may_add = may_change = may_delete = True
    about_money = False
    """Whether who is marked as finance reads all rows."""
    list_per_page = 50
    show_full_result_count = False

    def reads_all(self, request: HttpRequest) -> bool:
        return is_superuser(request) or (self.about_money and is_finance(request))

    def render_change_form(self, request: HttpRequest, context: Any, *args: Any, **options: Any) -> HttpResponse:
        reader_set(context["adminform"].form, request)
        return super().render_change_form(request, context, *args, **options)

    def response_action(self, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponse | None:
        """Django would answer keys that no row can have with an error of the server."""
        try:
            for key in request.POST.getlist(ACTION_CHECKBOX_NAME):
                self.opts.pk.clean(key, None)
        except forms.ValidationError:
            self.message_user(request, "Choose rows of this list.", messages.ERROR)
            return HttpResponseRedirect(request.get_full_path())
        return super().response_action(request, queryset)  # type: ignore[no-any-return]

    def ask_first(
        self,
        request: HttpRequest,
        template: str,
        *,
        action: str,
        title: str,
        button: str,
        chosen: Sequence[Any],
        refusal: str = "",
        **shown: Any,
    ) -> HttpResponse:
        """A page before the action, which extends ``accounts/ask_first.html``; its answer comes with ``confirmed``.

        Args:
            chosen: Keys of the rows.
        """
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "action": action,
            "title": title,
            "button": button,
            "chosen": chosen,
            "refusal": refusal,
            "back": reverse(f"admin:{self.opts.app_label}_{self.opts.model_name}_changelist"),
            **shown,
        }
        return render(request, template, context)

    def may_visit(self, request: HttpRequest) -> bool:
        return self.reads_all(request)

    def may_write(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return is_superuser(request)

    def has_module_permission(self, request: HttpRequest) -> bool:
        return self.may_visit(request)

    def has_view_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return self.may_visit(request)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return self.may_add and self.may_write(request)

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return self.may_change and self.may_write(request, obj)

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return self.may_delete and self.may_write(request, obj)


class TeamAdmin(PlatformAdmin):
    """Pages of teams: rows, and choices in forms, are those of the teams in which the person has one of the page's roles."""

    team_path = "team"
    """Lookup from the row to its team."""
    readers: tuple[str, ...] = (Role.LEAD,)
    writers: tuple[str, ...] = (Role.LEAD,)

    def may_visit(self, request: HttpRequest) -> bool:
        staff = request.user.is_active and request.user.is_staff
        return self.reads_all(request) or bool(staff and teams_as(request, *self.readers))

    def may_write(self, request: HttpRequest, obj: Model | None = None) -> bool:
        """Of ``obj``'s team, or of any where there is none yet."""
        if is_superuser(request):
            return True
        teams = teams_as(request, *self.writers) if self.may_visit(request) else frozenset()
        return bool(teams) if obj is None else self.team_of(obj) in teams

    def team_of(self, obj: Any) -> int | None:
        if self.team_path == "pk":
            return int(obj.pk)
        *steps, last = self.team_path.split("__")
        for step in steps:
            obj = getattr(obj, step)
        return getattr(obj, f"{last}_id")  # type: ignore[no-any-return]

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        rows = super().get_queryset(request)
        if self.reads_all(request):
            return rows
        return rows.filter(**{f"{self.team_path}__in": teams_as(request, *self.readers)})

    def formfield_for_foreignkey(self, db_field: ForeignKey, request: HttpRequest, **kwargs: Any) -> Any:
        choices = db_field.remote_field.model._default_manager.all()
        if not is_superuser(request):
            choices = choices.filter(_of_teams(choices.model, teams_as(request, *self.writers))).distinct()
        return super().formfield_for_foreignkey(db_field, request, **{"queryset": choices, **kwargs})


def _of_teams(model: type[Model], team_ids: frozenset[int]) -> Q:
    if model is Team:
        return Q(pk__in=team_ids)
    if model is User:
        return Q(memberships__team__in=team_ids, is_superuser=False)
    of_a_team = any(field.name == "team" for field in model._meta.get_fields())
    return Q(team__in=team_ids) if of_a_team else Q(pk__in=[])


class TeamFilter(admin.SimpleListFilter):
    """Django's filter by a relation would name every team to every lead."""

    title = "team"
    parameter_name = "team"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        teams = Team.objects.all()
        if not model_admin.reads_all(request):
            teams = teams.filter(pk__in=teams_as(request, *model_admin.readers))
        return [(team.name, str(team)) for team in teams]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        return queryset.filter(team__name=self.value()) if self.value() else queryset


class UserNameField(forms.ModelChoiceField):
    """A user by exact name: a list to choose from would show every lead the names of all other teams."""

    def __init__(self, **options: Any):
        super().__init__(
            User.objects.all(),
            to_field_name="username",
            widget=UnfoldAdminTextInputWidget(attrs={"autocomplete": "off"}),
            error_messages={"invalid_choice": "There is no user of this name."},
            **options,
        )

    def prepare_value(self, value: Any) -> Any:
        if isinstance(value, int):
            return User.objects.values_list("username", flat=True).get(pk=value)
        return super().prepare_value(value)


class MembershipForm(forms.ModelForm):
    user = UserNameField()

    class Meta:
        model = Membership
        fields = ("user", "role")

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if self.instance.pk:  # its user was read with it; the field would ask the database once per member
            self.initial["user"] = self.instance.user.username


class PartInline(TabularInline):
    """Rows of the object on whose page they are, so what holds for the page holds for them."""

    extra = 0

    def _may_write(self, request: HttpRequest, obj: Model | None) -> bool:
        page = self.admin_site.get_model_admin(self.parent_model)
        return page.has_add_permission(request) if obj is None else page.has_change_permission(request, obj)

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self.admin_site.get_model_admin(self.parent_model).has_view_permission(request, obj)

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self._may_write(request, obj)

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self._may_write(request, obj)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self._may_write(request, obj)


class MembershipInline(PartInline):
    model = Membership
    form = MembershipForm
    verbose_name_plural = "members"
    per_page = 50  # a form of more fields than DATA_UPLOAD_MAX_NUMBER_FIELDS could not be saved

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        return super().get_queryset(request).select_related("user", "team").order_by("user__username")


class ProjectInline(PartInline):
    model = Project
    fields = ("name", "title")


@admin.register(Team)
class TeamPage(ListImport, ListExport, TeamAdmin):
    team_path = "pk"
    import_export_change_list_template = BOTH
    import_rows = (MemberRows, ProjectRows)
    export_columns = ("id", "name", "title", "members_total", "projects_total", "created_at")
    list_display = ("name", "title", "members_total", "projects_total", "created_at")
    search_fields = ("name", "title")
    fields = ("name", "title")
    inlines: tuple[type[InlineModelAdmin], ...] = (MembershipInline, ProjectInline)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        members, projects = Count("memberships", distinct=True), Count("projects", distinct=True)
        return super().get_queryset(request).annotate(members_total=members, projects_total=projects)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return is_superuser(request)

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return is_superuser(request)

    def get_readonly_fields(self, request: HttpRequest, obj: Model | None = None) -> tuple[str, ...]:
        return () if is_superuser(request) else ("name",)

    @display(description="Members", ordering="members_total")
    def members_total(self, team: Any) -> int:
        return int(team.members_total)

    @display(description="Projects", ordering="projects_total")
    def projects_total(self, team: Any) -> int:
        return int(team.projects_total)


class UserForm(UserChangeForm):
    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or self.cleaned_data
        if cleaned.get("is_service_account") and (cleaned.get("is_staff") or cleaned.get("is_superuser")):
            raise forms.ValidationError("A service account is a program; it cannot be staff.")
        return cleaned


admin.site.unregister(Group)  # roles in teams take the place of groups
admin.site.unregister(TOTPDevice)  # its pages show keys; a person's own page and an action here do the work


@admin.register(User)
class UserPage(ListExport, DjangoUserAdmin, PlatformAdmin):
    export_columns = (
        "id", "username", "first_name", "last_name", "email", "is_active", "is_staff", "is_superuser", "is_finance",
        "is_service_account", "date_joined", "last_login",
    )  # fmt: skip
    form = UserForm
    add_form = UserCreationForm
    change_password_form = AdminPasswordChangeForm
    list_display = (
        "username",
        "email",
        "is_active",
        "is_staff",
        "is_superuser",
        "is_finance",
        "is_service_account",
        "second_factor",
        "last_login",
    )
    actions = ("end_sessions", "reset_second_factor", "unlock")
    list_filter = ("is_active", "is_staff", "is_superuser", "is_finance", "is_service_account")
    search_fields = ("username", "email", "first_name", "last_name")
    filter_horizontal = ()
    readonly_fields = ("last_login", "date_joined")
    fieldsets = (
        (None, {"fields": ("username", "password")}),
        ("Person", {"fields": ("first_name", "last_name", "email")}),
        ("Rights", {"fields": ("is_active", "is_staff", "is_superuser", "is_finance", "is_service_account")}),
        ("Dates", {"fields": ("last_login", "date_joined")}),
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        device = TOTPDevice.objects.filter(user=OuterRef("pk"), confirmed=True)
        return super().get_queryset(request).annotate(has_device=Exists(device))

    @display(description="Second factor", boolean=True)
    def second_factor(self, user: Any) -> bool:
        return bool(user.has_device)

    def has_secure_permission(self, request: HttpRequest) -> bool:
        return self.may_write(request)

    @action(description="End all sessions", permissions=["secure"])
    def end_sessions(self, request: HttpRequest, queryset: QuerySet[User]) -> None:
        for user in queryset:
            sessions_end(user=user)
        self.message_user(request, "Their sessions are ended; everybody signs in again.", messages.SUCCESS)

    @action(description="Take the second factor away (lost device)", permissions=["secure"])
    def reset_second_factor(self, request: HttpRequest, queryset: QuerySet[User]) -> None:
        for user in queryset:
            second_factor_remove(user=user)
        self.message_user(request, "They sign in with their password and set it up anew.", messages.SUCCESS)

    @action(description="Unlock sign-in after wrong passwords", permissions=["secure"])
    def unlock(self, request: HttpRequest, queryset: QuerySet[User]) -> None:
        for user in queryset:
            sign_in_unlock(user=user)
        self.message_user(request, "They may try again at once.", messages.SUCCESS)


class TokenForm(forms.ModelForm):
    scopes = forms.MultipleChoiceField(
        choices=[(scope, scope) for scope in Scope.values],  # the words of the API and its refusals
        initial=list(Scope.values),
        widget=UnfoldAdminCheckboxSelectMultipleWidget,
    )

    networks = forms.CharField(
        required=False,
        widget=UnfoldAdminTextInputWidget,
        label="Only from",
        help_text="Networks or addresses with commas between, such as 10.1.0.0/16. Empty: from anywhere.",
    )

    class Meta:
        model = ApiToken
        fields = ("user", "team", "name", "scopes", "expires_at", "networks")

    def clean_networks(self) -> list[str]:
        try:
            return networks_read(self.cleaned_data["networks"].split(","))
        except InvalidRequestError as error:
            raise forms.ValidationError(error.errors[0].message) from error

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or self.cleaned_data
        user, team, expires_at = (cleaned.get(name) for name in ("user", "team", "expires_at"))
        if user and team and user.role_in(team) is None:
            self.add_error("user", f"{user} is not a member of {team}.")
        if expires_at and expires_at <= timezone.now():
            self.add_error("expires_at", "The expiry lies in the past.")
        return cleaned


@admin.register(ApiToken)
class TokenPage(TeamAdmin):
    """The text is shown in one message after adding; neither it nor its hash can be read afterwards."""

    may_change = False
    form = TokenForm
    list_display = ("prefix", "name", "user", "team", "scope_list", "status", "expires_at", "last_used_at")
    list_filter = (TeamFilter,)
    list_select_related = ("user", "team")
    search_fields = ("prefix", "name", "user__username")
    actions = ("revoke",)

    def get_fields(self, request: HttpRequest, obj: Model | None = None) -> tuple[str, ...]:
        given = ("user", "team", "name")
        if obj is None:
            return (*given, "scopes", "expires_at", "networks")
        return (
            "prefix",
            *given,
            "scope_list",
            "only_from",
            "status",
            "expires_at",
            "revoked_at",
            "last_used_at",
            "created_at",
        )

    def get_readonly_fields(self, request: HttpRequest, obj: Model | None = None) -> tuple[str, ...]:
        return () if obj is None else self.get_fields(request, obj)

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        values = {name: form.cleaned_data[name] for name in TokenForm.Meta.fields}
        token, text = token_issue(**values)
        obj.pk, obj.prefix = token.pk, token.prefix
        self.message_user(request, f"The token is {text} — it is shown only this once.", messages.WARNING)

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return is_superuser(request)

    def has_revoke_permission(self, request: HttpRequest) -> bool:
        return self.may_write(request)

    @action(description="Revoke", permissions=["revoke"])
    def revoke(self, request: HttpRequest, queryset: QuerySet[ApiToken]) -> None:
        for token in queryset:
            token_revoke(token=token)
            self.log_change(request, token, "is revoked")
        self.message_user(request, "The chosen tokens are revoked.", messages.SUCCESS)

    @display(description="Scopes")
    def scope_list(self, token: ApiToken) -> str:
        return "all" if set(token.scopes) == set(Scope.values) else ", ".join(token.scopes)

    @display(description="Only from")
    def only_from(self, token: ApiToken) -> str:
        return ", ".join(token.networks) or "anywhere"

    @display(description="Status", label={"usable": "success", "expired": "warning", "revoked": "danger"})
    def status(self, token: ApiToken) -> str:
        if token.revoked_at:
            return "revoked"
        return "expired" if token.expires_at and token.expires_at <= timezone.now() else "usable"
