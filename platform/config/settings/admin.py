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


def _static(name: str, request: HttpRequest) -> str:
    from django.templatetags.static import static

    return static(f"operations/{name}")


def _is_below(page: str, but: str = "") -> Callable[[HttpRequest], bool]:
    """Whether a page lies below another's address, and not below the part of it that has an entry of its own."""

    def is_below(request: HttpRequest) -> bool:
        address = str(reverse_lazy(page))
        return request.path.startswith(address) and not (but and request.path.startswith(f"{address}{but}"))

    return is_below


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
    "SITE_FAVICONS": [{"rel": "icon", "type": "image/svg+xml", "href": partial(_static, "favicon.svg")}],
    "SITE_URL": None,
    "SHOW_HISTORY": False,
    "STYLES": [partial(_static, "admin.css")],
    "SCRIPTS": [partial(_static, "accessibility.js"), partial(_static, "once.js")],
    "ACCOUNT": {
        "navigation": [
            {"title": "Change password", "link": reverse_lazy("admin:password_change")},
            {"title": "Second factor", "link": reverse_lazy("admin:second_factor")},
        ]
    },
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
                    {
                        **_page("Jobs", "list_alt", "renderjobs.renderjob"),
                        "active": _is_below("admin:renderjobs_renderjob_changelist", but="gallery"),
                    },
                    {
                        "title": "Gallery",
                        "icon": "photo_library",
                        "link": reverse_lazy("admin:renderjobs_gallery"),
                        "permission": partial(_may_see, "renderjobs.renderjob"),
                    },
                    _page("Templates", "bookmark", "renderjobs.batchtemplate"),
                    _page("Schedules", "schedule", "renderjobs.batchschedule"),
                    {
                        **_page("Files", "folder", "renderjobs.teamfile"),
                        "link": reverse_lazy("admin:renderjobs_files"),
                        "active": _is_below("admin:renderjobs_teamfile_changelist"),
                    },
                    _page("Prompts", "edit_note", "renderjobs.promptexpansion"),
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
                    _page("Safety filter", "shield", "renderjobs.safetypolicy"),
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
                    _page("Notices", "notifications", "billing.budgetnotice"),
                    _page("Mails", "outgoing_mail", "billing.outgoingmail"),
                    _page("Holds", "lock_clock", "billing.hold"),
                    {
                        **_page("Ledger", "receipt_long", "billing.ledgertransaction"),
                        "active": _is_below("admin:billing_ledgertransaction_changelist", but="costs"),
                    },
                    _page("Usage", "timer", "billing.usagerecord"),
                    _page("Deployments", "dns", "billing.deploymentspan"),
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
