from __future__ import annotations

from django.apps import AppConfig
from django.contrib.admin import apps as admin_apps


class AdminConfig(admin_apps.AdminConfig):
    """Django's admin with our site: unfold's looks, our sign-in."""

    default = False
    default_site = "accounts.site.PlatformSite"


class AccountsConfig(AppConfig):
    name = "accounts"
    default = True

    def ready(self) -> None:
        import accounts.schema  # noqa: F401  registers itself with drf-spectacular
        from accounts import links, sessions, throttling

        links.connect()
        sessions.connect()
        throttling.connect()
