"""The chain over the entries: each seal says what its entry says and what came before, so that none can be changed unseen."""

from __future__ import annotations

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
