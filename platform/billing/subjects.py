"""Whose work it is: by this, budgets and quotas know what concerns them. Plain data."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    job_id: uuid.UUID
    team_id: int
    user_id: int
    project_id: int | None = None
    token_id: int | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
