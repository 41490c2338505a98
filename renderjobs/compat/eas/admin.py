"""EAS services in the admin: superusers make and change them; a team's leads see theirs, how to call them, and renew the token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.db.models import Model, QuerySet
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.safestring import SafeString
from unfold.decorators import action, display
from unfold.widgets import (
    UnfoldAdminCheckboxSelectMultipleWidget,
    UnfoldAdminFileFieldWidget,
    UnfoldAdminSelectWidget,
    UnfoldAdminTextareaWidget,
    UnfoldAdminTextInputWidget,
)

from accounts.admin import TeamAdmin, TeamFilter
from accounts.models import Team
from common.errors import InvalidRequestError, PlatformError
from renderjobs.compat.eas.calling import ways_of
from renderjobs.compat.eas.deployments import month_shown
from renderjobs.compat.eas.documents import MAX_DOCUMENT, document_text, script_unknown
from renderjobs.compat.eas.paths import mounts_checked
from renderjobs.compat.eas.services import (
    document_kept,
    queue_lengths,
    service_create,
    service_document,
    service_import,
    service_start,
    service_stop,
    service_token_renew,
)
from renderjobs.models import EasService
from renderjobs.models.eas import PublicFolder

LIMITS = (
    "window",
    "max_delivery",
    "max_payload_bytes",
    "max_frames",
    "keepalive_seconds",
    "max_queue_size",
    "rate_limit",
)
FLAGS = (
    "public_folders",
    "hidden_tabs",
    "api_log",
    "time_log",
    "safety_filter",
    "dynamic_cache",
    "min_ram_reserved_gb",
)
GIVEN = ("name", "edition", "team", "pool", "replicas", "mounts", *LIMITS, *FLAGS)
NEVER_CHANGED = ("name", "edition", "team")
"""Callers know the service by them, and its queues and token belong to them."""
SHOWN = ("token_prefix", "this_month", "frames", "without_effect")


class LinesField(forms.CharField):
    """A list of names, one on each line."""

    widget = UnfoldAdminTextareaWidget(attrs={"rows": 3})

    def prepare_value(self, value: Any) -> Any:
        return "\n".join(value) if isinstance(value, list) else value

    def to_python(self, value: Any) -> Any:
        return [line.strip() for line in super().to_python(value).splitlines() if line.strip()]

    def has_changed(self, initial: Any, data: Any) -> bool:
        return bool((initial or []) != self.to_python(data))


class ServiceForm(forms.ModelForm):
    public_folders = forms.MultipleChoiceField(
        choices=PublicFolder.choices,
        required=False,
        widget=UnfoldAdminCheckboxSelectMultipleWidget,
        help_text=EasService._meta.get_field("public_folders").help_text,
    )
    hidden_tabs = LinesField(required=False, help_text="Tabs that pages over the web API leave out, one on each line.")

    class Meta:
        model = EasService
        fields = (*GIVEN, "enabled")

    def clean_mounts(self) -> dict[str, str]:
        try:
            return mounts_checked(self.cleaned_data["mounts"])
        except InvalidRequestError as error:
            raise forms.ValidationError(error.message) from error


class ImportForm(forms.Form):
    """A document as text or as a file, and what it does not say."""

    team = forms.ModelChoiceField(Team.objects.all(), widget=UnfoldAdminSelectWidget)
    name = forms.CharField(
        required=False, widget=UnfoldAdminTextInputWidget, help_text="Empty: the document's metadata.name."
    )
    text = forms.CharField(
        label="Document",
        required=False,
        strip=False,
        max_length=MAX_DOCUMENT,
        widget=UnfoldAdminTextareaWidget(attrs={"rows": 16, "spellcheck": "false"}),
        help_text="The service's JSON, as the console of PAI-EAS shows and takes it.",
    )
    file = forms.FileField(label="or a file", required=False, widget=UnfoldAdminFileFieldWidget)

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or self.cleaned_data
        text, file = cleaned.get("text", ""), cleaned.get("file")
        if not self.errors and bool(text.strip()) == bool(file):
            raise forms.ValidationError("Paste a document or choose a file, one of the two.")
        if file:
            try:
                cleaned["text"] = file.read(4 * MAX_DOCUMENT + 1).decode("utf-8-sig")
            except UnicodeDecodeError as error:
                raise forms.ValidationError("The file holds no text in UTF-8.") from error
        return cleaned


@admin.register(EasService)
class ServicePage(TeamAdmin):
    """The token's text is shown in one message after adding or renewing; it cannot be read afterwards."""

    writers = ()
    may_delete = False  # a stopped one keeps what its callers have not fetched
    form = ServiceForm
    list_display = ("name", "edition", "team", "pool", "state", "replicas", "window", "created_at")
    list_filter = (TeamFilter, "edition", "enabled")
    list_select_related = ("team", "pool")
    search_fields = ("name",)
    actions = ("renew_token", "stop", "start")
    actions_list = ("import_document",)
    actions_detail = ("calling", "document")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        return super().get_queryset(request).select_related("token", "pool", "team").defer("document")

    def get_fields(self, request: HttpRequest, obj: Model | None = None) -> tuple[str, ...]:
        return GIVEN if obj is None else (*GIVEN, "enabled", *SHOWN)

    def get_readonly_fields(self, request: HttpRequest, obj: Model | None = None) -> tuple[str, ...]:
        return () if obj is None else (*NEVER_CHANGED, *SHOWN)

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        if change:
            super().save_model(request, obj, form, change)
            return
        service, text = service_create(**{name: form.cleaned_data[name] for name in GIVEN})
        obj.pk = service.pk
        self._show(request, service, text)

    # --- actions ------------------------------------------------------------------------------------------------------

    def has_renew_permission(self, request: HttpRequest) -> bool:
        return self.may_visit(request)

    def has_run_permission(self, request: HttpRequest) -> bool:
        return self.may_write(request)

    @action(description="Renew the token", permissions=["renew"])
    def renew_token(self, request: HttpRequest, queryset: QuerySet[EasService]) -> None:
        for service in queryset:
            try:
                self._show(request, service, service_token_renew(service=service))
            except PlatformError as error:
                self.message_user(request, f"{service}: {error.message}", messages.ERROR)
            else:
                self.log_change(request, service, "has a new token")

    @action(description="Stop", permissions=["run"])
    def stop(self, request: HttpRequest, queryset: QuerySet[EasService]) -> None:
        self._each(request, queryset, service_stop, "is stopped")

    @action(description="Start", permissions=["run"])
    def start(self, request: HttpRequest, queryset: QuerySet[EasService]) -> None:
        self._each(request, queryset, service_start, "is running")

    def _each(
        self, request: HttpRequest, services: QuerySet[EasService], change: Callable[..., None], outcome: str
    ) -> None:
        for service in services:
            change(service=service)
            self.log_change(request, service, outcome)
            self.message_user(request, f"{service} {outcome}.", messages.SUCCESS)

    def _show(self, request: HttpRequest, service: EasService, text: str) -> None:
        self.message_user(request, f"The token of {service} is {text} — it is shown only this once.", messages.WARNING)

    # --- pages --------------------------------------------------------------------------------------------------------

    def has_import_permission(self, request: HttpRequest) -> bool:
        return self.has_add_permission(request)

    def has_look_permission(self, request: HttpRequest, object_id: int | str) -> bool:
        return self._own(request, object_id) is not None

    def _own(self, request: HttpRequest, object_id: int | str) -> EasService | None:
        found: EasService | None = self.get_object(request, str(object_id)) if self.may_visit(request) else None
        return found

    @action(description="Import a document", permissions=["import"], url_path="import")
    def import_document(self, request: HttpRequest) -> HttpResponse:
        form = ImportForm(request.POST or None, request.FILES or None)
        if request.method == "POST" and form.is_valid():
            given = form.cleaned_data
            try:
                service, text = service_import(text=given["text"], team=given["team"], name=given["name"])
            except InvalidRequestError as error:
                for item in error.errors:
                    form.add_error(None, item.message)
            except PlatformError as error:
                form.add_error(None, error.message)
            else:
                self.log_addition(request, service, "imported from a document")
                self._show(request, service, text)
                return redirect("admin:renderjobs_easservice_change", service.pk)
        context = {"title": "Import a service", "form": form}
        return self._page(request, "renderjobs/import_service.html", context)

    @action(description="How to call it", permissions=["look"], url_path="calling")
    def calling(self, request: HttpRequest, object_id: int) -> HttpResponse:
        service = self._found(request, object_id)
        ways = ways_of(
            service.name,
            is_asynchronous=service.is_asynchronous,
            host=request.get_host(),
            scheme=str(request.scheme),
        )
        chosen = next((way for way in ways if way.name == request.GET.get("tab")), ways[0])
        context = {
            "title": f"How to call {service.name}",
            "service": service,
            "service_address": reverse("admin:renderjobs_easservice_change", args=[service.pk]),
            "ways": ways,
            "way": chosen,
        }
        return self._page(request, "renderjobs/service_calling.html", context)

    @action(description="JSON", permissions=["look"], url_path="document")
    def document(self, request: HttpRequest, object_id: int) -> HttpResponse:
        service = self._found(request, object_id)
        response = HttpResponse(document_text(service_document(service)), content_type="application/json")
        response["Content-Disposition"] = f'attachment; filename="{service.name}.json"'
        return response

    def _found(self, request: HttpRequest, object_id: int) -> EasService:
        service = self._own(request, object_id)
        if service is None:
            raise Http404
        return service

    def _page(self, request: HttpRequest, template: str, context: dict[str, Any]) -> HttpResponse:
        return render(request, template, {**self.admin_site.each_context(request), "opts": self.opts, **context})

    # --- facts --------------------------------------------------------------------------------------------------------

    @display(description="State", ordering="enabled", label={"running": "success", "stopped": "warning"})
    def state(self, service: EasService) -> str:
        return "running" if service.enabled else "stopped"

    @display(description="Token")
    def token_prefix(self, service: EasService) -> str:
        return f"{service.token.prefix}…"

    @display(description="This month (UTC)")
    def this_month(self, service: EasService) -> SafeString:
        return month_shown(service)

    @display(description="Frames")
    def frames(self, service: EasService) -> str:
        return ", ".join(f"{kind}: {length}" for kind, length in queue_lengths(service).items()) or "no queues"

    @display(description="Flags without effect")
    def without_effect(self, service: EasService) -> str:
        kept = document_kept(service)
        return ", ".join(script_unknown(kept)) if kept else ""
