"""Where the files of a job lie: the storage keys of its pictures, maps and contact sheet. Pure; nothing is read or written.

Keys are made from ids and times. The one thing of a caller's in them is the folder of ``save_dir``, which was checked where the job
was accepted and always lies within ``<team>/files``. Such a key ends as PAI-EAS names its files, so that the path a caller is
told and the object in the bucket differ by their beginning only.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from accounts.models import Team
from renderjobs.models import RenderJob

MAX_FOLDER = 150
"""Characters; with everything behind it a key stays below the 300 of its column."""
PUBLIC_FILES = "public/files"
"""Where the public area lies. No team's files do: theirs begin with a number."""


@dataclass(frozen=True, slots=True)
class SavedUnder:
    """``path`` as the caller wrote it and is answered; ``folder`` behind it, relative to the team's files."""

    path: str
    folder: str


def image_stem(job: RenderJob, *, index: int, attempt_id: int, seed: int) -> str:
    """Key of a picture without its ending, of this very attempt."""
    if job.save_folder:
        name = f"{job.created_at:%H%M%S}-{_name(job, f'{index}-{attempt_id}')}-{seed}"
        return f"{_folder(job)}/{job.kind}-images/{job.created_at:%Y-%m-%d}/{name}"
    return f"{_own_folder(job)}/{index:05d}-{attempt_id}"


def map_stem(job: RenderJob, *, number: int, attempt_id: int) -> str:
    """Key of a control map; attempts count up over all jobs, so no two maps of a folder share a number."""
    second = f"-{number}" if number else ""
    return f"{_folder(job)}/controlnet_mask/{job.created_at:%Y-%m-%d}/{attempt_id:05d}{second}"


def grid_key(job: RenderJob) -> str:
    if job.save_folder:
        name = f"grid-{job.created_at:%H%M%S}-{_name(job, 'grid')}.png"
        return f"{_folder(job)}/{job.kind}-grids/{job.created_at:%Y-%m-%d}/{name}"
    return f"{_own_folder(job)}/grid.png"


def script_key(job: RenderJob, *, call_id: uuid.UUID, number: int, sheet: bool, seed: int) -> str:
    """Key of a picture that a script made of others: a sheet beside them, or the one that stands for them all."""
    name = f"{job.created_at:%H%M%S}-{uuid.uuid5(call_id, str(number))}"
    where = f"{_folder(job)}/{job.kind}-{'grids' if sheet else 'images'}/{job.created_at:%Y-%m-%d}"
    return f"{where}/grid-{name}.png" if sheet else f"{where}/{name}-{seed}.png"


def path_of(job: RenderJob, key: str) -> str:
    """The path a caller is told for a file of a job with a ``save_dir``."""
    return job.save_dir + key.removeprefix(_folder(job))


def imported_key(team: Team, folder: str, path: str) -> str:
    """Key of a picture brought along from elsewhere; folder and path were checked."""
    return f"{files_folder(team)}/{folder}/{path}"


def files_folder(team: Team | None) -> str:
    """Where a team's files lie; None is the public area."""
    return f"{team.pk}/files" if team else PUBLIC_FILES


def _folder(job: RenderJob) -> str:
    return f"{job.team_id}/files/{job.save_folder}"


def _own_folder(job: RenderJob) -> str:
    return f"{job.team_id}/{job.created_at:%Y/%m/%d}/{job.pk}"


def _name(job: RenderJob, part: str) -> uuid.UUID:
    return uuid.uuid5(job.pk, part)
