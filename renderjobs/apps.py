from __future__ import annotations

from django.apps import AppConfig


class RenderjobsConfig(AppConfig):
    name = "renderjobs"
    verbose_name = "Render jobs"
