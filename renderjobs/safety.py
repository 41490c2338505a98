"""Which pictures the safety filter looks at: what a team's policy demands, and what a door demands beyond it. Never less."""

from __future__ import annotations

from dataclasses import replace

from accounts.models import Team
from common.errors import PlatformError
from gpuworker.contract.safety import OFF, strictest
from renderjobs.models import SafetyPolicy
from renderjobs.request import RenderRequest


class SafetyFilterMissingError(PlatformError):
    """Pictures are to be looked at and nothing is installed that could; they are never delivered unseen."""

    code = "safety_filter_missing"
    status = 501


def safety_of(team: Team) -> str:
    policy = SafetyPolicy.objects.filter(team=team).first()
    return policy.mode if policy else OFF


def with_safety(request: RenderRequest, *, team: Team, demanded: str = OFF) -> RenderRequest:
    """The request with the strictest mode anybody demands for it.

    Args:
        demanded: By the way it came, an EAS service for instance.
    """
    return replace(request, safety=strictest([request.safety, safety_of(team), demanded]))
