"""Models in the admin: upload, watch the intake, choose the default, decide who may use them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import Model, QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.template.defaultfilters import filesizeformat
from django.urls import reverse
from kombu.exceptions import OperationalError
from unfold.decorators import action, display
from unfold.widgets import UnfoldAdminFileFieldWidget

from accounts.admin import PlatformAdmin
from assets import zoo_admin  # noqa: F401  it registers its page
from assets.intake import asset_process, asset_receive, clean_stem, config_text
from assets.models import Access, Asset, AssetState
from assets.services import asset_make_default, asset_restore, asset_retire
from assets.tasks import process
from common.errors import InvalidRequestError, PlatformError

logger = logging.getLogger(__name__)
UNDERWAY = (AssetState.RECEIVED, AssetState.HASHED, AssetState.SCANNED, AssetState.RECOGNISED)
STATE_COLOURS = {
    **dict.fromkeys(UNDERWAY, "info"),
    AssetState.APPROVED: "success",
    AssetState.QUARANTINED: "danger",
    AssetState.RETIRED: "warning",
}


class AccessForm(forms.ModelForm):
    class Meta:
        model = Asset
        fields = ("access", "teams", "users")

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or self.cleaned_data
        for field, access in (("teams", Access.TEAMS), ("users", Access.USERS)):
            if cleaned.get("access") == access and not cleaned.get(field):
                self.add_error(field, f"Choose {field}: nobody could use the model otherwise.")
        return cleaned


class UploadForm(AccessForm):
    """Posted as it stands by browsers without scripts; with them ``upload.js`` sends the files in parts instead."""

    file = forms.FileField(
        label="Weights",
        help_text="Files of .safetensors; pickles (.ckpt, .pt, .pth, .bin) are converted if they hold tensors only, "
        "zipped folders in diffusers layout become one file.",
    )
    config = forms.FileField(
        label="YAML",
        required=False,
        help_text="The configuration that came with it, if any.",
        widget=UnfoldAdminFileFieldWidget(attrs={"accept": ".yaml,.yml"}),
    )

    class Meta:
        model = Asset
        fields = ("kind", "file", "config", "name", "access", "teams", "users")

    class Media:
        js = ("assets/tus.min.js", "assets/upload.js")

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.fields["file"].widget = UnfoldAdminFileFieldWidget(
            attrs={
                "accept": ".safetensors,.ckpt,.pt,.pth,.bin,.zip",
                "data-uploads": reverse("uploads"),
                "data-afterwards": reverse("admin:assets_asset_changelist"),
            }
        )
        self.fields["name"].required = False
        self.fields["name"].help_text = "What clients call it; empty takes the file's name."

    def clean_config(self) -> Any:
        config = self.cleaned_data["config"]
        if config:
            _said(lambda: config_text(config))
            config.seek(0)
        return config

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or self.cleaned_data
        if file := cleaned.get("file"):
            cleaned["name"] = _said(lambda: clean_stem(cleaned.get("name") or file.name))
        return cleaned


@admin.register(Asset)
class AssetPage(PlatformAdmin):
    may_delete = False  # jobs name the files they were made with; retiring hides one from new requests
    list_display = (
        "name",
        "kind",
        "state_label",
        "family",
        "short_hash",
        "size",
        "default",
        "access",
        "reason",
        "created_at",
    )
    list_filter = ("kind", "state", "access", "family")
    list_select_related = ("upload",)
    search_fields = ("name", "sha256")
    autocomplete_fields = ("teams", "users")
    actions = ("make_default", "retire", "restore", "check_again")
    facts = (
        "kind", "name", "state_label", "reason", "family", "sha256", "size", "default",
        "uploaded_by", "created_at", "approved_at",
    )  # fmt: skip

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        return super().get_form(request, obj, change=change, form=AccessForm if obj else UploadForm, **kwargs)

    def get_fields(self, request: HttpRequest, obj: Model | None = None) -> tuple[str, ...]:
        return (*self.facts, *AccessForm.Meta.fields) if obj else UploadForm.Meta.fields

    def get_readonly_fields(self, request: HttpRequest, obj: Model | None = None) -> tuple[str, ...]:
        return self.facts if obj else ()

    def add_view(self, request: HttpRequest, form_url: str = "", extra_context: Any = None) -> HttpResponse:
        """Store the upload outside Django's usual transaction, which would keep a write lock while gigabytes are copied."""
        if request.method == "POST":
            if not self.has_add_permission(request):
                raise PermissionDenied
            form = self.get_form(request)(request.POST, request.FILES)
            if form.is_valid():
                self._receive(request, form.cleaned_data)
                return redirect("admin:assets_asset_changelist")
        return super().add_view(request, form_url, extra_context)

    def _receive(self, request: HttpRequest, given: dict[str, Any]) -> None:
        asset = asset_receive(
            file=given["file"],
            name=given["name"],
            kind=given["kind"],
            config=given["config"] or None,
            access=given["access"],
            teams=tuple(given["teams"]),
            users=tuple(given["users"]),
            uploaded_by=request.user,  # type: ignore[arg-type]
        )
        self.log_addition(request, asset, [{"added": {}}])
        self._process(request, asset)

    def _process(self, request: HttpRequest, asset: Asset) -> None:
        """Leave hashing and scanning to a CPU worker; without a broker do it here and now."""
        try:
            process.delay(asset.pk)
        except OperationalError:
            logger.warning("The broker does not answer; asset %s is processed by the web process.", asset.pk)
            self._tell(request, asset_process(asset.pk))
        else:
            self.message_user(request, f"{asset.name} is received and being checked; reload to see the outcome.")

    def _tell(self, request: HttpRequest, asset: Asset) -> None:
        if asset.state == AssetState.APPROVED:
            self.message_user(request, f"{asset} is approved and can be used now.", messages.SUCCESS)
        else:
            self.message_user(request, f"{asset.name} is {asset.state}: {asset.reason}", messages.ERROR)

    @action(description="Make default", permissions=["change"])
    def make_default(self, request: HttpRequest, queryset: QuerySet[Asset]) -> None:
        if queryset.count() != 1:
            self.message_user(request, "Choose exactly one model as the default.", messages.ERROR)
            return
        self._each(request, queryset, lambda asset: asset_make_default(asset=asset), "is the default now")

    @action(description="Retire", permissions=["change"])
    def retire(self, request: HttpRequest, queryset: QuerySet[Asset]) -> None:
        self._each(request, queryset, lambda asset: asset_retire(asset=asset), "is retired")

    @action(description="Restore from retirement", permissions=["change"])
    def restore(self, request: HttpRequest, queryset: QuerySet[Asset]) -> None:
        self._each(request, queryset, lambda asset: asset_restore(asset=asset), "is approved again")

    @action(description="Check again", permissions=["change"])
    def check_again(self, request: HttpRequest, queryset: QuerySet[Asset]) -> None:
        """For uploads whose worker was killed half-way."""
        for asset in queryset.filter(state__in=UNDERWAY):
            self._process(request, asset)

    def _each(
        self, request: HttpRequest, assets: QuerySet[Asset], change: Callable[[Asset], None], outcome: str
    ) -> None:
        for asset in assets:
            try:
                change(asset)
            except PlatformError as error:
                self.message_user(request, error.message, messages.ERROR)
            else:
                self.log_change(request, asset, outcome)
                self.message_user(request, f"{asset} {outcome}.", messages.SUCCESS)

    @display(description="State", ordering="state", label=STATE_COLOURS)
    def state_label(self, asset: Asset) -> str:
        return asset.state

    @display(description="Size", ordering="size_bytes")
    def size(self, asset: Asset) -> str:
        if upload := getattr(asset, "upload", None):
            return f"{100 * upload.received_bytes // upload.size_bytes} % of {filesizeformat(upload.size_bytes)}"
        return filesizeformat(asset.size_bytes)

    @display(description="Default", boolean=True, ordering="is_default")
    def default(self, asset: Asset) -> bool:
        return asset.is_default


def _said(check: Callable[[], Any]) -> Any:
    """What ``check`` returns; its complaint in the form's own exception."""
    try:
        return check()
    except InvalidRequestError as error:
        raise forms.ValidationError(error.message) from error
