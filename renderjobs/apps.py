from __future__ import annotations

from django.apps import AppConfig


class RenderjobsConfig(AppConfig):
    name = "renderjobs"
    verbose_name = "Render jobs"

    def ready(self) -> None:
        from accounts.authentication import service_relation_register
        from renderjobs import corrections, model_uses, quota_counters, worker_facts  # models are there only now

        corrections.register()
        quota_counters.register()
        model_uses.register()
        worker_facts.register()
        service_relation_register("eas_service")
