"""Which pictures the safety filter looks at: what a team's policy demands, and what the called EAS service adds. Never less."""

from __future__ import annotations

from dataclasses import replace

from accounts.authentication import Caller
from accounts.models import Team
from common.errors import PlatformError
from gpuworker.contract.safety import OFF, REFUSE, strictest
from renderjobs.models import SafetyPolicy
from renderjobs.request import RenderRequest
from renderjobs.selectors import service_of


class SafetyFilterMissingError(PlatformError):
    """Pictures are to be looked at and nothing is installed that could; they are never delivered unseen."""

    code = "safety_filter_missing"
    status = 501


def safety_of(team: Team) -> str:
    policy = SafetyPolicy.objects.filter(team=team).first()
    return policy.mode if policy else OFF


def with_safety(request: RenderRequest, *, caller: Caller) -> RenderRequest:
    """The request with the strictest mode anybody demands for it. A service's filter blocks, as ``--enable-nsfw-censor`` does."""
    service = service_of(caller)
    demanded = REFUSE if service and service.safety_filter else OFF
    return replace(request, safety=strictest([request.safety, safety_of(caller.team), demanded]))
