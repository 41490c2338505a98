"""`/api/predict/<service>` and everything below it; no redirect ever, for the clients' WebSockets do not follow one."""

from __future__ import annotations

from django.urls import path

from renderjobs.compat.eas import views

urlpatterns = [
    path("api/predict/<str:service>", views.predict),
    path("api/predict/<str:service>/", views.predict),
    path("api/predict/<str:service>/<path:path>", views.predict),
]
