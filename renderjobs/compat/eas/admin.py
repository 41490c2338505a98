"""EAS services in the admin: superusers make and change them; a team's leads see theirs, how to call them, and renew the token."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import admin, messages
from django.db.models import Model, QuerySet
from django.http import HttpRequest
from django.utils.html import format_html
from django.utils.safestring import SafeString
from unfold.decorators import action, display

from accounts.admin import TeamAdmin, TeamFilter
from common.errors import InvalidRequestError, PlatformError
from renderjobs.compat.eas.deployments import month_shown
from renderjobs.compat.eas.paths import mounts_checked
from renderjobs.compat.eas.services import queue_lengths, service_create, service_token_renew
from renderjobs.models import EasService

LIMITS = (
    "window",
    "max_delivery",
    "max_payload_bytes",
    "max_frames",
    "keepalive_seconds",
    "max_queue_size",
    "rate_limit",
)
GIVEN = ("name", "edition", "team", "pool", "replicas", "mounts", *LIMITS)
NEVER_CHANGED = ("name", "edition", "team")
"""Callers know the service by them, and its queues and token belong to them."""
EXAMPLE = """curl -H "Authorization: $TOKEN" "{address}/sdapi/v1/txt2img" -d '{{"prompt": "a ring", "steps": 20}}'"""
PYTHON = """from eas_prediction import QueueClient

client = QueueClient("{host}", "{name}/sdapi/v1/txt2img")
client.set_token(TOKEN)
client.init()
index, request_id = client.put('{{"prompt": "a ring", "steps": 20}}')"""


class ServiceForm(forms.ModelForm):
    class Meta:
        model = EasService
        fields = (*GIVEN, "enabled")

    def clean_mounts(self) -> dict[str, str]:
        try:
            return mounts_checked(self.cleaned_data["mounts"])
        except InvalidRequestError as error:
            raise forms.ValidationError(error.message) from error


@admin.register(EasService)
class ServicePage(TeamAdmin):
    """The token's text is shown in one message after adding or renewing; it cannot be read afterwards."""

    writers = ()
    may_delete = False  # a stopped one keeps what its callers have not fetched
    form = ServiceForm
    list_display = ("name", "edition", "team", "pool", "enabled", "window", "created_at")
    list_filter = (TeamFilter, "edition", "enabled")
    list_select_related = ("team", "pool")
    search_fields = ("name",)
    actions = ("renew_token",)

    def has_renew_permission(self, request: HttpRequest) -> bool:
        return self.may_visit(request)

    def get_fields(self, request: HttpRequest, obj: Model | None = None) -> tuple[str, ...]:
        return GIVEN if obj is None else (*GIVEN, "enabled", "token_prefix", "this_month", "frames", "calling")

    def get_readonly_fields(self, request: HttpRequest, obj: Model | None = None) -> tuple[str, ...]:
        return () if obj is None else (*NEVER_CHANGED, "token_prefix", "this_month", "frames", "calling")

    def get_object(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        service = super().get_object(request, *args, **kwargs)
        if service is not None:
            service.host = request.get_host()
        return service

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        if change:
            super().save_model(request, obj, form, change)
            return
        service, text = service_create(**{name: form.cleaned_data[name] for name in GIVEN})
        obj.pk = service.pk
        self._show(request, service, text)

    @action(description="Renew the token", permissions=["renew"])
    def renew_token(self, request: HttpRequest, queryset: QuerySet[EasService]) -> None:
        for service in queryset:
            try:
                self._show(request, service, service_token_renew(service=service))
            except PlatformError as error:
                self.message_user(request, f"{service}: {error.message}", messages.ERROR)
            else:
                self.log_change(request, service, "has a new token")

    def _show(self, request: HttpRequest, service: EasService, text: str) -> None:
        self.message_user(request, f"The token of {service} is {text} — it is shown only this once.", messages.WARNING)

    @display(description="Token")
    def token_prefix(self, service: EasService) -> str:
        return f"{service.token.prefix}…"

    @display(description="This month (UTC)")
    def this_month(self, service: EasService) -> SafeString:
        return month_shown(service)

    @display(description="Frames")
    def frames(self, service: EasService) -> str:
        return ", ".join(f"{kind}: {length}" for kind, length in queue_lengths(service).items()) or "no queues"

    @display(description="How to call it")
    def calling(self, service: Any) -> SafeString:
        address = f"http://{service.host}/api/predict/{service.name}"
        python = PYTHON.format(host=service.host, name=service.name) if service.is_asynchronous else ""
        return format_html(
            "<p>Results: {}</p><p>The web API itself: {}</p><pre>{}</pre><pre>{}</pre>",
            f"{address}/sink" if service.is_asynchronous else "in the answer of the call",
            f"http://{service.host}/sdapi/v1/",
            EXAMPLE.format(address=address),
            python,
        )
