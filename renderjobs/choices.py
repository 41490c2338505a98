"""States and lanes, and the arrows along which states may move."""

from __future__ import annotations

from django.db import models

from fleet.lanes import Lane as Lane  # prices differ by lane, so it is at home further left


class JobKind(models.TextChoices):
    TXT2IMG = "txt2img"
    IMG2IMG = "img2img"
    EXTRAS = "extras"
    DETECT = "detect"


class JobState(models.TextChoices):
    """``held`` → ``queued`` → ``running`` → ``succeeded`` | ``partly_succeeded`` | ``failed`` | ``cancelled``."""

    HELD = "held"
    """Waits for somebody's approval; none of its images is claimed."""
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    PARTLY_SUCCEEDED = "partly_succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class ImageState(models.TextChoices):
    """``waiting`` → ``claimed`` → ``rendering`` → ``delivered`` | ``failed`` | ``cancelled``; a lost lease leads back."""

    WAITING = "waiting"
    CLAIMED = "claimed"
    RENDERING = "rendering"
    DELIVERED = "delivered"
    FAILED = "failed"
    CANCELLED = "cancelled"


class ExpansionState(models.TextChoices):
    """``waiting`` → ``writing`` → ``written`` | ``failed``; a lost lease leads back."""

    WAITING = "waiting"
    WRITING = "writing"
    WRITTEN = "written"
    FAILED = "failed"


EXPANSION_OPEN = (ExpansionState.WAITING, ExpansionState.WRITING)


class AttemptOutcome(models.TextChoices):
    RUNNING = "running"
    DELIVERED = "delivered"
    FAILED = "failed"
    LOST = "lost"
    RELEASED = "released"
    CANCELLED = "cancelled"


JOB_ARROWS: dict[str, frozenset[str]] = {
    JobState.HELD: frozenset({JobState.QUEUED, JobState.CANCELLED}),
    JobState.QUEUED: frozenset(
        {JobState.RUNNING, JobState.CANCELLED, JobState.FAILED, JobState.SUCCEEDED, JobState.PARTLY_SUCCEEDED}
    ),
    JobState.RUNNING: frozenset({JobState.SUCCEEDED, JobState.PARTLY_SUCCEEDED, JobState.FAILED, JobState.CANCELLED}),
}
IMAGE_ARROWS: dict[str, frozenset[str]] = {
    ImageState.WAITING: frozenset({ImageState.CLAIMED, ImageState.CANCELLED, ImageState.FAILED}),
    ImageState.CLAIMED: frozenset({ImageState.RENDERING, ImageState.WAITING, ImageState.FAILED, ImageState.CANCELLED}),
    ImageState.RENDERING: frozenset(
        {ImageState.DELIVERED, ImageState.WAITING, ImageState.FAILED, ImageState.CANCELLED}
    ),
}
JOB_OPEN = (JobState.HELD, JobState.QUEUED, JobState.RUNNING)
JOB_TERMINAL = (JobState.SUCCEEDED, JobState.PARTLY_SUCCEEDED, JobState.FAILED, JobState.CANCELLED)
IMAGE_HELD = (ImageState.CLAIMED, ImageState.RENDERING)
"""States in which a worker's lease holds the image."""
IMAGE_TERMINAL = (ImageState.DELIVERED, ImageState.FAILED, ImageState.CANCELLED)


class MissedPolicy(models.TextChoices):
    SKIP = "skip", "Skip them"
    LATEST = "latest", "Run the latest one"
    ALL = "all", "Run them all"


class OverlapPolicy(models.TextChoices):
    ALLOW = "allow", "Submit it beside the other"
    SKIP = "skip", "Skip it"
    CANCEL = "cancel", "Cancel the other"


class RunOutcome(models.TextChoices):
    SUBMITTED = "submitted"
    MISSED = "missed"
    OVERLAPPED = "overlapped"
    REFUSED = "refused"
