"""Pictures that were made elsewhere and brought along."""

from __future__ import annotations

from django.db import models

from accounts.models import Team, User


class ImportedPictureQuerySet(models.QuerySet["ImportedPicture"]):
    def visible_to(self, user: User) -> ImportedPictureQuerySet:
        """Pictures of the user's teams; a superuser sees all."""
        return self if user.is_superuser else self.filter(team__memberships__user=user)


class ImportedPicture(models.Model):
    """An output of an earlier installation, among the team's files."""

    team = models.ForeignKey(Team, on_delete=models.PROTECT, related_name="imported_pictures")
    path = models.CharField(max_length=500, help_text="Where it lay in the data directory it came from.")
    file_key = models.CharField(max_length=300, unique=True)
    sha256 = models.CharField(max_length=64)
    size_bytes = models.BigIntegerField()
    width = models.PositiveIntegerField()
    height = models.PositiveIntegerField()
    infotext = models.TextField(blank=True)
    made_at = models.DateTimeField(help_text="The file's time.")
    created_at = models.DateTimeField()

    objects = ImportedPictureQuerySet.as_manager()

    class Meta:
        ordering = ["team", "path"]

    def __str__(self) -> str:
        return self.path
