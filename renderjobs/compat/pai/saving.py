"""``save_dir`` → where a job's pictures go: the path callers know, and the folder of the team's files behind it."""

from __future__ import annotations

from django.conf import settings

from accounts.authentication import Caller
from common.errors import FieldError, InvalidRequestError
from renderjobs.compat.eas.paths import folder_of
from renderjobs.outputs import MAX_FOLDER, SavedUnder
from renderjobs.selectors import service_of


def saved_under(caller: Caller, save_dir: str) -> SavedUnder | None:
    """Raises: InvalidRequestError: It leads out of the mount paths, or holds what is no folder's name."""
    if not save_dir:
        return None
    try:
        path, folder = folder_of(save_dir, mounts_of(caller))
        if len(folder) > MAX_FOLDER:
            raise ValueError(
                f"save_dir leads to a folder of {len(folder)} characters; at most {MAX_FOLDER} are accepted."
            )
    except ValueError as error:
        raise InvalidRequestError([FieldError("alwayson_scripts.save_dir", str(error), save_dir[:80])]) from error
    return SavedUnder(path, folder)


def mounts_of(caller: Caller) -> dict[str, str]:
    """Mount path → folder: those of the service that the call comes through, else the installation's."""
    service = service_of(caller)
    return service.mounts if service else settings.EAS_MOUNTS
