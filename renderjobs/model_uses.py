"""Where kept requests name models: templates, their schedules, options of the A1111 door; and open jobs, which keep what they have.

Registered with ``assets``, which must not know of jobs. Prompts that only come about later (wildcards, variants) and requests in
EAS queues are not read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from django.db.models import Count, OuterRef, Q, QuerySet, Subquery, TextField
from django.db.models.functions import Cast

from accounts.models import Team
from assets.models import Asset, AssetKind
from assets.uses import Rivals, Use, finder_register, names_in_prompt, outcome
from common.errors import InvalidRequestError
from renderjobs.choices import JOB_OPEN
from renderjobs.models import BatchSchedule, OptionProfile, RenderJob, TemplateVersion
from renderjobs.schedules import next_runs

MOST_READ = 500
"""Requests that might name the asset are opened up to this many."""
FIELDS: dict[str, tuple[str, bool]] = {
    "sd_model_checkpoint": (AssetKind.CHECKPOINT, False),
    "refiner_checkpoint": (AssetKind.CHECKPOINT, True),
    "hr_checkpoint_name": (AssetKind.CHECKPOINT, True),
    "sd_vae": (AssetKind.VAE, False),
    "hr_upscaler": (AssetKind.UPSCALER, False),
    "upscaler_1": (AssetKind.UPSCALER, False),
    "upscaler_2": (AssetKind.UPSCALER, False),
    "upscaler_for_img2img": (AssetKind.UPSCALER, False),
    "model": (AssetKind.CONTROLNET, True),
}
"""Field of a request, at any depth → what it names, and whether a part of the name is enough."""
PROMPTS = ("prompt", "negative_prompt", "hr_prompt", "hr_negative_prompt")
LOOSELY_NAMED = {
    AssetKind.CHECKPOINT: ("refiner_checkpoint", "hr_checkpoint_name"),
    AssetKind.CONTROLNET: ('"model"',),
}
"""Where a request may name an asset without spelling out its name: what it has to hold then."""


def register() -> None:
    finder_register(find)


def find(asset: Asset, rivals: Rivals, team: Team | None) -> tuple[Iterator[Use], dict[str, int]]:
    return _kept(asset, rivals, team), _open_jobs(asset, team)


def _kept(asset: Asset, rivals: Rivals, team: Team | None) -> Iterator[Use]:
    templates = dict(_templates(asset, rivals, team))
    yield from templates.values()
    schedules = BatchSchedule.objects.filter(template__in=templates, enabled=True).select_related("template__team")
    for schedule in schedules.order_by("pk"):
        use = templates[schedule.template_id]
        yield Use(
            what="schedule",
            name=str(schedule),
            team=use.team,
            page=("renderjobs_batchschedule", schedule.pk),
            when=_next_run(schedule),
            then=use.then,
            breaks=use.breaks,
        )
    yield from _options(asset, rivals, team)


def _templates(asset: Asset, rivals: Rivals, team: Team | None) -> Iterator[tuple[int, Use]]:
    newest = TemplateVersion.objects.filter(template=OuterRef("template")).order_by("-number")
    rows = TemplateVersion.objects.filter(pk=Subquery(newest.values("pk")[:1])).select_related("template__team")
    rows = rows.filter(template__team=team) if team else rows
    for version in _naming(rows, "request", asset)[:MOST_READ]:
        template = version.template
        then = _then(asset, rivals, version.request, team_id=template.team_id, user_id=version.created_by_id)
        if then is not False:
            words, breaks = outcome(asset, then)  # type: ignore[arg-type]
            yield (
                template.pk,
                Use(
                    what="template",
                    name=template.name,
                    team=str(template.team),
                    page=("renderjobs_batchtemplate", template.pk),
                    then=words,
                    breaks=breaks,
                ),
            )


def _options(asset: Asset, rivals: Rivals, team: Team | None) -> Iterator[Use]:
    """QUIRK(A1111 1.10): a checkpoint that is gone is passed over, so an option never refuses a call."""
    rows = OptionProfile.objects.select_related("team", "user")
    rows = rows.filter(team=team) if team else rows
    for profile in _naming(rows, "values", asset)[:MOST_READ]:
        then = _then(asset, rivals, profile.values, team_id=profile.team_id, user_id=profile.user_id)
        if then is not False:
            words = outcome(asset, then)[0] if then else "would have no effect"  # type: ignore[arg-type]
            yield Use(what="options", name=str(profile.user), team=str(profile.team), then=words, breaks=False)


def _open_jobs(asset: Asset, team: Team | None) -> dict[str, int]:
    jobs = RenderJob.objects.filter(assets=asset, state__in=JOB_OPEN)
    jobs = jobs.filter(team=team) if team else jobs
    return dict(jobs.order_by().values_list("state").annotate(n=Count("pk")))


def _naming(rows: QuerySet[Any], column: str, asset: Asset) -> QuerySet[Any]:
    """Rows whose JSON might name the asset, told by its text; SQLite keeps what is no ASCII escaped."""
    names = {asset.name, asset.alias, asset.short_hash, asset.sha256, asset.original_sha256} - {""}
    texts = names | {json.dumps(name)[1:-1] for name in names} | set(LOOSELY_NAMED.get(AssetKind(asset.kind), ()))
    wanted = Q()
    for text in texts:
        wanted |= Q(as_text__icontains=text)
    return rows.annotate(as_text=Cast(column, TextField())).filter(wanted).order_by("pk")


def _then(asset: Asset, rivals: Rivals, request: Any, *, team_id: int, user_id: int) -> Asset | None | bool:
    """As ``Rivals.then``, of the first of the request's names that leads to the asset."""
    for name, loosely in _names(asset, request):
        then = rivals.then(name, team_id=team_id, user_id=user_id, loosely=loosely)
        if then is not False:
            return then
    return False


def _names(asset: Asset, value: Any, field: str = "") -> Iterator[tuple[str, bool]]:
    """Every name in a request that is of the asset's kind, and whether a part of a name is enough there."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _names(asset, inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from _names(asset, inner, field)
    elif isinstance(value, str) and field in PROMPTS:
        yield from ((name, False) for name in names_in_prompt(asset, value))
    elif isinstance(value, str) and field in FIELDS and FIELDS[field][0] == asset.kind:
        yield value, FIELDS[field][1]


def _next_run(schedule: BatchSchedule) -> Any:
    try:
        return next(iter(next_runs(schedule, 1)), None)
    except InvalidRequestError:
        return None  # of a schedule that never runs
