"""The admin's first page is the dashboard. By name, because unfold's own ``admin/index.html`` comes first on the search path."""

from __future__ import annotations

from django.contrib import admin

admin.site.index_template = "operations/dashboard.html"
admin.site.index_title = "Dashboard"
