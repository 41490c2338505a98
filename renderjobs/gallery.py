"""The gallery's reads and its one write: delivered pictures of some teams, newest first, and what people think of them.

No HTTP here; pages are in ``gallery_pages.py``, small pictures in ``thumbnails.py``.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from django.db import transaction
from django.db.models import F, QuerySet
from django.db.models.functions import Now

from accounts.models import User
from common.database import ValueOfKey
from common.errors import FieldError, InvalidRequestError
from renderjobs.choices import ImageState
from renderjobs.models import ImageReview, RenderImage
from renderjobs.models.reviews import MOST_STARS, Verdict

PICTURES_PER_PAGE = 60
LONGEST_CHOICE = 200
LARGEST_ID = 2**63 - 1
UNDECIDED = "undecided"


@dataclass(frozen=True, slots=True)
class Choice:
    """What of the pictures is asked for; empty is everything."""

    team: str = ""
    """Names, as in addresses."""
    project: str = ""
    job: str = ""
    model: str = ""
    """The checkpoint's name."""
    tag: str = ""
    """``key=value`` of the job."""
    seed: str = ""
    text: str = ""
    """Somewhere in the infotext, which begins with the prompt."""
    verdict: str = ""
    stars: str = ""
    """At least so many."""

    @classmethod
    def from_query(cls, values: Mapping[str, str]) -> Choice:
        """Raises: InvalidRequestError: One of them means nothing, with its name."""
        given = {field.name: values.get(field.name, "").strip() for field in fields(cls)}
        errors = [FieldError(name, message, given[name]) for name, message in _wrong(given)]
        if errors:
            raise InvalidRequestError(errors)
        return cls(**given)

    def given(self) -> dict[str, str]:
        return {name: value for name, value in asdict(self).items() if value}


def _wrong(given: Mapping[str, str]) -> list[tuple[str, str]]:
    found = [
        (name, f"{name} has characters that no text has, or is longer than {LONGEST_CHOICE} of them.")
        for name, value in given.items()
        if len(value) > LONGEST_CHOICE or "\x00" in value
    ]
    verdicts = (UNDECIDED, *filter(None, Verdict.values))
    stars = [str(number) for number in range(1, MOST_STARS + 1)]
    if given["job"] and not _is_uuid(given["job"]):
        found.append(("job", f"job is {given['job']!r}; a job's id is accepted."))
    if given["seed"] and not (
        given["seed"].isascii() and given["seed"].isdecimal() and int(given["seed"]) <= LARGEST_ID
    ):
        found.append(("seed", f"seed is {given['seed']!r}; a whole number is accepted."))
    if given["tag"] and not all(given["tag"].partition("=")):
        found.append(("tag", f"tag is {given['tag']!r}; key=value is accepted."))
    if given["verdict"] and given["verdict"] not in verdicts:
        found.append(("verdict", f"verdict is {given['verdict']!r}; accepted are {', '.join(verdicts)}."))
    if given["stars"] and given["stars"] not in stars:
        found.append(("stars", f"stars is {given['stars']!r}; accepted are {', '.join(stars)}."))
    return found


def _is_uuid(text: str) -> bool:
    try:
        uuid.UUID(text)
    except ValueError:
        return False
    return True


def pictures_of(team_ids: Collection[int] | None) -> QuerySet[RenderImage]:
    """Delivered images of the teams, of all for None, with what a tile shows."""
    images = RenderImage.objects.filter(state=ImageState.DELIVERED)
    if team_ids is not None:
        images = images.filter(job__team__in=sorted(team_ids))
    return images.select_related("job__team", "job__checkpoint", "review")


def pictures_page(
    team_ids: Collection[int] | None, choice: Choice, *, before: int = 0
) -> tuple[list[RenderImage], int]:
    """One page, newest first, and the id that the next one begins before; 0 when there is none."""
    images = chosen(pictures_of(team_ids), choice).order_by("-pk")
    if before:
        images = images.filter(pk__lt=before)
    page = list(images.defer("job__request", "job__lock", "warnings")[: PICTURES_PER_PAGE + 1])
    more = len(page) > PICTURES_PER_PAGE
    return page[:PICTURES_PER_PAGE], page[PICTURES_PER_PAGE - 1].pk if more else 0


def chosen(images: QuerySet[RenderImage], choice: Choice) -> QuerySet[RenderImage]:
    lookups: dict[str, Any] = {
        "job__team__name": choice.team,
        "job__project__name": choice.project,
        "job": choice.job,
        "job__checkpoint__name__iexact": choice.model,
        "seed": choice.seed,
        "infotext__icontains": choice.text,
        "review__rating__gte": choice.stars,
        "review__verdict": choice.verdict if choice.verdict != UNDECIDED else "",
    }
    images = images.filter(**{lookup: value for lookup, value in lookups.items() if value})
    if choice.verdict == UNDECIDED:
        images = images.exclude(review__verdict__in=[Verdict.APPROVED, Verdict.REJECTED])
    if choice.tag:
        key, _, value = choice.tag.partition("=")
        images = images.alias(tag_value=ValueOfKey(F("job__tags"), key)).filter(tag_value=value)
    return images


@transaction.atomic
def review_set(
    *, image: RenderImage, user: User, rating: int | None = None, verdict: str | None = None
) -> ImageReview | None:
    """Change stars, verdict or both; None leaves one as it is. Returns the review, None when it says nothing any more.

    Raises: InvalidRequestError: No such number of stars or verdict, or the image has no picture.
    """
    errors = []
    if rating is not None and not 0 <= rating <= MOST_STARS:
        errors.append(FieldError("rating", f"rating is {rating}; accepted are 0 to {MOST_STARS}.", rating))
    if verdict is not None and verdict not in Verdict.values:
        errors.append(
            FieldError("verdict", f"verdict is {verdict!r}; accepted are approved, rejected or nothing.", verdict)
        )
    # Its row is the lock: of two at once the second sees what the first wrote.
    held = RenderImage.objects.select_for_update().only("state").get(pk=image.pk)
    if held.state != ImageState.DELIVERED:
        errors.append(FieldError("image", "This image has no picture to review."))
    if errors:
        raise InvalidRequestError(errors)
    review = ImageReview.objects.filter(pk=image.pk).first() or ImageReview(image=image)
    review.rating = review.rating if rating is None else rating
    review.verdict = review.verdict if verdict is None else verdict
    if not review.rating and not review.verdict:
        if not review._state.adding:
            review.delete()
        return None
    review.user, review.changed_at = user, Now()
    review.save()
    return review
