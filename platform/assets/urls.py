"""`/api/v1/models…` and `/api/v1/uploads…`"""

from __future__ import annotations

from django.urls import path

from assets import api, tus

urlpatterns = [
    path("models", api.ModelsView.as_view()),
    path("models/<int:model_id>", api.ModelView.as_view()),
    path("models/<int:model_id>/uses", api.ModelUsesView.as_view()),
    path("uploads", tus.UploadsView.as_view(), name="uploads"),
    path("uploads/<uuid:upload_id>", tus.UploadView.as_view(), name="upload"),
]
