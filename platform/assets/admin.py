"""Models in the admin: upload, watch the intake, choose the default, decide who may use them, write their cards."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import Model, OuterRef, QuerySet, Subquery
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.template.defaultfilters import filesizeformat
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from kombu.exceptions import OperationalError
from unfold.decorators import action, display
from unfold.widgets import UnfoldAdminFileFieldWidget, UnfoldBooleanSwitchWidget

from accounts.admin import PlatformAdmin
from assets import zoo_admin  # noqa: F401  it registers its page
from assets.cards import FIELDS as CARD_FIELDS
from assets.cards import card_of
from assets.intake import SETTLED, asset_process, asset_receive, clean_stem, config_text
from assets.models import Access, Asset, AssetState
from assets.previews import MAX_PREVIEW_BYTES, preview_checked, preview_url
from assets.selectors import same_bytes
from assets.services import asset_describe, asset_make_default, asset_restore, asset_retire
from assets.tasks import process
from assets.uses import uses_of
from common.errors import InvalidRequestError, PlatformError
from common.exporting import ListExport

logger = logging.getLogger(__name__)
UNDERWAY = (AssetState.RECEIVED, AssetState.HASHED, AssetState.SCANNED, AssetState.RECOGNISED)
MOST_AT_ONCE = 10
"""Models whose uses are looked up for one page."""
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


class CardForm(AccessForm):
    """What people may change of an asset: who may use it, and its card."""

    preview = forms.FileField(
        label="New picture",
        required=False,
        help_text="Made small when it comes in.",
        widget=UnfoldAdminFileFieldWidget(attrs={"accept": "image/*"}),
    )
    without_preview = forms.BooleanField(label="Remove the picture", required=False, widget=UnfoldBooleanSwitchWidget)

    class Meta:
        model = Asset
        fields = (*AccessForm.Meta.fields, "pools", *CARD_FIELDS)

    def clean_preview(self) -> bytes | None:
        picture = self.cleaned_data["preview"]
        if not picture:
            return None
        return _said(lambda: preview_checked(picture.read(MAX_PREVIEW_BYTES + 1)))  # type: ignore[no-any-return]


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
        fields = ("kind", "file", "config", "name", "access", "teams", "users", *CARD_FIELDS)

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
class AssetPage(ListExport, PlatformAdmin):
    export_columns = (
        "id", "kind", "name", "alias", "state", "reason", "family", "base_model", "sha256", "original_sha256", "short_hash",
        "size_bytes", "is_default", "access", "licence", "source_page", "trigger_words", "uploaded_by__username", "created_at",
        "approved_at",
    )  # fmt: skip
    may_delete = False  # jobs name the files they were made with; retiring hides one from new requests
    list_display = (
        "thumbnail",
        "name",
        "kind",
        "state_label",
        "family",
        "short_hash",
        "size",
        "default",
        "access",
        "runs_in",
        "base_model",
        "same_bytes_as",
        "reason",
        "created_at",
    )
    list_display_links = ("name",)
    list_filter = ("kind", "state", "access", "pools", "family")
    list_select_related = ("upload",)
    search_fields = ("name", "sha256", "trigger_words", "base_model")
    autocomplete_fields = ("teams", "users", "pools")
    actions = ("make_default", "retire", "restore", "check_again")
    facts = (
        "picture", "kind", "name", "state_label", "reason", "family", "hash_shown", "same_bytes_as", "size", "default",
        "uploaded_by", "created_at", "approved_at",
    )  # fmt: skip

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        there = Asset.objects.filter(kind=OuterRef("kind"), sha256=OuterRef("sha256"), state__in=SETTLED).exclude(
            sha256=""
        )
        same = there.exclude(name=OuterRef("name")).order_by("approved_at").values("name")[:1]
        return super().get_queryset(request).annotate(same_as=Subquery(same)).prefetch_related("pools")

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        return super().get_form(request, obj, change=change, form=CardForm if obj else UploadForm, **kwargs)

    def get_fields(self, request: HttpRequest, obj: Model | None = None) -> tuple[str, ...]:
        return (*self.facts, *CardForm.Meta.fields, "preview", "without_preview") if obj else UploadForm.Meta.fields

    def get_readonly_fields(self, request: HttpRequest, obj: Model | None = None) -> tuple[str, ...]:
        return self.facts if obj else ()

    def add_view(self, request: HttpRequest, form_url: str = "", extra_context: Any = None) -> HttpResponse:
        """Store the upload outside Django's usual transaction, which would keep a write lock while gigabytes are copied."""
        if request.method == "POST":
            if not self.has_add_permission(request):
                raise PermissionDenied
            form = self.get_form(request)(request.POST, request.FILES)
            if form.is_valid():
                try:
                    self._receive(request, form.cleaned_data)
                except PlatformError as error:
                    self.message_user(request, error.message, messages.ERROR)
                    return redirect("admin:assets_asset_add")
                return redirect("admin:assets_asset_changelist")
        return super().add_view(request, form_url, extra_context)

    def save_model(self, request: HttpRequest, obj: Asset, form: Any, change: bool) -> None:
        super().save_model(request, obj, form, change)
        if form.cleaned_data["preview"]:
            asset_describe(asset=obj, said={}, preview=form.cleaned_data["preview"])
        elif form.cleaned_data["without_preview"]:
            asset_describe(asset=obj, said={}, preview=b"")

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
            card=card_of(**{name: given[name] for name in CARD_FIELDS}),
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
            same = same_bytes(Asset.objects.filter(sha256=asset.sha256, state__in=SETTLED)).get(asset.pk)
            also = f" The same file is here as {', '.join(same)} already." if same else ""
            self.message_user(request, f"{asset} is approved and can be used now.{also}", messages.SUCCESS)
        else:
            self.message_user(request, f"{asset.name} is {asset.state}: {asset.reason}", messages.ERROR)

    @action(description="Make default", permissions=["change"])
    def make_default(self, request: HttpRequest, queryset: QuerySet[Asset]) -> None:
        if queryset.count() != 1:
            self.message_user(request, "Choose exactly one model as the default.", messages.ERROR)
            return
        self._each(request, queryset, lambda asset: asset_make_default(asset=asset), "is the default now")

    @action(description="Retire: first shows what uses it", permissions=["change"])
    def retire(self, request: HttpRequest, queryset: QuerySet[Asset]) -> HttpResponse | None:
        if request.POST.get("confirmed"):
            self._each(request, queryset, lambda asset: asset_retire(asset=asset), "is retired")
            return None
        chosen = list(queryset[: MOST_AT_ONCE + 1])
        if len(chosen) > MOST_AT_ONCE:
            self.message_user(request, f"Choose at most {MOST_AT_ONCE} models to retire at once.", messages.ERROR)
            return None
        return self.ask_first(
            request,
            "assets/retire.html",
            action="retire",
            title="Retire models",
            button="Retire",
            chosen=[asset.pk for asset in chosen],
            assets=[{"asset": asset, "uses": uses_of(asset)} for asset in chosen],
        )

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

    @display(description="")
    def thumbnail(self, asset: Asset) -> SafeString | str:
        return _image(asset, "rk-thumbnail")

    @display(description="SHA-256")
    def hash_shown(self, asset: Asset) -> SafeString:
        return format_html('<span class="rk-long">{}</span>', asset.sha256 or "-")

    @display(description="Picture")
    def picture(self, asset: Asset) -> SafeString | str:
        return _image(asset, "rk-picture") or "none"

    @display(description="State", ordering="state", label=STATE_COLOURS)
    def state_label(self, asset: Asset) -> str:
        return asset.state

    @display(description="Size", ordering="size_bytes")
    def size(self, asset: Asset) -> str:
        if upload := getattr(asset, "upload", None):
            return f"{100 * upload.received_bytes // upload.size_bytes} % of {filesizeformat(upload.size_bytes)}"
        return filesizeformat(asset.size_bytes)

    @display(description="Same bytes as")
    def same_bytes_as(self, asset: Any) -> str:
        return asset.same_as or ""

    @display(description="Runs in")
    def runs_in(self, asset: Asset) -> str:
        return ", ".join(pool.name for pool in asset.pools.all()) or "any pool"

    @display(description="Default", boolean=True, ordering="is_default")
    def default(self, asset: Asset) -> bool:
        return asset.is_default


def _image(asset: Asset, look: str) -> SafeString | str:
    address = preview_url(asset)
    return format_html('<img src="{}" class="{}" alt="" loading="lazy">', address, look) if address else ""


def _said(check: Callable[[], Any]) -> Any:
    """What ``check`` returns; its complaint in the form's own exception."""
    try:
        return check()
    except InvalidRequestError as error:
        raise forms.ValidationError(error.message) from error
