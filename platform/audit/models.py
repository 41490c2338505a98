"""The chain over the entries: each seal says what its entry says and what came before, so that none can be changed unseen.

And what was read of other people's things, until it has become an entry.
"""

from __future__ import annotations

from django.contrib.contenttypes.models import ContentType
from django.db import models


class Seal(models.Model):
    """One entry's place in the chain. Numbers have no gaps; the database refuses to change or remove a seal."""

    number = models.BigIntegerField(primary_key=True)
    entry_id = models.BigIntegerField(
        unique=True, help_text="Of auditlog's LogEntry; no foreign key, so that a loss is seen."
    )
    digest = models.CharField(max_length=64)

    class Meta:
        ordering = ["number"]

    def __str__(self) -> str:
        return f"seal {self.number}"


class Reading(models.Model):
    """Somebody was shown what is somebody else's. Whatever happens within one window is one row, and one entry."""

    reader_id = models.BigIntegerField(help_text="Of the account; no foreign key, so that the row outlives it.")
    by = models.CharField(max_length=150)
    content_type = models.ForeignKey(ContentType, on_delete=models.CASCADE, related_name="+")
    object_pk = models.CharField(max_length=64)
    object_repr = models.CharField(max_length=200)
    what = models.CharField(max_length=100)
    remote_addr = models.GenericIPAddressField(null=True)
    window = models.BigIntegerField()
    read_at = models.DateTimeField()
    entry_id = models.BigIntegerField(null=True, help_text="Of auditlog's LogEntry, once there is one.")

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["reader_id", "content_type", "object_pk", "window"], name="one_reading_per_window"
            )
        ]
        indexes = [models.Index(fields=["id"], condition=models.Q(entry_id=None), name="reading_to_enter")]

    def __str__(self) -> str:
        return f"{self.by} {self.what} of {self.object_repr}"
