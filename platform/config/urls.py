"""Every door. What answers without a credential: the login page, health, and the API's own documentation."""

from __future__ import annotations

from django.contrib import admin
from django.urls import path

urlpatterns = [
    path("admin/", admin.site.urls),
]
