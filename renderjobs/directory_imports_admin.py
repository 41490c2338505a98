"""Imports of data directories in the admin: a superuser names a folder of the server and a team, and watches what becomes of it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.db.models import Model, QuerySet
from django.db.models.functions import Now
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.utils.html import format_html
from django.utils.safestring import SafeString, mark_safe
from unfold.decorators import action, display

from accounts.admin import PlatformAdmin
from common.errors import PlatformError
from renderjobs.directory_imports import MOST_LEFT, directory_allowed, import_resume, import_start, import_stop
from renderjobs.models import DirectoryImport, ImportedNot, ImportState
from renderjobs.team_files import folder_checked

GIVEN = ("team", "directory", "folder", "public")
UNDERWAY = (ImportState.WAITING, ImportState.RUNNING)
LEFT_SHOWN = 200
COLOURS = {
    ImportState.WAITING: "info",
    ImportState.RUNNING: "primary",
    ImportState.STOPPED: "warning",
    ImportState.ENDED: "success",
    ImportState.FAILED: "danger",
}


class ImportForm(forms.ModelForm):
    class Meta:
        model = DirectoryImport
        fields = GIVEN

    def clean_directory(self) -> str:
        return str(_said(directory_allowed, self.cleaned_data["directory"]))

    def clean_folder(self) -> str:
        return str(_said(folder_checked, self.cleaned_data["folder"]))


def _said(check: Callable[[str], object], text: str) -> object:
    try:
        return check(text)
    except PlatformError as error:
        raise forms.ValidationError(error.message) from error


@admin.register(DirectoryImport)
class ImportPage(PlatformAdmin):
    may_change = False
    form = ImportForm
    list_display = ("directory", "team", "state_label", "progress", "files_done", "files_left", "created_at")
    list_filter = ("state",)
    list_select_related = ("team",)
    actions = ("stop", "go_on")
    change_form_outer_before_template = "renderjobs/import_progress.html"
    facts = (*GIVEN, "started_by", "created_at", "ended_at")

    class Media:
        js = ("common/live.js",)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        return super().get_queryset(request).annotate(now=Now())

    def get_fields(self, request: HttpRequest, obj: Model | None = None) -> tuple[str, ...]:
        return self.facts if obj else GIVEN

    def get_readonly_fields(self, request: HttpRequest, obj: Model | None = None) -> tuple[str, ...]:
        return self.facts if obj else ()

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        given = {name: form.cleaned_data[name] for name in GIVEN}
        obj.pk = import_start(user=request.user, **given).pk  # type: ignore[arg-type]

    def response_add(self, request: HttpRequest, obj: Any, post_url_continue: Any = None) -> HttpResponse:
        """To the page that shows how far it is."""
        return redirect("admin:renderjobs_directoryimport_change", obj.pk)

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        run = self.get_object(request, object_id)
        details = import_details(run) if run else {}
        return super().change_view(request, object_id, form_url, {**details, **(extra_context or {})})

    @action(description="Stop", permissions=["add"])
    def stop(self, request: HttpRequest, queryset: QuerySet[DirectoryImport]) -> None:
        self._each(request, queryset, lambda run: import_stop(run=run), "is stopped")

    @action(description="Go on, or look for what is new", permissions=["add"])
    def go_on(self, request: HttpRequest, queryset: QuerySet[DirectoryImport]) -> None:
        self._each(request, queryset, lambda run: import_resume(run=run), "goes on")

    def _each(
        self, request: HttpRequest, runs: QuerySet[Any], change: Callable[[DirectoryImport], None], outcome: str
    ) -> None:
        for run in runs:
            try:
                change(run)
            except PlatformError as error:
                self.message_user(request, f"{run}: {error.message}", messages.ERROR)
            else:
                self.log_change(request, run, outcome)
                self.message_user(request, f"{run} {outcome}.", messages.SUCCESS)

    @display(description="State", ordering="state", label=COLOURS)
    def state_label(self, run: DirectoryImport) -> str:
        return run.state

    @display(description="Progress")
    def progress(self, run: DirectoryImport) -> SafeString:
        live = mark_safe(" data-live-until-ended" if run.state in UNDERWAY else "")  # noqa: S308 one of two constants
        bar = '<progress id="progress-{}" max="100" value="{}" title="{} %" data-live{}></progress>'
        return format_html(bar, run.pk, percent(run), percent(run), live)


def import_details(run: Any) -> dict[str, Any]:
    left = list(ImportedNot.objects.filter(run=run)[: LEFT_SHOWN + 1])
    return {
        "run": run,
        "run_underway": run.state in UNDERWAY,
        "run_percent": percent(run),
        "run_seconds_left": seconds_left(run, run.now),
        "run_left": left[:LEFT_SHOWN],
        "run_left_more": run.files_left - LEFT_SHOWN if len(left) > LEFT_SHOWN else 0,
        "run_left_kept": MOST_LEFT,
    }


def percent(run: DirectoryImport) -> int:
    if run.state == ImportState.ENDED:
        return 100
    return min(99, 100 * run.bytes_done // run.bytes_total) if run.bytes_total else 0


def seconds_left(run: DirectoryImport, now: datetime) -> int | None:
    """By the speed of the worker that is at it; None while nothing can be said."""
    done = run.bytes_done - run.bytes_before
    if run.state != ImportState.RUNNING or run.began_at is None or done <= 0:
        return None
    passed = (now - run.began_at).total_seconds()
    return round(passed * max(0, run.bytes_total - run.bytes_done) / done)
