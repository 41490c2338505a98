"""What the rows of a team's files add up to: what the counter of stored bytes has to say, and how it is put right.

The counter (``billing/stored.py``) moves in the transactions that write and remove those rows; here they are counted one by one.
"""

from __future__ import annotations

from collections import Counter

from django.db.models import QuerySet, Sum

from accounts.models import ApiToken, User
from billing.models import StoredBytes
from billing.stored import stored_change
from renderjobs.choices import ImageState
from renderjobs.models import ImageAttachment, InputFile, RenderImage, TeamFile

Origin = tuple[int, int, int]
"""Team, user and token; 0 where there is none (any more)."""


def bytes_of_rows() -> Counter[Origin]:
    of_job = ("job__team_id", "job__user_id", "job__token_id")
    found = _summed(RenderImage.objects.filter(state=ImageState.DELIVERED), *of_job)
    found += _summed(ImageAttachment.objects.all(), *(f"image__{column}" for column in of_job))
    found += _summed(InputFile.objects.all(), "team_id")
    return found + _summed(TeamFile.objects.filter(team__isnull=False), "team_id", "uploaded_by_id")


def bytes_counted() -> Counter[Origin]:
    """What was counted for users and tokens that are gone is nobody's now, as in the rows."""
    users, tokens = (set(model.objects.values_list("pk", flat=True)) for model in (User, ApiToken))
    found: Counter[Origin] = Counter()
    for team, user, token, size in StoredBytes.objects.values_list("team_id", "user_id", "token_id", "size_bytes"):
        found[team, user if user in users else 0, token if token in tokens else 0] += size
    return found


def bytes_astray() -> dict[Origin, int]:
    """How much more lies there than is counted; both as of one moment, which is the caller's business."""
    rows, counted = bytes_of_rows(), bytes_counted()
    return {origin: rows[origin] - counted[origin] for origin in {*rows, *counted} if rows[origin] != counted[origin]}


def bytes_recount(astray: dict[Origin, int]) -> None:
    """Put the counter right by what it is off, so that what comes and goes meanwhile is not lost."""
    for (team, user, token), size in sorted(astray.items()):
        stored_change(team_id=team, user_id=user, token_id=token, by=size)


def _summed(rows: QuerySet, *origin: str) -> Counter[Origin]:
    found: Counter[Origin] = Counter()
    for *whose, size in rows.order_by().values_list(*origin).annotate(size=Sum("size_bytes")):
        team, user, token = (*(one or 0 for one in whose), 0, 0)[:3]
        found[team, user, token] += size
    return found
