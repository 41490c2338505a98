"""Deployed services for tests: a log of days long past, and pictures charged on those days."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from typing import Any
from unittest import mock

from accounts.authentication import Caller
from billing.models import DeploymentSpan, RateCard, RatePrice
from renderjobs.models import EasService, RenderJob
from renderjobs.models.jobs import Source
from renderjobs.submission import job_submit
from tests.factories import a_card_of, a_checkpoint, a_pool, a_request, an_eas_service
from tests.renderjobs.test_delivery import begun, deliver

HOURLY = Decimal("3.6")
"""Of an instance; a tenth of a cent per second, as the cards' time in these tests."""


def a_priced_platform(per_instance_hour: Decimal | None = HOURLY) -> RateCard:
    a_pool()
    a_checkpoint()
    return a_card_of(RatePrice(per_gpu_second=Decimal("0.001"), per_instance_hour=per_instance_hour))


def a_service(name: str = "sd", *, edition: str = "cluster", **fields: Any) -> EasService:
    return an_eas_service(name, edition=edition, **fields)


def logged(service: EasService, *spans: tuple[datetime, int], **fields: Any) -> None:
    """In place of what the log says: from each moment on so many instances, stopped since the last."""
    EasService.objects.filter(pk=service.pk).update(enabled=spans[-1][1] > 0)
    before = DeploymentSpan.objects.get(service_id=service.pk, ended_at=None)
    DeploymentSpan.objects.filter(pk=before.pk).delete()
    ends = [start for start, _ in spans[1:]]
    for (start, replicas), end in zip(spans, [*ends, None], strict=True):
        values = {"pool_id": before.pool_id, **fields}
        DeploymentSpan.objects.create(
            service_id=service.pk,
            service=service.name,
            team=service.team,
            edition=service.edition,
            by_time=before.by_time,
            replicas=replicas,
            started_at=start,
            ended_at=end,
            **values,
        )


@contextmanager
def charged_at(moment: datetime) -> Iterator[None]:
    """The ledger's clock; the others go on."""
    with mock.patch("billing.ledger.Now", lambda: moment):
        yield


def rendered(
    service: EasService | None, caller: Caller, at: datetime, *gpu_us: int, project: str = "", **tags: str
) -> RenderJob:
    """A job through the service with one picture for each time, charged at the moment."""
    job = job_submit(
        caller=replace(caller, through=service),
        request=a_request(n_iter=len(gpu_us)),
        source=Source.EAS,
        project=project,
        tags=tags,
    ).job
    with charged_at(at):
        batch = begun(f"worker of {job.pk}")
        for position, us in enumerate(gpu_us):
            deliver(batch, position, key=f"{job.pk}-{position}.png", gpu_us=us)
    job.refresh_from_db()
    return job
