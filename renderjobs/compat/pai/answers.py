"""The answer to a call with ``save_dir``: paths in comma-joined texts, made from the job's rows alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.db import transaction

from gpuworker.contract.outcome import CONTROL_MAP
from renderjobs.choices import AttemptOutcome, ImageState, JobState
from renderjobs.grids import grid_ensure
from renderjobs.models import Attempt, RenderImage, RenderJob, ScriptCall
from renderjobs.outputs import path_of, script_key

OK, FAILED = 0, 500


def saved_answer(job: RenderJob) -> dict[str, Any]:
    """The body for an ended job: the grid first when there are several pictures, then the pictures in the order of their seeds.

    A job that was cut short answers with what there is; ``status`` tells whether pictures failed.
    """
    images = list(job.images.filter(state=ImageState.DELIVERED).order_by("index").prefetch_related("attachments"))
    files = [image.file_key for image in images]
    if len(images) > 1:
        files.insert(0, grid_ensure(job))
    seconds = (job.finished_at - job.created_at).total_seconds() if job.finished_at else 0.0
    return _body(job, files, [image.seed for image in images], _maps(images), seconds, error=_error(job, images))


def script_saved_answer(
    call: ScriptCall, jobs: Sequence[RenderJob], shown: Sequence[RenderImage | bytes], described: int
) -> dict[str, Any]:
    """The body for a script that has ended: its pictures in its own order, those it made of others stored beside them.

    Args:
        shown: Delivered images, and PNG files that are stored nowhere yet.
        described: Which of the jobs the script's answer tells about.
    """
    images = [one for one in shown if isinstance(one, RenderImage)]
    job = jobs[described]
    first_seed = job.images.order_by("index").values_list("seed", flat=True)[0]
    files = []
    for number, one in enumerate(shown):
        if isinstance(one, RenderImage):
            files.append(one.file_key)
        else:
            key = script_key(job, call_id=call.pk, number=number, sheet=bool(images), seed=first_seed)
            files.append(_kept(call, key, one))
    began = min(one.created_at for one in jobs)
    seconds = max((one.finished_at - began).total_seconds() for one in jobs if one.finished_at)
    return _body(job, files, [image.seed for image in images] or [first_seed], _maps(images), seconds)


def _kept(call: ScriptCall, key: str, data: bytes) -> str:
    """Store a file of a script once: its row names the key first, so that no object is ever without a row.

    Two answers to one call at the same time write the same picture; the second one's copy goes.
    """
    with transaction.atomic():
        row = ScriptCall.objects.select_for_update().get(pk=call.pk)
        if key not in row.saved_keys:
            row.saved_keys = [*row.saved_keys, key]
            row.save(update_fields=["saved_keys"])
    if not default_storage.exists(key):
        stored = default_storage.save(key, ContentFile(data))
        if stored != key:
            default_storage.delete(stored)
    return key


def _body(
    job: RenderJob, files: list[str], seeds: list[int], maps: list[str], seconds: float, *, error: str = ""
) -> dict[str, Any]:
    return {
        "images": [],
        "parameters": {
            "id_task": job.tags.get("id_task"),
            "status": FAILED if error else OK,
            "image_url": _paths(job, files),
            "seed": ",".join(map(str, seeds)),
            "error_msg": error,
            "image_mask_url": _paths(job, maps),
            "total_time": seconds,
        },
        "info": json.dumps({"hostname": _instance(job)}),
    }


def status_of(job: RenderJob) -> int:
    """Of the HTTP answer: a call that made nothing is an error to clients that look no further."""
    return FAILED if job.state == JobState.FAILED and not job.images_delivered else 200


def _error(job: RenderJob, images: list[RenderImage]) -> str:
    if job.images_failed:
        return job.error_message or "The job failed."
    return "" if images else "The job was interrupted."


def _maps(images: list[RenderImage]) -> list[str]:
    return [one.file_key for image in images for one in image.attachments.all() if one.role == CONTROL_MAP]


def _paths(job: RenderJob, keys: list[str]) -> str:
    return ",".join(path_of(job, key) for key in keys)


def _instance(job: RenderJob) -> str:
    """The worker that made the last of the pictures."""
    made = Attempt.objects.filter(image__job=job, outcome=AttemptOutcome.DELIVERED).order_by("-pk")
    return made.values_list("claim__worker__name", flat=True).first() or ""
