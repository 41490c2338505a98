"""`/api/v1/uploads…`"""

from __future__ import annotations

from django.urls import path

from assets import tus

urlpatterns = [
    path("uploads", tus.UploadsView.as_view(), name="uploads"),
    path("uploads/<uuid:upload_id>", tus.UploadView.as_view(), name="upload"),
]
