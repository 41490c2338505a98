"""Wildcards: files of lines, of which a prompt takes one (``__name__``)."""

from __future__ import annotations

import re
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import IO

from django.db.models import Q, QuerySet

from accounts.authentication import Caller
from accounts.models import Team
from assets.models import Wildcard
from common.errors import FieldError, InvalidRequestError

MAX_BYTES = 1024 * 1024
NAME = re.compile(r"[\w\-./ ]{1,200}")
COMMENT = "#"


def wildcards_of(caller: Caller) -> QuerySet[Wildcard]:
    """The public ones and the team's own."""
    return Wildcard.objects.filter(Q(team=None) | Q(team=caller.team))


def lines_for(caller: Caller) -> Callable[[str], list[str]]:
    """The lines behind a name, none where nothing is known by it; a ``*`` in it stands for any text.

    A team's own file wins over a public one of its name.
    """

    def lines(name: str) -> list[str]:
        files = wildcards_of(caller)
        if "*" not in name:
            chosen = files.filter(name=name)
        else:
            matching = [pk for pk, known in files.values_list("pk", "name") if fnmatchcase(known, name)]
            chosen = files.filter(pk__in=matching)
        by_name: dict[str, Wildcard] = {}
        for file in chosen.order_by("name", "pk"):
            if file.team_id is not None or file.name not in by_name:
                by_name[file.name] = file
        return [line for file in by_name.values() for line in file.text.splitlines()]

    return lines


def wildcards_import(*, file: IO[str], name: str, team: Team | None) -> int:
    """Take over a text file; a known one of its name is replaced. Returns how many lines there are.

    Raises:
        InvalidRequestError: The name cannot be called from a prompt, or there are no lines or too many; nothing is stored.
    """
    if not NAME.fullmatch(name) or "__" in name or name != name.strip(" _"):
        message = "A wildcard's name has up to 200 letters, digits, blanks and - . / _, and no two _ in a row."
        raise InvalidRequestError([FieldError("name", message, name)])
    text = file.read(MAX_BYTES + 1)
    lines = [line.strip() for line in text.replace("\0", "").splitlines()]
    lines = [line for line in lines if line and not line.startswith(COMMENT)]
    if not lines or len(text.encode()) > MAX_BYTES:
        message = f"A wildcard file has at least one line and at most {MAX_BYTES} bytes."
        raise InvalidRequestError([FieldError("file", message)])
    Wildcard.objects.update_or_create(team=team, name=name, defaults={"text": "\n".join(lines)})
    return len(lines)
