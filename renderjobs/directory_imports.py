"""A data directory taken in by the chores: what a superuser asks for in the admin, gone on with by whoever is alive.

The chore works until all is done. Each file ends with one write that moves the run's position; a worker that was killed is followed
by another after ``SILENT``, which goes on behind the last file. Where the position is gone, it begins anew: what is here already is
known by its hash. One run works at a time, so that the other chores keep their threads.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

from django.conf import settings
from django.db import transaction
from django.db.models import F, Q
from django.db.models.functions import Now
from kombu.exceptions import OperationalError

from accounts.models import Team, User
from common.database import now_plus
from common.errors import ConflictError, FieldError, ForbiddenError, InvalidRequestError
from renderjobs.data_directory import HERE_ALREADY, Sort, TakenIn, file_import, files_below, sort_of
from renderjobs.models import DirectoryImport, ImportedNot, ImportState
from renderjobs.team_files import folder_checked

logger = logging.getLogger(__name__)
SILENT = timedelta(seconds=60)
"""A worker that has not told its progress for so long is lost."""
TELL_SECONDS = 1.0
MOST_LEFT = 1000
"""Of the files that were left, so many are kept by name; all are counted."""
MAX_FOLDER = 40


class Overtaken(Exception):
    """The run was stopped, or another worker has it."""


def import_start(*, team: Team, directory: str, folder: str, public: bool, user: User | None) -> DirectoryImport:
    """Raises: InvalidRequestError, ForbiddenError: The path may not be read from here, or the folder is none."""
    root = directory_allowed(directory)
    folder_checked(folder)
    if not 0 < len(folder) <= MAX_FOLDER:
        message = f"The folder has {len(folder)} characters; accepted are 1 to {MAX_FOLDER}."
        raise InvalidRequestError([FieldError("folder", message, folder[:80])])
    run = DirectoryImport.objects.create(
        team=team, directory=str(root), folder=folder, public=public, started_by=user, created_at=Now()
    )
    transaction.on_commit(lambda: wake(run.pk))
    return run


def directory_allowed(directory: str) -> Path:
    """The real path, links followed, below one of the folders of the installation.

    Raises:
        ForbiddenError: Nothing is imported here.
        InvalidRequestError: It lies elsewhere, or there is no such folder.
    """
    if not settings.IMPORT_DIRS:
        raise ForbiddenError(
            "This installation imports no folders of the server; IMPORT_DIRS names those below which it may."
        )
    wrong = None
    if "\x00" in directory or not directory.startswith("/"):
        wrong = "The directory is no absolute path."
    else:
        root = Path(directory).resolve()
        allowed = [folder.resolve() for folder in settings.IMPORT_DIRS]
        if not any(root == folder or folder in root.parents for folder in allowed):
            wrong = f"The directory lies outside of {', '.join(map(str, settings.IMPORT_DIRS))}."
        elif not root.is_dir():
            wrong = "There is no such folder."
    if wrong:
        raise InvalidRequestError([FieldError("directory", wrong, directory[:80])])
    return root


def import_stop(*, run: DirectoryImport) -> None:
    """Raises: ConflictError: It has ended already."""
    open_ones = DirectoryImport.objects.filter(pk=run.pk, state__in=(ImportState.WAITING, ImportState.RUNNING))
    if not open_ones.update(state=ImportState.STOPPED, ended_at=Now()):
        raise ConflictError("The import is not under way.")


def import_resume(*, run: DirectoryImport) -> None:
    """Raises: ConflictError: It is under way."""
    resting = DirectoryImport.objects.filter(pk=run.pk).exclude(state__in=(ImportState.WAITING, ImportState.RUNNING))
    ended = Q(state=ImportState.ENDED)
    with transaction.atomic():
        resting.filter(ended).update(position="", files_done=0, files_known=0, files_left=0, bytes_done=0)
        ImportedNot.objects.filter(run__in=resting.filter(ended)).delete()
        if not resting.update(state=ImportState.WAITING, reason="", ended_at=None):
            raise ConflictError("The import is under way.")
    wake(run.pk)


def wake(run_id: int) -> None:
    from renderjobs.tasks import import_directory

    try:
        import_directory.delay(run_id)
    except OperationalError:
        logger.warning("The broker does not answer; import %s begins when it is looked for.", run_id)


def imports_waiting() -> list[int]:
    """Runs that nobody works at, oldest first; none while another is worked at."""
    if DirectoryImport.objects.filter(state=ImportState.RUNNING).exclude(_silent()).exists():
        return []
    rows = DirectoryImport.objects.filter(Q(state=ImportState.WAITING) | _silent())
    return list(rows.order_by("created_at", "pk").values_list("pk", flat=True))


def _silent() -> Q:
    return Q(state=ImportState.RUNNING, touched_at__lt=now_plus(-SILENT.total_seconds()))


def import_run(run_id: int) -> None:
    """Work at a run until it ends, is stopped or is taken over; called for one that is worked at, it does nothing."""
    run = _taken(run_id)
    if run is None:
        return
    try:
        _work(run, directory_allowed(run.directory))
    except Overtaken:
        return
    except (ForbiddenError, InvalidRequestError) as error:
        _end(run, ImportState.FAILED, error.message)
    except OSError as error:
        _end(run, ImportState.FAILED, f"Directory or storage cannot be used: {error.strerror or type(error).__name__}.")
    else:
        _end(run, ImportState.ENDED, "")


def _taken(run_id: int) -> DirectoryImport | None:
    if run_id not in imports_waiting()[:1]:
        return None
    free = DirectoryImport.objects.filter(Q(state=ImportState.WAITING) | _silent(), pk=run_id)
    if not free.update(
        state=ImportState.RUNNING, fence=F("fence") + 1, touched_at=Now(), began_at=Now(), bytes_before=F("bytes_done")
    ):
        return None
    return DirectoryImport.objects.select_related("team").get(pk=run_id)


def _work(run: DirectoryImport, root: Path) -> None:
    """Raises: Overtaken: The run is not this worker's any more."""
    _count(run, root)
    for path in _from_position(run, root):
        relative = path.relative_to(root).as_posix()
        before, meter = run.bytes_done, Meter(run)
        size = path.stat().st_size if path.exists() else 0
        became = file_import(path, root=root, team=run.team, folder=run.folder, public=run.public, progress=meter.add)
        run.bytes_done, run.position = before + size, storable(relative)
        _tell_file(run, became)


