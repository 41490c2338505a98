"""Pools and workers in the admin. Workers register themselves; people can only drain and resume them."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.contrib import admin, messages
from django.db.models import BooleanField, Case, QuerySet, Value, When
from django.http import HttpRequest
from unfold.decorators import action, display

from accounts.admin import PlatformAdmin
from common.database import now_plus
from fleet.models import Pool, Worker


@admin.register(Pool)
class PoolPage(PlatformAdmin):
    may_delete = False  # charges name it; switching it off ends its use
    list_display = ("name", "gpu_class", "enabled")
    list_filter = ("enabled",)
    search_fields = ("name",)


@admin.register(Worker)
class WorkerPage(PlatformAdmin):
    may_add = may_change = may_delete = False
    list_display = ("name", "pool", "device", "status", "loaded", "last_seen_at", "started_at")
    list_filter = ("pool", "draining")
    list_select_related = ("pool",)
    search_fields = ("name", "device")
    fields = readonly_fields = (
        "name", "pool", "device", "status", "loaded_checkpoint_sha256", "started_at", "last_seen_at", "stopped_at",
    )  # fmt: skip
    actions = ("drain", "resume")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        recent = When(stopped_at=None, last_seen_at__gt=now_plus(-settings.WORKER_DEAD_AFTER_SECONDS), then=Value(True))
        alive = Case(recent, default=Value(False), output_field=BooleanField())
        return super().get_queryset(request).annotate(alive=alive)

    def has_drain_permission(self, request: HttpRequest) -> bool:
        return self.may_visit(request)

    @action(description="Drain: finish, then claim nothing more", permissions=["drain"])
    def drain(self, request: HttpRequest, queryset: QuerySet[Worker]) -> None:
        self._set_draining(request, queryset, True)

    @action(description="Resume claiming", permissions=["drain"])
    def resume(self, request: HttpRequest, queryset: QuerySet[Worker]) -> None:
        self._set_draining(request, queryset, False)

    def _set_draining(self, request: HttpRequest, workers: QuerySet[Worker], draining: bool) -> None:
        chosen = list(workers)
        Worker.objects.filter(pk__in=[worker.pk for worker in chosen]).update(draining=draining)
        for worker in chosen:
            self.log_change(request, worker, "is told to drain" if draining else "is told to go on")
        self.message_user(request, f"{len(chosen)} workers {'drain' if draining else 'claim'} now.", messages.SUCCESS)

    @display(
        description="Status", label={"alive": "success", "draining": "warning", "lost": "danger", "stopped": "info"}
    )
    def status(self, worker: Any) -> str:
        if worker.stopped_at:
            return "stopped"
        if not worker.alive:
            return "lost"
        return "draining" if worker.draining else "alive"

    @display(description="Checkpoint")
    def loaded(self, worker: Worker) -> str:
        return worker.loaded_checkpoint_sha256[:10]
