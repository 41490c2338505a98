"""The safety filter of each team. Who runs the platform decides; the team reads what is decided."""

from __future__ import annotations

from django.contrib import admin, messages
from django.db.models import Model
from django.http import HttpRequest, HttpResponse

from accounts.admin import TeamAdmin, is_superuser
from accounts.models import Role
from assets.models import Asset, AssetKind, AssetState
from renderjobs.models import SafetyPolicy

NO_FILTER = (
    "No safety filter is installed: jobs of these teams are refused until `manage.py import_asset FOLDER --kind safety_filter` "
    "has taken one in."
)


@admin.register(SafetyPolicy)
class SafetyPage(TeamAdmin):
    readers = (Role.LEAD, Role.MEMBER, Role.VIEWER)
    list_display = ("team", "mode")
    list_select_related = ("team",)
    fields = ("team", "mode")

    def may_write(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return is_superuser(request)

    def changelist_view(self, request: HttpRequest, extra_context: dict | None = None) -> HttpResponse:
        installed = Asset.objects.filter(kind=AssetKind.SAFETY_FILTER, state=AssetState.APPROVED)
        if not installed.exists():
            self.message_user(request, NO_FILTER, messages.WARNING)
        return super().changelist_view(request, extra_context)
