"""Celery tasks of the CPU workers. Each may run twice, late or never: the rows decide, and the next tick comes in seconds."""

from __future__ import annotations

from celery import shared_task
from django.db.models import Q

from fleet.models import Pool
from renderjobs.choices import ExpansionState, ImageState
from renderjobs.claims import leases_expire
from renderjobs.compat.sdapi.script_calls import script_advance, scripts_to_advance
from renderjobs.directory_imports import import_run, imports_waiting
from renderjobs.dispatch import wake
from renderjobs.models import PromptExpansion, RenderImage
from renderjobs.schedules import database_now, schedule_run, schedules_behind
from renderjobs.team_files import files_tidy


@shared_task(name="renderjobs.expire_leases")
def expire_leases() -> None:
    leases_expire()


@shared_task(name="renderjobs.wake_pools")
def wake_pools() -> None:
    """Repeat the wake-ups that a lost broker swallowed."""
    images = RenderImage.objects.filter(state=ImageState.WAITING, held=False).values("pool_id")
    prompts = PromptExpansion.objects.filter(state=ExpansionState.WAITING).values("pool_id")
    for name in Pool.objects.filter(Q(pk__in=images) | Q(pk__in=prompts)).values_list("name", flat=True):
        wake(name)


@shared_task(name="renderjobs.submit_schedule", acks_late=True)
def submit_schedule(schedule_id: int) -> None:
    """Sent by beat. A message that comes late or twice makes one job per planned minute."""
    schedule_run(schedule_id=schedule_id, due=database_now())


@shared_task(name="renderjobs.settle_schedules")
def settle_schedules() -> None:
    """For messages of beat that a lost broker swallowed, and for times that beat itself has passed over."""
    for schedule_id in schedules_behind(database_now()):
        submit_schedule.delay(schedule_id)


@shared_task(name="renderjobs.advance_scripts")
def advance_scripts() -> None:
    """Go on with scripts whose client has left."""
    for call_id in scripts_to_advance():
        script_advance(call_id)


@shared_task(name="renderjobs.import_directory")
def import_directory(run_id: int) -> None:
    """Long, and harmless to send twice: one worker has the run, and what it was killed in is looked for."""
    import_run(run_id)


@shared_task(name="renderjobs.tidy")
def tidy() -> None:
    """Go on with imports whose worker is gone, and finish files that a killed process left half kept or half removed."""
    files_tidy()
    for run_id in imports_waiting()[:1]:
        import_directory.delay(run_id)
