"""How the admin looks: title, sidebar, dashboard. Who sees what is decided by each app's ``admin.py``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from django.http import HttpRequest
from django.urls import reverse_lazy


def _may_see(model: str, request: HttpRequest) -> bool:
    from django.apps import apps
    from django.contrib.admin import site

    return site.get_model_admin(apps.get_model(model)).has_view_permission(request)


def _stylesheet(request: HttpRequest) -> str:
    from django.templatetags.static import static

    return static("operations/admin.css")


def _is_ledger(request: HttpRequest) -> bool:
    """The costs lie below the ledger's address and have an entry of their own."""
    ledger = str(reverse_lazy("admin:billing_ledgertransaction_changelist"))
    return request.path.startswith(ledger) and not request.path.startswith(f"{ledger}costs")


def _is_below(page: str) -> Callable[[HttpRequest], bool]:
    """An entry that leads to a page below the list, and stands for all of them."""
    return lambda request: request.path.startswith(str(reverse_lazy(page)))


def _page(title: str, icon: str, model: str) -> dict[str, Any]:
    """A sidebar entry, shown to those who may see the model's list."""
    app, name = model.split(".")
    return {
        "title": title,
        "icon": icon,
        "link": reverse_lazy(f"admin:{app}_{name}_changelist"),
        "permission": partial(_may_see, model),
    }


UNFOLD = {
    "SITE_TITLE": "Renderkiln",
    "SITE_HEADER": "Renderkiln",
    "SITE_SUBHEADER": "Pictures, metered",
    "SITE_SYMBOL": "local_fire_department",
    "SITE_URL": None,
    "SHOW_HISTORY": False,
    "STYLES": [_stylesheet],
    "DASHBOARD_CALLBACK": "operations.dashboard.context",
    # A kiln's orange; unfold asks for every shade.
    "COLORS": {
        "primary": {
            "50": "oklch(98% .016 73.684)",
            "100": "oklch(95.4% .038 75.164)",
            "200": "oklch(90.1% .076 70.697)",
            "300": "oklch(83.7% .128 66.29)",
            "400": "oklch(75% .183 55.934)",
            "500": "oklch(70.5% .213 47.604)",
            "600": "oklch(58% .2 41.116)",
            "700": "oklch(52% .18 38.402)",
            "800": "oklch(45% .15 37.304)",
            "900": "oklch(40% .12 38.172)",
            "950": "oklch(26.6% .079 36.259)",
        }
    },
    "SIDEBAR": {
        "show_search": False,
        "show_all_applications": False,
        "navigation": [
            {
                "title": "Work",
                "items": [
                    {"title": "Dashboard", "icon": "dashboard", "link": reverse_lazy("admin:index")},
                    _page("Jobs", "photo_library", "renderjobs.renderjob"),
                    _page("Templates", "bookmark", "renderjobs.batchtemplate"),
                    _page("Schedules", "schedule", "renderjobs.batchschedule"),
                    {
                        **_page("Files", "folder", "renderjobs.teamfile"),
                        "link": reverse_lazy("admin:renderjobs_files"),
                        "active": _is_below("admin:renderjobs_teamfile_changelist"),
                    },
                ],
            },
            {
                "title": "Platform",
                "items": [
                    _page("Models", "deployed_code", "assets.asset"),
                    {
                        **_page("Model zoo", "storefront", "assets.zooimport"),
                        "link": reverse_lazy("admin:assets_zoo"),
                        "active": _is_below("admin:assets_zooimport_changelist"),
                    },
                    _page("Imports", "drive_folder_upload", "renderjobs.directoryimport"),
                    _page("Pools", "memory", "fleet.pool"),
                    _page("Workers", "developer_board", "fleet.worker"),
                    _page("EAS services", "dynamic_form", "renderjobs.easservice"),
                ],
            },
            {
                "title": "Money",
                "items": [
                    {
                        "title": "Costs",
                        "icon": "bar_chart",
                        "link": reverse_lazy("admin:billing_costs"),
                        "permission": partial(_may_see, "billing.ledgertransaction"),
                    },
                    _page("Budgets", "savings", "billing.budget"),
                    _page("Quotas", "speed", "billing.quota"),
                    _page("Holds", "lock_clock", "billing.hold"),
                    {**_page("Ledger", "receipt_long", "billing.ledgertransaction"), "active": _is_ledger},
                    _page("Usage", "timer", "billing.usagerecord"),
                    _page("Rate cards", "sell", "billing.ratecard"),
                    _page("Bills", "description", "billing.billingprofile"),
                ],
            },
            {
                "title": "People",
                "items": [
                    _page("Audit log", "history", "auditlog.logentry"),
                    _page("Teams", "groups", "accounts.team"),
                    _page("Users", "person", "accounts.user"),
                    _page("API tokens", "key", "accounts.apitoken"),
                ],
            },
        ],
    },
}
