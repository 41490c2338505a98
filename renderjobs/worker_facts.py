"""What a worker renders, what failed on it of late, which weights it keeps; registered with ``fleet``, which must not know it."""

from __future__ import annotations

from typing import Any

from django.db.models import Count, F, OuterRef, Q, QuerySet, Subquery

from assets.models import Asset, AssetState
from fleet.models import Worker
from fleet.work import work_register
from renderjobs.choices import IMAGE_HELD, AttemptOutcome
from renderjobs.models import Attempt, Claim, RenderImage

ERRORS_SHOWN = 10
IMAGES_SHOWN = 50
BAD_ENDS = (AttemptOutcome.FAILED, AttemptOutcome.LOST)
KEPT = (AssetState.APPROVED, AssetState.RETIRED)


def register() -> None:
    work_register(annotated, details)


def annotated(workers: QuerySet[Worker]) -> QuerySet[Any]:
    named = Asset.objects.filter(sha256=OuterRef("loaded_checkpoint_sha256"), state__in=KEPT).order_by("-approved_at")
    held = RenderImage.objects.filter(claim__worker=OuterRef("pk"), claim__ended_at=None, state__in=IMAGE_HELD)
    counted = held.order_by().values("claim__worker").annotate(n=Count("pk")).values("n")
    return workers.annotate(checkpoint_name=Subquery(named.values("name")[:1]), images=Subquery(counted))


def details(worker: Worker) -> dict[str, Any]:
    return {"current": _current(worker), "errors": _errors(worker), "weights": _weights(worker)}


def _current(worker: Worker) -> list[dict[str, Any]]:
    """Its open claims, each a micro-batch, with the images that it still holds."""
    claims = list(Claim.objects.filter(worker=worker, ended_at=None).order_by("pk"))
    held = RenderImage.objects.filter(claim__in=claims, state__in=IMAGE_HELD).order_by("pk")
    rows = list(held.values("claim_id", "job_id", "index", team=F("job__team__name"))[:IMAGES_SHOWN])
    return [{"claim": claim, "images": [row for row in rows if row["claim_id"] == claim.pk]} for claim in claims]


def _errors(worker: Worker) -> list[dict[str, Any]]:
    """The newest first. Of its newest claims only, so that a worker's whole past is never sorted."""
    recent = Claim.objects.filter(worker=worker).order_by("-pk").values("pk")[:500]
    bad = Attempt.objects.filter(claim__in=list(recent.values_list("pk", flat=True)), outcome__in=BAD_ENDS)
    facts = ("ended_at", "outcome", "error_code", "error_message")
    return list(bad.order_by("-pk").values(*facts, job_id=F("image__job_id"), index=F("image__index"))[:ERRORS_SHOWN])


def _weights(worker: Worker) -> list[dict[str, Any]]:
    """As the worker's last report says, with the names that we know the files by."""
    kept = [row for row in worker.report.get("weights", ()) if isinstance(row, dict)]
    wanted = {row.get("sha256") for row in kept} - {None}
    known = Asset.objects.filter(Q(sha256__in=wanted), state__in=KEPT).order_by("approved_at")
    names = dict(known.values_list("sha256", "name")) if wanted else {}
    return [{**row, "name": names.get(row.get("sha256", ""), str(row.get("sha256", ""))[:10])} for row in kept]
