"""Rows for tests, with nothing but what the test names."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from django.utils import timezone

from accounts.authentication import Caller
from accounts.models import Role, Team, User
from accounts.services import member_ensure, token_issue
from assets.models import Asset, AssetKind, AssetState
from billing.models import RateCard, RatePrice
from billing.ratecards import draft_publish
from fleet.models import Pool
from gpuworker.contract.texts import Habits
from renderjobs.compat.eas.services import service_create
from renderjobs.models import BatchSchedule, BatchTemplate, EasService, PromptExpansion, RenderJob
from renderjobs.models.jobs import Source
from renderjobs.request import RenderRequest
from renderjobs.saved_batches import template_save
from renderjobs.submission import job_submit

PRICE = Decimal("0.001")
TEMPLATE_REQUEST = {"prompt": "a ring", "width": 64, "height": 64, "steps": 2}


def a_pool(name: str = "default") -> Pool:
    return Pool.objects.get_or_create(name=name)[0]


def a_rate_card(per_gpu_second: Decimal = PRICE) -> RateCard:
    card, created = RateCard.objects.get_or_create(
        name="v1", defaults={"currency": "USD", "valid_from": datetime(2020, 1, 1, tzinfo=UTC)}
    )
    if created:
        RatePrice.objects.create(card=card, per_gpu_second=per_gpu_second)
        draft_publish(card=card)
    return card


def a_card_of(
    *prices: RatePrice, name: str = "v1", valid_from: datetime = datetime(2020, 1, 1, tzinfo=UTC)
) -> RateCard:
    """A published card with these (unsaved) prices."""
    card = RateCard.objects.create(name=name, currency="USD", valid_from=valid_from)
    for price in prices:
        price.card = card
        price.save()
    draft_publish(card=card)
    return card


def a_caller(
    team: str = "team-a", user: str = "ada", role: str = Role.MEMBER, scopes: list[str] | None = None
) -> Caller:
    """A member of the team with a fresh token; the token's text is ``caller.token.text``."""
    membership = member_ensure(team_name=team, user_name=user, role=role)
    token, text = token_issue(user=membership.user, team=membership.team, scopes=scopes)
    token.text = text
    return Caller(user=membership.user, team=membership.team, token=token)


def a_checkpoint(name: str = "mini", **changes: Any) -> Asset:
    """An approved, public checkpoint row; its file exists only when the test writes one."""
    sha256 = hashlib.sha256(name.encode()).hexdigest()
    values = {
        "kind": AssetKind.CHECKPOINT,
        "name": name,
        "sha256": sha256,
        "short_hash": sha256[:10],
        "family": "sd1",
        "state": AssetState.APPROVED,
        "approved_at": timezone.now(),
        "file_key": f"checkpoint/{sha256}.safetensors",
        "is_default": not Asset.objects.filter(is_default=True).exists(),
    }
    return Asset.objects.create(**{**values, **changes})


def a_text_generator_row(name: str = "writer", **changes: Any) -> Asset:
    """An approved, public language model's row; its file exists only when the test writes one."""
    values = {"kind": AssetKind.TEXT_GENERATOR, "family": "bloom", "metadata": Habits().to_json(), "is_default": False}
    return a_checkpoint(name, **{**values, **changes})


def a_written_prompt(caller: Caller, *prompts: str) -> PromptExpansion:
    """What a language model has written for the caller's team."""
    texts = prompts or ("a red circle, sharp focus",)
    written = {"state": "written", "prompts": list(texts), "count": len(texts), "finished_at": timezone.now()}
    return PromptExpansion.objects.create(
        team=caller.team,
        user=caller.user,
        pool=a_pool(),
        model=Asset.objects.filter(kind=AssetKind.TEXT_GENERATOR).first() or a_text_generator_row(),
        habits=Habits().to_json(),
        prompt="a red circle",
        seed=7,
        created_at=timezone.now(),
        **written,
    )


def a_request(**changes: Any) -> RenderRequest:
    values = {"prompt": "a red circle", "seed": 1000, "width": 64, "height": 64, "steps": 4}
    return RenderRequest.build({**values, **changes})


def a_platform() -> None:
    """What every submission needs: a pool, a price and a default checkpoint."""
    a_pool()
    a_rate_card()
    if not Asset.objects.filter(is_default=True).exists():
        a_checkpoint()


def a_job(caller: Caller | None = None, **changes: Any) -> RenderJob:
    """A submitted job; ``changes`` go to the request."""
    a_platform()
    return job_submit(caller=caller or a_caller(), request=a_request(**changes), source=Source.API).job


def a_template(user: User, team: Team, *, name: str = "nightly", locked: list[str] | None = None) -> BatchTemplate:
    template = BatchTemplate(team=team, name=name)
    template_save(template=template, user=user, kind="txt2img", request=TEMPLATE_REQUEST, locked=locked or [])
    return template


def a_schedule(user: User, team: Team, **fields: Any) -> BatchSchedule:
    return BatchSchedule.objects.create(template=a_template(user, team), **fields)


def an_eas_service(name: str = "sd_async", team: str = "team-a", **limits: Any) -> EasService:
    """A service of the API edition; its token's text is ``service.token.text``."""
    service, text = service_create(name=name, team=Team.objects.get_or_create(name=team)[0], **limits)
    service.token.text = text
    return service
