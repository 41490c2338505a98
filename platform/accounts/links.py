"""The rows that a page of the admin names: as links for whoever may open their pages, as plain words for everybody else."""

from __future__ import annotations

from typing import Any

import unfold.forms
from django.db.models import Model
from django.http import HttpRequest
from unfold.fields import UnfoldAdminReadonlyField

_READER = "_reader"


def reader_set(form: Any, request: HttpRequest) -> None:
    """Say who reads the form; without a reader nothing of it is a link."""
    setattr(form, _READER, request)


class RowField(UnfoldAdminReadonlyField):
    def get_admin_url(self, remote_field: Any, remote_obj: Model) -> str:
        request = getattr(self.form, _READER, None)
        page = self.model_admin.admin_site._registry.get(type(remote_obj))
        if request is None or page is None or not may_open(page, request, remote_obj):
            return str(remote_obj)
        return super().get_admin_url(remote_field, remote_obj)  # type: ignore[no-any-return]


def may_open(page: Any, request: HttpRequest, row: Model) -> bool:
    """The list of a page says which rows there are for somebody; a role in one team opens no page of another."""
    if not page.has_view_permission(request, row):
        return False
    return page.reads_all(request) or page.get_queryset(request).filter(pk=row.pk).exists()  # type: ignore[no-any-return]


def connect() -> None:
    """unfold makes its fields itself and has no place to name another class."""
    unfold.forms.UnfoldAdminReadonlyField = RowField  # type: ignore[misc]
