"""Every door. What answers without a credential: the login page, health, signed files and previews, the API's own documentation."""

from __future__ import annotations

from django.conf import settings
from django.contrib import admin
from django.urls import include, path
from drf_spectacular.views import SpectacularAPIView

from assets.previews import preview_file
from common.document_pages import DocumentPage
from operations.health import healthz, readyz
from renderjobs.files import signed_file

urlpatterns = [
    path(settings.ADMIN_PATH, admin.site.urls),
    path("api/v1/", include("renderjobs.api.urls")),
    path("api/v1/", include("assets.urls")),
    path("api/schema/", SpectacularAPIView.as_view(), name="schema"),
    path("api/docs/", DocumentPage.as_view(url_name="schema"), name="docs"),
    path("", include("renderjobs.compat.sdapi.urls")),
    path("", include("renderjobs.compat.openai.urls")),
    path("", include("renderjobs.compat.eas.urls")),
    path("files/<str:token>", signed_file, name="signed-file"),
    path("models/previews/<str:token>", preview_file, name="model-preview"),
    path("healthz", healthz),
    path("readyz", readyz),
]
handler400 = "common.problem.bad_request"
handler404 = "common.problem.not_found"
handler500 = "common.problem.server_error"
