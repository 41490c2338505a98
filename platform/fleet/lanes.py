"""The lanes of a pool's queue. Here, because prices differ by lane and ``billing`` must not know of jobs."""

from __future__ import annotations

from django.db import models


class Lane(models.IntegerChoices):
    """Smaller goes first."""

    INTERACTIVE = 0
    STANDARD = 1
    BACKGROUND = 2
