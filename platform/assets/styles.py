"""Styles: texts that are put around or behind a prompt.

Source: ``modules/styles.py``, A1111 1.10.1.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from typing import IO, Any

from django.db.models import Q, QuerySet

from accounts.authentication import Caller
from accounts.models import Team
from assets.models import PromptStyle
from common.errors import FieldError, InvalidRequestError

PLACE = "{prompt}"
MAX_STYLES = 10_000


def styles_of(caller: Caller) -> QuerySet[PromptStyle]:
    """The public ones and the team's own."""
    return PromptStyle.objects.filter(Q(team=None) | Q(team=caller.team))


def styled(caller: Caller, names: Iterable[str], prompts: Mapping[str, Any]) -> tuple[str, str]:
    """Prompt and negative prompt with the named styles applied in their order; unknown names are passed over."""
    prompt, negative_prompt = prompts["prompt"], prompts["negative_prompt"]
    names = list(names)
    # A team's own style wins over a public one of its name.
    known = (
        {style.name: style for style in styles_of(caller).filter(name__in=names).order_by("team_id")} if names else {}
    )
    public_last = sorted(known.values(), key=lambda style: style.team_id is not None)
    by_name = {style.name: style for style in public_last}
    for style in (by_name[name] for name in names if name in by_name):
        prompt = merged(style.prompt, prompt)
        negative_prompt = merged(style.negative_prompt, negative_prompt)
    return prompt, negative_prompt


def merged(style: str, prompt: str) -> str:
    if PLACE in style:
        return style.replace(PLACE, prompt)
    return ", ".join(part for part in (prompt.strip(), style.strip()) if part)


def styles_import(*, file: IO[str], team: Team | None) -> int:
    """Take over A1111's ``styles.csv``: a style of a known name is replaced. Returns how many there were.

    Raises:
        InvalidRequestError: It has no column of names, or too many rows; nothing is stored.
    """
    rows = list(csv.DictReader(file))
    if len(rows) > MAX_STYLES or (rows and "name" not in rows[0]):
        message = f"A styles file has the columns name, prompt and negative_prompt and at most {MAX_STYLES} rows."
        raise InvalidRequestError([FieldError("file", message)])
    usable = [row for row in rows if row["name"] and not row["name"].startswith("#")]
    for row in usable:
        texts = {
            "prompt": row.get("prompt") or row.get("text") or "",
            "negative_prompt": row.get("negative_prompt") or "",
        }
        PromptStyle.objects.update_or_create(team=team, name=row["name"][:200], defaults=texts)
    return len(usable)
