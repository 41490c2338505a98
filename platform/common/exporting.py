"""Lists of the admin as files, by django-import-export: what the person sees of a list, and no more rows than memory takes.

A list says its columns; everything else is here. ``audit`` hears of every file by the library's signal.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from django.contrib.admin.options import IncorrectLookupParameters
from django.db.models import Model, QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import reverse
from import_export.admin import ExportMixin
from import_export.fields import Field
from import_export.formats.base_formats import CSV, JSON, XLSX
from import_export.resources import ModelResource
from unfold.contrib.import_export.forms import ExportForm

from common.spreadsheets import harmless

MOST_ROWS = 50_000
"""Of one file, which is whole in memory; the reports of costs stream and have no such limit."""
NUMBER = re.compile(r"-?\d+(\.\d+)?")
ILLEGAL_IN_XML = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")


class Cells(Field):
    """A column: a lookup path such as ``team__name``; what is missing on the way is empty."""

    def export(self, instance: Model, **kwargs: Any) -> Any:
        value: Any = instance
        for step in (self.attribute or "").split("__"):
            value = getattr(value, step, None)
        return cell(value, for_spreadsheet=kwargs.get("for_spreadsheet", True))


def cell(value: Any, *, for_spreadsheet: bool) -> Any:
    """Text that no spreadsheet runs, numbers as their digits say. JSON keeps texts as they are."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float) and not for_spreadsheet:
        return value
    text = f"{value:f}" if isinstance(value, Decimal) else str(getattr(value, "isoformat", lambda: value)())
    if not for_spreadsheet or NUMBER.fullmatch(text):
        return text
    return harmless(ILLEGAL_IN_XML.sub(" ", text))


def table_of(model: type[Model], columns: Sequence[str]) -> type[ModelResource]:
    """The resource of a list with these columns, in this order."""
    shown = {
        path: Cells(attribute=path, column_name=path.replace("__name", "").replace("__username", ""))
        for path in columns
    }
    meta = type("Meta", (), {"model": model, "fields": tuple(columns), "export_order": tuple(columns)})
    return type(f"{model.__name__}Table", (ModelResource,), {**shown, "Meta": meta})


class ListExport(ExportMixin):
    """A page whose list can be taken away by whoever may see it, filtered as it is shown."""

    export_columns: tuple[str, ...] = ()
    export_formats = (CSV, XLSX, JSON)
    export_form_class = ExportForm

    def has_export_permission(self, request: HttpRequest) -> bool:
        return bool(self.may_visit(request))  # type: ignore[attr-defined]

    def get_export_resource_classes(self, request: HttpRequest) -> list[type[ModelResource]]:
        return [table_of(self.model, self.export_columns)]

    def get_export_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        related = sorted({path.rpartition("__")[0] for path in self.export_columns if "__" in path})
        rows = super().get_export_queryset(request)
        return rows.select_related(*related) if related else rows

    def export_action(self, request: HttpRequest) -> HttpResponse:
        try:
            return super().export_action(request)
        except IncorrectLookupParameters:
            app, model = self.get_model_info()
            return redirect(reverse(f"admin:{app}_{model}_changelist") + "?e=1")  # as the list itself answers

    def get_valid_export_item_pks(self, request: HttpRequest) -> list[Any]:
        """No action exports chosen rows: filters say what is taken."""
        return []

    def get_export_data(self, file_format: Any, request: HttpRequest, queryset: QuerySet[Any], **kwargs: Any) -> Any:
        """Raises: ValueError: The list is too long for one file; the library shows the sentence above its form."""
        if queryset.order_by()[MOST_ROWS : MOST_ROWS + 1].exists():
            raise ValueError(f"The list has more than {MOST_ROWS} rows. Narrow it by its filters or its search first.")
        for_spreadsheet = not isinstance(file_format, JSON)
        return super().get_export_data(file_format, request, queryset, for_spreadsheet=for_spreadsheet, **kwargs)

    def get_export_filename(self, request: HttpRequest, queryset: QuerySet[Any], file_format: Any) -> str:
        return f"{self.model._meta.model_name}s.{file_format.get_extension()}"
