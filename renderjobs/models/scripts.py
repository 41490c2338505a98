"""A call that runs a selectable script: one request that asks for many, each of which is an ordinary job."""

from __future__ import annotations

from django.db import models
from django.db.models import Q

from accounts.models import ApiToken, Team, User
from common.identifiers import uuid7
from renderjobs.choices import JobKind


class ScriptCall(models.Model):
    """What is needed to go on after any step: the request, its seed, and the jobs that name it.

    ::

        open ──(the jobs of a step have ended)──→ the jobs of the next step … ──→ ended
    """

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    team = models.ForeignKey(Team, on_delete=models.PROTECT, related_name="+")
    user = models.ForeignKey(User, on_delete=models.PROTECT, related_name="+")
    token = models.ForeignKey(ApiToken, null=True, on_delete=models.SET_NULL, related_name="+")
    service = models.ForeignKey("renderjobs.EasService", null=True, on_delete=models.PROTECT, related_name="+")
    tab = models.CharField(max_length=16, choices=JobKind)
    script = models.CharField(max_length=64)
    body_key = models.CharField(max_length=300, help_text="Storage key of the request as it was sent.")
    body_sha256 = models.CharField(max_length=64)
    random_seed = models.BigIntegerField(help_text="Of what the script itself draws.")
    task_id = models.CharField(max_length=120, blank=True)
    idempotency_key = models.CharField(max_length=255, blank=True)
    interrupted = models.BooleanField(default=False, help_text="No further step is begun.")
    error = models.TextField(blank=True, help_text="Why a step could not be begun.")
    saved_keys = models.JSONField(
        default=list, blank=True, help_text="Pictures of its own that were put into a folder of the caller's."
    )
    created_at = models.DateTimeField(db_index=True)
    ended_at = models.DateTimeField(null=True)

    class Meta:
        ordering = ["-id"]
        constraints = [
            models.UniqueConstraint(
                fields=["team", "task_id"], condition=~Q(task_id=""), name="one_script_call_per_task"
            ),
            models.UniqueConstraint(
                fields=["token", "idempotency_key"], condition=~Q(idempotency_key=""), name="one_script_call_per_key"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.script} {self.id}"
