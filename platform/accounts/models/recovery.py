"""Recovery codes: each opens the second factor once, for whoever lost the device. Kept as keyed hashes, like tokens."""

from __future__ import annotations

from django.db import models

from accounts.models.teams import User


class RecoveryCode(models.Model):
    """Removed when it is used, and with the device that it stands for."""

    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="recovery_codes")
    digest = models.CharField(max_length=64, unique=True, editable=False)

    def __str__(self) -> str:
        return f"a recovery code of {self.user}"
