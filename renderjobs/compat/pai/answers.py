"""The answer to a call with ``save_dir``: paths in comma-joined texts, made from the job's rows alone."""

from __future__ import annotations

import json
from typing import Any

from gpuworker.contract.outcome import CONTROL_MAP
from renderjobs.choices import AttemptOutcome, ImageState, JobState
from renderjobs.grids import grid_ensure
from renderjobs.models import Attempt, RenderImage, RenderJob
from renderjobs.outputs import path_of

OK, FAILED = 0, 500


def saved_answer(job: RenderJob) -> dict[str, Any]:
    """The body for an ended job: the grid first when there are several pictures, then the pictures in the order of their seeds.

    A job that was cut short answers with what there is; ``status`` tells whether pictures failed.
    """
    images = list(job.images.filter(state=ImageState.DELIVERED).order_by("index").prefetch_related("attachments"))
    files = [image.file_key for image in images]
    if len(images) > 1:
        files.insert(0, grid_ensure(job))
    error = _error(job, images)
    return {
        "images": [],
        "parameters": {
            "id_task": job.tags.get("id_task"),
            "status": FAILED if error else OK,
            "image_url": _paths(job, files),
            "seed": ",".join(str(image.seed) for image in images),
            "error_msg": error,
            "image_mask_url": _paths(job, _maps(images)),
            "total_time": (job.finished_at - job.created_at).total_seconds() if job.finished_at else 0.0,
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
