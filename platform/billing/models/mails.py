"""The outbox of mails about money: written in the transaction of what they tell, sent afterwards, at least once."""

from __future__ import annotations

from django.db import models
from django.db.models import Q
from django.db.models.functions import Now


class OutgoingMail(models.Model):
    """One mail to one person.

    ::

        due ──→ sent
         ↑└──→ (refused) due again later ──→ given up
    """

    key = models.CharField(
        max_length=120, unique=True, help_text="Of person and event; the mail's own id is made of it."
    )
    to = models.EmailField()
    subject = models.CharField(max_length=200)
    text = models.TextField()
    created_at = models.DateTimeField(db_default=Now())
    due_at = models.DateTimeField(null=True, db_default=Now(), help_text="Empty when it is sent or given up.")
    tries = models.PositiveSmallIntegerField(default=0)
    sent_at = models.DateTimeField(null=True)
    error = models.CharField(max_length=300, blank=True, help_text="Of the newest try.")

    class Meta:
        ordering = ["-pk"]
        indexes = [models.Index(fields=["due_at"], condition=Q(due_at__isnull=False), name="mail_due")]
        constraints = [
            models.CheckConstraint(condition=Q(due_at=None) | Q(sent_at=None), name="a_sent_mail_is_not_due"),
        ]

    def __str__(self) -> str:
        return f"{self.subject} to {self.to}"