class Meter:
    """Tells how far a large file is, about once a second, so that the worker counts as alive."""

    def __init__(self, run: DirectoryImport) -> None:
        self._run, self._told_at = run, time.monotonic()

    def add(self, size: int) -> None:
        self._run.bytes_done += size
        if time.monotonic() - self._told_at >= TELL_SECONDS:
            self._told_at = time.monotonic()
            _tell(self._run, bytes_done=self._run.bytes_done)


def _count(run: DirectoryImport, root: Path) -> None:
    """What there is to do, for the page; a directory that grows meanwhile has a little more."""
    totals = {"files_total": 0, "files_passed_over": 0, "bytes_total": 0}
    told_at = time.monotonic()
    for path in files_below(root):
        if sort_of(path.relative_to(root).as_posix()) == Sort.OTHER:
            totals["files_passed_over"] += 1
            continue
        totals["files_total"] += 1
        totals["bytes_total"] += path.stat().st_size
        if time.monotonic() - told_at >= TELL_SECONDS:
            told_at = time.monotonic()
            _tell(run, **totals)
    _tell(run, **totals)


def _from_position(run: DirectoryImport, root: Path) -> Iterator[Path]:
    """The files behind the last one that was dealt with; all of them where that one is gone."""
    skipping = bool(run.position) and (root / run.position).is_file()
    if run.position and not skipping:
        _tell(run, files_done=0, files_known=0, files_left=0, bytes_done=0, bytes_before=0)
        run.files_done = run.files_known = run.files_left = run.bytes_done = 0
        ImportedNot.objects.filter(run=run).delete()
    for path in files_below(root):
        relative = path.relative_to(root).as_posix()
        if skipping:
            skipping = storable(relative) != run.position
        elif sort_of(relative) != Sort.OTHER:
            yield path


@transaction.atomic
def _tell_file(run: DirectoryImport, became: TakenIn) -> None:
    """Raises: Overtaken"""
    run.files_done += became.done
    run.files_known += became.done and became.note == HERE_ALREADY
    run.files_left += not became.done
    _tell(
        run,
        position=run.position,
        bytes_done=run.bytes_done,
        files_done=run.files_done,
        files_known=run.files_known,
        files_left=run.files_left,
    )
    if not became.done and run.files_left <= MOST_LEFT:
        ImportedNot.objects.create(run=run, path=storable(became.path)[:500], what=became.what, why=became.note[:500])


def storable(path: str) -> str:
    """A path whose name is no UTF-8 as text that databases take."""
    return path.encode("utf-8", "backslashreplace").decode()


def _tell(run: DirectoryImport, **values: object) -> None:
    """Raises: Overtaken: The run is not this worker's any more; nothing is written."""
    mine = DirectoryImport.objects.filter(pk=run.pk, fence=run.fence, state=ImportState.RUNNING)
    if not mine.update(touched_at=Now(), **values):
        raise Overtaken


def _end(run: DirectoryImport, state: str, reason: str) -> None:
    try:
        _tell(run, state=state, reason=reason, ended_at=Now())
    except Overtaken:
        return
    for waiting in imports_waiting()[:1]:
        wake(waiting)
