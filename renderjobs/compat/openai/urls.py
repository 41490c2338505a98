"""`/v1/…`, where OpenAI's clients look when their base address is `https://HOST/v1`."""

from __future__ import annotations

from django.urls import path

from renderjobs.compat.openai import views

ROUTES = {
    "v1/images/generations": views.generations,
    "v1/images/edits": views.edits,
    "v1/models": views.models,
}
urlpatterns = [path(name, view) for name, view in ROUTES.items()]
