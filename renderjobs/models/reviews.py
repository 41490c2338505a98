"""What people think of pictures."""

from __future__ import annotations

from django.core.validators import MaxValueValidator
from django.db import models
from django.db.models import Q
from django.db.models.functions import Now

from accounts.models import User
from renderjobs.models.images import RenderImage

MOST_STARS = 5


class Verdict(models.TextChoices):
    NONE = "", "undecided"
    APPROVED = "approved", "approved"
    REJECTED = "rejected", "rejected"


class ImageReview(models.Model):
    """The team's one opinion of a delivered image; the last who changed it is named. One that says nothing any more is removed."""

    image = models.OneToOneField(RenderImage, on_delete=models.CASCADE, primary_key=True, related_name="review")
    rating = models.PositiveSmallIntegerField(
        default=0, validators=[MaxValueValidator(MOST_STARS)], help_text="Stars; 0 is none yet."
    )
    verdict = models.CharField(max_length=8, choices=Verdict, default=Verdict.NONE, blank=True)
    user = models.ForeignKey(User, on_delete=models.PROTECT, related_name="+")
    changed_at = models.DateTimeField(db_default=Now())

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=Q(rating__lte=MOST_STARS, verdict__in=Verdict.values) & (Q(rating__gt=0) | ~Q(verdict="")),
                name="a_review_says_something",
            )
        ]

    def __str__(self) -> str:
        return " ".join(filter(None, [f"{self.rating} of {MOST_STARS} stars" if self.rating else "", self.verdict]))
