"""What the admin's first page shows: money this month, the queue, the workers, what failed. Reads only.

Everybody sees the same page, narrowed to the own teams and to what the own role in them reads; queries are of fixed number.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from django.core.files.storage import default_storage
from django.db.models import Count, Q, QuerySet, Sum
from django.http import HttpRequest
from django.utils import timezone

from accounts.admin import is_finance, is_superuser, teams_as
from accounts.models import Role
from assets.models import Asset, AssetState
from billing.reports import gpu_hours, usage_by
from fleet.admin import of_total
from fleet.models import Worker
from fleet.services import workers_alive
from fleet.work import with_work
from renderjobs.choices import IMAGE_HELD, ImageState, JobState, Lane
from renderjobs.models import RenderImage, RenderJob

FAILURES_SHOWN = 8


def context(request: HttpRequest, values: dict[str, Any]) -> dict[str, Any]:
    """Unfold's callback: adds the dashboard's parts to the template's values."""
    now = timezone.now()
    month = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    everything = is_superuser(request)
    work = None if everything else teams_as(request, Role.LEAD, Role.MEMBER, Role.VIEWER)
    money = None if everything or is_finance(request) else teams_as(request, Role.LEAD, Role.FINANCE)
    queue = queue_by_lane(work)
    machines = workers() if everything else []
    spending = spending_by_team(month, now, money)
    return {
        **values,
        "month": month,
        "shows_work": work is None or work,
        "shows_money": money is None or money,
        "spending": spending,
        "gpu_hours_today": sum(row["gpu_hours_today"] for row in spending),
        "queue": queue,
        "queue_total": sum(row["waiting"] + row["running"] for row in queue),
        "workers": machines,
        "workers_alive": sum(row["alive"] for row in machines),
        **(storage() if everything else {}),
        "failures": failures(work),
        "today": today(now, work),
    }


def spending_by_team(start: datetime, end: datetime, team_ids: Collection[int] | None) -> list[dict[str, Any]]:
    """The ledger's rows of the period, dearest first; ``share`` is percent of the dearest of the same currency.

    ``today`` is the part of the amount since the midnight before ``end``.
    """
    ids = None if team_ids is None else sorted(team_ids)
    rows = usage_by(["team"], start=start, end=end, team_ids=ids)
    midnight = end.replace(hour=0, minute=0, second=0, microsecond=0)
    since = {(row["team"], row["currency"]): row for row in usage_by(["team"], start=midnight, end=end, team_ids=ids)}
    highest: dict[str, Decimal] = {}
    for row in rows:
        highest[row["currency"]] = max(row["amount"], highest.get(row["currency"], Decimal(0)))
    for row in rows:
        row["share"] = int(100 * row["amount"] / highest[row["currency"]]) if highest[row["currency"]] else 0
        row["gpu_hours"] = gpu_hours(row)
        today = since.get((row["team"], row["currency"]), {"amount": Decimal(0), "gpu_us": 0})
        row["today"], row["gpu_hours_today"] = today["amount"], gpu_hours(today)
    return sorted(rows, key=lambda row: (row["currency"], -row["amount"]))


def storage() -> dict[str, int | None]:
    """Bytes of all models, and what is free where pictures are written; None where that is no disk of this machine."""
    models = Asset.objects.exclude(state=AssetState.QUARANTINED).aggregate(total=Sum("size_bytes", default=0))["total"]
    folder = getattr(default_storage, "location", None)
    there = folder and next((path for path in (Path(folder), *Path(folder).parents) if path.exists()), None)
    return {"models_bytes": models, "disk_free": shutil.disk_usage(there).free if there else None}


def queue_by_lane(team_ids: Collection[int] | None) -> list[dict[str, Any]]:
    """Images that are not finished, one row per lane."""
    images = RenderImage.objects.filter(state__in=[ImageState.WAITING, *IMAGE_HELD])
    if team_ids is not None:
        images = images.filter(job__team__in=team_ids)
    counts = {(row["lane"], row["state"]): row["n"] for row in _counted(images, "lane", "state")}
    return [
        {
            "lane": lane.label,
            "waiting": counts.get((lane.value, ImageState.WAITING.value), 0),
            "running": sum(counts.get((lane.value, str(state)), 0) for state in IMAGE_HELD),
        }
        for lane in Lane
    ]


def workers() -> list[dict[str, Any]]:
    """Living workers, and those in quarantine whether they live or not, with what they have loaded and hold."""
    alive = set(workers_alive().values_list("pk", flat=True))
    shown = Worker.objects.filter(Q(pk__in=alive) | Q(quarantined_at__isnull=False)).select_related("pool")
    return [
        {
            "worker": worker,
            "alive": worker.pk in alive,
            "images": worker.images or 0,
            "checkpoint": worker.checkpoint_name or worker.loaded_checkpoint_sha256[:10],
            "memory": of_total(worker.report.get("vram_used"), worker.report.get("vram_total")),
        }
        for worker in with_work(shown)
    ]


def failures(team_ids: Collection[int] | None) -> list[RenderJob]:
    jobs = RenderJob.objects.filter(state__in=[JobState.FAILED, JobState.PARTLY_SUCCEEDED])
    return list(_own(jobs, team_ids).select_related("team").order_by("-pk")[:FAILURES_SHOWN])


def today(now: datetime, team_ids: Collection[int] | None) -> dict[str, Any]:
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    jobs = _own(RenderJob.objects.filter(created_at__gte=midnight), team_ids)
    return jobs.order_by().aggregate(jobs=Count("pk"), images=Sum("images_delivered", default=0))


def _own(jobs: QuerySet[RenderJob], team_ids: Collection[int] | None) -> QuerySet[RenderJob]:
    return jobs if team_ids is None else jobs.filter(team__in=team_ids)


def _counted(images: QuerySet[RenderImage], *columns: str) -> QuerySet[Any, dict[str, Any]]:
    return images.order_by().values(*columns).annotate(n=Count("pk"))
