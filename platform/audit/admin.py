"""The audit log in the admin: read, search, export; written by nobody here."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator

from auditlog.models import LogEntry
from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, StreamingHttpResponse
from django.urls import URLPattern, path
from django.utils.html import format_html
from django.utils.safestring import SafeString
from unfold.decorators import display

from accounts.admin import PlatformAdmin
from audit.models import Seal
from audit.recording import record
from common.spreadsheets import Echo, harmless

admin.site.unregister(LogEntry)
COLUMNS = ("time", "who", "from", "did", "kind", "object", "name", "changes")
COLOURS = {"create": "success", "update": "info", "delete": "danger", "access": "warning"}


@admin.register(LogEntry)
class AuditPage(PlatformAdmin):
    may_add = may_change = may_delete = False
    list_display = ("timestamp", "who", "did", "content_type", "object_repr", "changed", "remote_addr")
    list_filter = ("action", "content_type", "timestamp")
    list_select_related = ("content_type", "actor")
    search_fields = ("object_repr", "object_pk", "actor__username")
    fields = readonly_fields = (
        "timestamp", "who", "remote_addr", "did", "content_type", "object_pk", "object_repr", "before_and_after", "seal",
    )  # fmt: skip
    list_before_template = "audit/export.html"

    def get_urls(self) -> list[URLPattern]:
        file = path("audit.csv", self.admin_site.admin_view(self.export), name="audit_export")
        return [file, *super().get_urls()]

    def export(self, request: HttpRequest) -> StreamingHttpResponse:
        """The chosen entries as CSV, whatever their number; the address takes the list's own filters."""
        if not self.may_visit(request):
            raise PermissionDenied
        record(request.user, "took the audit log away as csv", question=request.GET.urlencode()[:500])  # type: ignore[arg-type]
        entries = self.get_changelist_instance(request).get_queryset(request)
        headers = {"Content-Disposition": 'attachment; filename="audit.csv"'}
        lines = _csv(entries.select_related("content_type", "actor").iterator(chunk_size=500))
        return StreamingHttpResponse(lines, content_type="text/csv; charset=utf-8", headers=headers)

    @display(description="Who")
    def who(self, entry: LogEntry) -> str:
        return who_did(entry)

    @display(description="Did", label=COLOURS)
    def did(self, entry: LogEntry) -> tuple[str, str]:
        return entry.get_action_display(), what_was_done(entry)

    @display(description="Changed")
    def changed(self, entry: LogEntry) -> str:
        return ", ".join(entry.changes_dict)

    @display(description="Before and after")
    def before_and_after(self, entry: LogEntry) -> SafeString:
        return format_html(
            '<pre class="rk-json">{}</pre>', json.dumps(entry.changes_dict, indent=2, ensure_ascii=False)
        )

    @display(description="Seal")
    def seal(self, entry: LogEntry) -> str:
        seal = Seal.objects.filter(entry_id=entry.pk).first()
        return f"{seal.number}: {seal.digest}" if seal else "within a minute"


def who_did(entry: LogEntry) -> str:
    return (entry.additional_data or {}).get("by") or (str(entry.actor) if entry.actor else "the platform")


def what_was_done(entry: LogEntry) -> str:
    return (entry.additional_data or {}).get("did") or entry.get_action_display()


def _csv(entries: Iterator[LogEntry]) -> Iterator[str]:
    writer = csv.writer(Echo(), lineterminator="\n")
    yield writer.writerow(COLUMNS)
    for entry in entries:
        row = (
            entry.timestamp.isoformat(), who_did(entry), entry.remote_addr or "", what_was_done(entry),
            str(entry.content_type), entry.object_pk, entry.object_repr, json.dumps(entry.changes_dict, ensure_ascii=False),
        )  # fmt: skip
        yield writer.writerow([harmless(text) for text in row])
