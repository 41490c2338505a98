"""Pictures that callers sent, and pictures that came along with a delivered one."""

from __future__ import annotations

from django.db import models

from accounts.models import Team
from renderjobs.models.images import RenderImage


class InputFile(models.Model):
    """A picture of a team's own that its jobs begin from; the same bytes are kept once."""

    team = models.ForeignKey(Team, on_delete=models.PROTECT, related_name="+")
    sha256 = models.CharField(max_length=64)
    file_key = models.CharField(max_length=300, unique=True)
    size_bytes = models.BigIntegerField()
    width = models.PositiveIntegerField()
    height = models.PositiveIntegerField()
    created_at = models.DateTimeField()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["team", "sha256"], name="one_input_per_team_and_hash")]

    def __str__(self) -> str:
        return self.sha256[:10]


class ImageAttachment(models.Model):
    """A mask that came along with a picture; written and removed with it."""

    image = models.ForeignKey(RenderImage, on_delete=models.CASCADE, related_name="attachments")
    position = models.PositiveSmallIntegerField(help_text="Its place among the image's attachments.")
    role = models.CharField(max_length=16)
    file_key = models.CharField(max_length=300, unique=True)
    sha256 = models.CharField(max_length=64)
    size_bytes = models.BigIntegerField()
    width = models.PositiveIntegerField()
    height = models.PositiveIntegerField()

    class Meta:
        ordering = ["image", "position"]
        constraints = [models.UniqueConstraint(fields=["image", "position"], name="one_attachment_per_place")]

    def __str__(self) -> str:
        return f"{self.role} of image {self.image_id}"
