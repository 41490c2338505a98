"""What quotas count of jobs and of stored files. Registered with ``billing``, which must not know of either.

Each counter answers for all quotas of its measure in one or two statements. What grows with history is never counted anew: open
jobs have an index of their own, running images are found by the open claims, stored bytes are a counter that moves with the files.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from django.db.models import Exists, F, OuterRef, QuerySet, Sum, Value

from accounts.models import Team, User
from assets.intake import room_check_register
from assets.models import Access, Asset, AssetState
from billing.models import Measure, Quota, StoredBytes
from billing.quotas import counter_register, summed
from billing.stored import stored_check
from renderjobs.choices import IMAGE_HELD, JOB_OPEN, JobState
from renderjobs.models import RenderImage, RenderJob

Used = dict[int, int]
ONE = Value(1)
UNFINISHED = F("images_total") - F("images_delivered") - F("images_failed") - F("images_cancelled")


def images_accepted(quotas: Sequence[Quota], midnight: datetime) -> Used:
    """What was cancelled before it was rendered does not count."""
    jobs = RenderJob.objects.filter(created_at__gte=midnight)
    return summed(jobs, F("images_total") - F("images_cancelled"), quotas)


def jobs_waiting(quotas: Sequence[Quota], _: datetime) -> Used:
    return summed(open_jobs().filter(state=JobState.QUEUED).annotate(one=ONE), F("one"), quotas)


def jobs_open(quotas: Sequence[Quota], _: datetime) -> Used:
    return summed(open_jobs().annotate(one=ONE), F("one"), quotas)


def images_running(quotas: Sequence[Quota], _: datetime) -> Used:
    held = RenderImage.objects.filter(claim__ended_at=None, claim__isnull=False, state__in=IMAGE_HELD)
    return summed(held.annotate(one=ONE), F("one"), quotas, of="job__")


def images_queued(quotas: Sequence[Quota], at: datetime) -> Used:
    running = images_running(quotas, at)
    return {pk: unfinished - running[pk] for pk, unfinished in summed(open_jobs(), UNFINISHED, quotas).items()}


def bytes_stored(quotas: Sequence[Quota], _: datetime) -> Used:
    """Of files, of models that were given to teams, and what open jobs may still bring."""
    kept = summed(StoredBytes.objects.all(), F("size_bytes"), quotas)
    expected = summed(open_jobs(), UNFINISHED * F("image_bytes"), quotas)
    models = models_given(quotas)
    return {pk: kept[pk] + expected[pk] + models[pk] for pk in kept}


def open_jobs() -> QuerySet[RenderJob]:
    return RenderJob.objects.filter(state__in=JOB_OPEN)


def models_given(quotas: Sequence[Quota]) -> Used:
    """Of models that were given to teams, each as large as its file, or as was announced while it arrives. Given to several, it
    counts for each of them, and once for everybody. No token has any."""
    given = Asset.objects.filter(access=Access.TEAMS).exclude(state=AssetState.QUARANTINED).order_by()
    by_team = given.filter(teams__in={quota.team_id for quota in quotas if quota.team_id})
    once = given.filter(Exists(Asset.teams.through.objects.filter(asset=OuterRef("pk"))))
    sizes = {(team, user): size for team, user, size in by_team.values_list("teams", "uploaded_by").annotate(_size)}
    sizes |= {(None, user): size for user, size in once.values_list("uploaded_by").annotate(_size)}
    return {
        quota.pk: 0
        if quota.token_id
        else sum(
            size for (team, user), size in sizes.items() if team == quota.team_id and quota.user_id in (None, user)
        )
        for quota in quotas
    }


_size = Sum("size_bytes")


def room_check(teams: Sequence[Team], user: User | None, size_bytes: int) -> None:
    """Before a model is given to teams. Raises: QuotaExceededError."""
    for team in sorted(teams, key=lambda one: one.pk):
        stored_check(team_id=team.pk, user_id=user.pk if user else None, size_bytes=size_bytes)


def register() -> None:
    counter_register(Measure.IMAGES_PER_DAY, images_accepted)
    counter_register(Measure.WAITING_JOBS, jobs_waiting)
    counter_register(Measure.OPEN_JOBS, jobs_open)
    counter_register(Measure.QUEUED_IMAGES, images_queued)
    counter_register(Measure.RUNNING_IMAGES, images_running)
    counter_register(Measure.STORED_BYTES, bytes_stored)
    room_check_register(room_check)
