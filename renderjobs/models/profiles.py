"""What a caller of the sdapi door has set by ``POST /options``."""

from __future__ import annotations

from django.db import models

from accounts.models import Team, User


class OptionProfile(models.Model):
    """Options of one member within one team; what is not named has the installation's default."""

    team = models.ForeignKey(Team, on_delete=models.CASCADE, related_name="+")
    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="+")
    values = models.JSONField(default=dict)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["team", "user"], name="one_option_profile_per_member")]

    def __str__(self) -> str:
        return f"options of {self.user} in {self.team}"
