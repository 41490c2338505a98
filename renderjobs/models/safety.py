"""What a team has done with pictures that the safety filter catches."""

from __future__ import annotations

from django.db import models
from django.db.models import Q

from accounts.models import Team
from gpuworker.contract.safety import BLUR, MODES, OFF, REFUSE


class SafetyPolicy(models.Model):
    """A team without one has its pictures looked at by nobody."""

    team = models.OneToOneField(Team, on_delete=models.CASCADE, related_name="safety_policy")
    mode = models.CharField(
        max_length=8,
        choices=[(OFF, "Off"), (BLUR, "Deliver them blurred"), (REFUSE, "Deliver black pictures in their place")],
        default=REFUSE,
        help_text="What is done with pictures that the filter catches; they are charged as every delivered picture.",
    )

    class Meta:
        ordering = ["team__name"]
        verbose_name_plural = "safety policies"
        constraints = [models.CheckConstraint(condition=Q(mode__in=MODES), name="safety_mode_is_known")]

    def __str__(self) -> str:
        return f"{self.team}: {self.mode}"
