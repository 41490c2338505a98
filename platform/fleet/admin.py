"""Pools and workers in the admin. Workers register themselves; people drain, resume, quarantine and release them."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.contrib import admin, messages
from django.contrib.admin import EmptyFieldListFilter
from django.db.models import BooleanField, Case, QuerySet, Value, When
from django.http import HttpRequest, HttpResponse
from django.template.defaultfilters import filesizeformat
from django.utils.html import format_html
from django.utils.safestring import SafeString
from unfold.decorators import action, display

from accounts.admin import PlatformAdmin
from common.database import now_plus
from common.errors import ConflictError
from fleet.models import Pool, Worker
from fleet.profiles import learned_by
from fleet.services import worker_quarantine, worker_release
from fleet.work import with_work, work_of

STATUS_COLOURS = {
    "alive": "success", "draining": "warning", "lost": "danger", "stopped": "info", "quarantined": "danger",
}  # fmt: skip


@admin.register(Pool)
class PoolPage(PlatformAdmin):
    may_delete = False  # charges name it; switching it off ends its use
    list_display = ("name", "gpu_class", "enabled")
    list_filter = ("enabled",)
    search_fields = ("name",)


@admin.register(Worker)
class WorkerPage(PlatformAdmin):
    may_add = may_change = may_delete = False
    list_display = ("name", "pool", "device", "status", "loaded", "images", "card_memory", "last_seen_at", "started_at")
    list_filter = ("pool", "draining", ("quarantined_at", EmptyFieldListFilter))
    list_select_related = ("pool",)
    search_fields = ("name", "device")
    fields = readonly_fields = (
        "name", "pool", "device", "card", "status", "quarantine_shown", "loaded", "loaded_hash", "card_memory",
        "machine_memory", "compiled", "started_at", "last_seen_at", "stopped_at",
    )  # fmt: skip
    actions = ("drain", "resume", "quarantine", "release")
    change_form_outer_after_template = "fleet/worker.html"

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        recent = When(stopped_at=None, last_seen_at__gt=now_plus(-settings.WORKER_DEAD_AFTER_SECONDS), then=Value(True))
        alive = Case(recent, default=Value(False), output_field=BooleanField())
        return with_work(super().get_queryset(request).annotate(alive=alive))

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        worker = self.get_object(request, object_id)
        work = {"work": work_of(worker), "learned": learned_by(worker, settings.MAX_MICROBATCH)} if worker else {}
        return super().change_view(request, object_id, form_url, {**work, **(extra_context or {})})

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

    @action(description="Quarantine: claim nothing until released, restarts included", permissions=["drain"])
    def quarantine(self, request: HttpRequest, queryset: QuerySet[Worker]) -> HttpResponse | None:
        """Asks for the reason first."""
        chosen = list(queryset)
        reason = request.POST.get("reason", "").strip()
        if not reason:
            return self.ask_first(
                request,
                "fleet/quarantine.html",
                action="quarantine",
                title="Quarantine workers",
                button="Quarantine",
                chosen=[worker.pk for worker in chosen],
                refusal="Say why, for whoever releases it." if "confirmed" in request.POST else "",
                workers=chosen,
            )
        for worker in chosen:
            worker_quarantine(worker=worker, reason=reason, by=request.user)  # type: ignore[arg-type]
        self.message_user(request, f"{len(chosen)} workers are quarantined.", messages.SUCCESS)
        return None

    @action(description="Release from quarantine", permissions=["drain"])
    def release(self, request: HttpRequest, queryset: QuerySet[Worker]) -> None:
        for worker in queryset:
            try:
                worker_release(worker=worker)
            except ConflictError as error:
                self.message_user(request, error.message, messages.ERROR)
            else:
                self.message_user(request, f"{worker} is released.", messages.SUCCESS)

    @display(description="Status", label=STATUS_COLOURS)
    def status(self, worker: Any) -> str:
        if worker.quarantined_at:
            return "quarantined"
        if worker.stopped_at:
            return "stopped"
        if not worker.alive:
            return "lost"
        return "draining" if worker.draining else "alive"

    @display(description="Checkpoint")
    def loaded(self, worker: Any) -> str:
        return worker.checkpoint_name or worker.loaded_checkpoint_sha256[:10] or "none"

    @display(description="Its SHA-256")
    def loaded_hash(self, worker: Worker) -> SafeString:
        return format_html('<span class="rk-long">{}</span>', worker.loaded_checkpoint_sha256 or "-")

    @display(description="Images")
    def images(self, worker: Any) -> int:
        return worker.images or 0

    @display(description="Card's memory")
    def card_memory(self, worker: Worker) -> str:
        return of_total(worker.report.get("vram_used"), worker.report.get("vram_total"))

    @display(description="Compiled shapes")
    def compiled(self, worker: Worker) -> str:
        """Graphs, and calls of networks by how they ran."""
        counts = worker.report.get("compiled", {})
        return ", ".join(f"{name.replace('_', ' ')}: {count}" for name, count in counts.items()) or "none"

    @display(description="Machine's memory")
    def machine_memory(self, worker: Worker) -> str:
        report = worker.report
        own = report.get("ram_used")
        said = of_total(_difference(report.get("ram_total"), report.get("ram_available")), report.get("ram_total"))
        return f"{said}, {filesizeformat(own)} by this process" if said and own else said

    @display(description="Quarantine")
    def quarantine_shown(self, worker: Worker) -> str:
        if not worker.quarantined_at:
            return "no"
        who = worker.quarantined_by or "the platform"
        return f"since {worker.quarantined_at:%Y-%m-%d %H:%M} UTC, by {who}: {worker.quarantine_reason}"


def _difference(total: int | None, rest: int | None) -> int | None:
    return None if total is None or rest is None else total - rest


def of_total(used: int | None, total: int | None) -> str:
    return f"{filesizeformat(used)} of {filesizeformat(total)}" if used is not None and total else ""
