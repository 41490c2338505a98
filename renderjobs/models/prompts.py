"""A short prompt that a language model makes long ones of. Nobody pays for it; the card's time is kept."""

from __future__ import annotations

from django.db import models
from django.db.models import Q

from accounts.models import ApiToken, Team, User
from assets.models import Asset
from common.identifiers import uuid7
from fleet.models import Pool
from gpuworker.contract.texts import Habits, TextRecipe
from renderjobs.choices import EXPANSION_OPEN, ExpansionState
from renderjobs.models.images import Claim


class PromptExpansion(models.Model):
    """The states are drawn in ``choices.ExpansionState``. While it is written, a claim holds it; a passed one holds nothing."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    team = models.ForeignKey(Team, on_delete=models.PROTECT, related_name="+")
    user = models.ForeignKey(User, on_delete=models.PROTECT, related_name="+")
    token = models.ForeignKey(ApiToken, null=True, on_delete=models.SET_NULL, related_name="+")
    pool = models.ForeignKey(Pool, on_delete=models.PROTECT, related_name="+", db_index=False)
    model = models.ForeignKey(Asset, on_delete=models.PROTECT, related_name="+")
    habits = models.JSONField(help_text="How the model is asked, as it was when the prompt was accepted.")
    prompt = models.TextField()
    count = models.PositiveSmallIntegerField()
    seed = models.BigIntegerField(help_text="Of the first prompt; each one more has the next.")
    state = models.CharField(max_length=8, choices=ExpansionState, default=ExpansionState.WAITING)
    claim = models.OneToOneField(Claim, null=True, on_delete=models.PROTECT, related_name="expansion")
    attempts = models.PositiveSmallIntegerField(default=0, help_text="Tries that count against the limit.")
    prompts = models.JSONField(default=list, help_text="What was written, in the order of the seeds.")
    gpu_us = models.BigIntegerField(
        default=0, help_text="GPU time of the try that succeeded, microseconds; on no bill."
    )
    error_code = models.CharField(max_length=40, blank=True)
    error_message = models.TextField(blank=True)
    created_at = models.DateTimeField()
    finished_at = models.DateTimeField(null=True)

    class Meta:
        ordering = ["-id"]
        indexes = [
            models.Index(fields=["team", "-id"], name="expansion_by_team"),
            models.Index(fields=["pool", "id"], condition=Q(state__in=EXPANSION_OPEN), name="expansion_next"),
        ]
        constraints = [
            models.CheckConstraint(condition=Q(state__in=ExpansionState.values), name="expansion_state_is_known"),
            models.CheckConstraint(
                condition=Q(state=ExpansionState.WRITING, claim__isnull=False) | ~Q(state=ExpansionState.WRITING),
                name="an_expansion_is_written_under_a_claim",
            ),
            models.CheckConstraint(
                condition=Q(state__in=EXPANSION_OPEN, finished_at=None)
                | ~Q(state__in=EXPANSION_OPEN) & Q(finished_at__isnull=False),
                name="an_expansion_has_ended_at_a_time",
            ),
        ]

    def __str__(self) -> str:
        return self.prompt[:60]

    @property
    def recipe(self) -> TextRecipe:
        return TextRecipe(
            prompt=self.prompt,
            model=self.model.weights,
            count=self.count,
            seed=self.seed,
            habits=Habits.from_json(self.habits),
        )
