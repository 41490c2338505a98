"""The model zoo in the admin: what there is, what is here, one click to fetch, and what became of it."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import Q
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import URLPattern, path
from unfold.decorators import display

from accounts.admin import PlatformAdmin
from assets.models import Asset, AssetState, Upload
from assets.zoo import ZooEntry, refusal_of, zoo_entries, zoo_import
from assets.zoo_models import ZOO_OPEN, ZooImport, ZooState
from common.database import database_now
from common.errors import PlatformError

COLOURS = {
    ZooState.WAITING: "info",
    ZooState.RUNNING: "primary",
    ZooState.ENDED: "success",
    ZooState.FAILED: "danger",
}


@admin.register(ZooImport)
class ZooPage(PlatformAdmin):
    """The list says what was fetched when; the zoo itself is a page of its own."""

    may_add = may_change = may_delete = False
    list_display = ("entry", "state_label", "reason", "asset", "started_by", "created_at", "ended_at")
    list_select_related = ("asset", "started_by")
    list_filter = ("state",)
    fields = readonly_fields = ("entry", "state", "reason", "asset", "started_by", "created_at", "ended_at")

    def get_urls(self) -> list[URLPattern]:
        return [path("zoo/", self.admin_site.admin_view(self.zoo), name="assets_zoo"), *super().get_urls()]

    def zoo(self, request: HttpRequest) -> HttpResponse:
        if not self.may_visit(request):
            raise PermissionDenied
        if request.method == "POST":
            self._begin(request, request.POST.get("entry", "")[:60])
            return redirect("admin:assets_zoo")
        context = {
            **self.admin_site.each_context(request),
            "title": "Model zoo",
            "opts": self.opts,
            "entries": entries_shown(),
        }
        return render(request, "assets/zoo.html", context)

    def _begin(self, request: HttpRequest, key: str) -> None:
        try:
            run = zoo_import(key=key, user=request.user)  # type: ignore[arg-type]
        except PlatformError as error:
            self.message_user(request, error.message, messages.ERROR)
        else:
            self.log_change(request, run, f"{key} was asked for")
            self.message_user(request, f"{key} is being fetched; this page shows how far it is.", messages.SUCCESS)

    @display(description="State", ordering="state", label=COLOURS)
    def state_label(self, run: ZooImport) -> str:
        return run.state


def entries_shown() -> list[dict[str, Any]]:
    """The zoo with what is known of each model here: four questions to the database, however long the list."""
    entries, here, runs = zoo_entries(), _assets_here(), {}
    for run in ZooImport.objects.filter(entry__in=[entry.key for entry in entries]).order_by("created_at"):
        runs[run.entry] = run
    uploads = {
        upload.asset_id: upload for upload in Upload.objects.filter(asset__in=[r.asset_id for r in runs.values()])
    }
    now = database_now()
    return [_entry_shown(entry, here, runs.get(entry.key), uploads, now) for entry in entries]


def _assets_here() -> dict[tuple[str, str], Asset]:
    """By kind and hash, and by kind and name."""
    entries = zoo_entries()
    hashes = [entry.sha256 for entry in entries if entry.sha256]
    same = Q(sha256__in=hashes) | Q(original_sha256__in=hashes) | Q(name__in=[entry.name for entry in entries])
    found: dict[tuple[str, str], Asset] = {}
    for asset in Asset.objects.filter(same, state=AssetState.APPROVED):
        found |= {(asset.kind, text): asset for text in (asset.sha256, asset.original_sha256, asset.name) if text}
    return found


def _entry_shown(
    entry: ZooEntry,
    here: dict[tuple[str, str], Asset],
    run: ZooImport | None,
    uploads: dict[int | None, Upload],
    now: datetime,
) -> dict[str, Any]:
    underway = run is not None and run.state in ZOO_OPEN
    upload = uploads.get(run.asset_id) if run and run.asset_id else None
    return {
        "entry": entry,
        "asset": here.get((entry.kind, entry.sha256 or entry.name)),
        "run": run,
        "underway": underway,
        "upload": upload,
        "percent": 100 * upload.received_bytes // upload.size_bytes if upload else 0,
        "seconds_left": _seconds_left(run, upload, now) if run and upload else None,
        "refusal": refusal_of(entry),
    }


def _seconds_left(run: ZooImport, upload: Upload, now: datetime) -> int | None:
    done = upload.received_bytes - run.bytes_before
    if run.state != ZooState.RUNNING or run.began_at is None or done <= 0:
        return None
    return round((now - run.began_at).total_seconds() * (upload.size_bytes - upload.received_bytes) / done)
