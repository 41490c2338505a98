"""Long prompts from short ones: accepted here, written by a worker under a lease, and read again. No picture, no charge.

Every write is one statement that names what it expects, so doing it twice or being killed in between changes nothing. A claim whose
lease has passed holds nothing: the next worker takes the row over.
"""

from __future__ import annotations

import random
import uuid
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import F, Q, QuerySet
from django.db.models.functions import Now

from accounts.authentication import Caller
from accounts.models import READING_ROLES
from assets.models import Asset, AssetKind
from assets.selectors import asset_find, newest_of
from common.database import now_plus
from common.errors import FieldError, ForbiddenError, InvalidRequestError, NotFoundError, PlatformError
from fleet.services import pools_for_new_jobs
from gpuworker.contract.texts import TextRecipe
from renderjobs.choices import EXPANSION_OPEN, ExpansionState
from renderjobs.claims import CLAIM_RETRIES, LeaseLost, lease_is_valid
from renderjobs.dispatch import wake_on_commit
from renderjobs.expansion import A1111_RANDOM_SEED_MAX
from renderjobs.models import Claim, PromptExpansion
from renderjobs.placing import pool_for

MOST_PROMPTS, DEFAULT_PROMPTS = 8, 4
MAX_SEED = 2**63 - 1 - MOST_PROMPTS
MAX_OPEN_PER_TEAM = 20
"""They cost nothing, so a team may have only so many waiting."""
SWITCHED_OFF = "Prompt expansion is switched off on this installation; PROMPT_EXPANSION=1 switches it on."
NO_MODEL = (
    "No model that writes prompts is installed for you; take one in by `manage.py import_asset FOLDER --kind text_generator`, "
    "for example the folder of pai-bloom-1b1-text2prompt-sd-v2."
)


class ExpansionMissingError(PlatformError):
    """This installation writes no prompts: it is switched off, or has no model for it."""

    code = "not_installed"
    status = 501


class TooManyExpansionsError(PlatformError):
    code = "too_many_open"
    status = 429

    def headers(self) -> dict[str, str]:
        return {"Retry-After": "10"}


@dataclass(frozen=True, slots=True)
class ClaimedExpansion:
    """A prompt in a worker's hands."""

    claim_id: int
    expansion_id: uuid.UUID
    team_id: int
    recipe: TextRecipe


# --- the web side ----------------------------------------------------------------------------------------------------


def expansion_obstacle(caller: Caller) -> str:
    """Why nothing can be written for this caller; empty where it can."""
    if not settings.PROMPT_EXPANSION:
        return SWITCHED_OFF
    return "" if newest_of(caller, AssetKind.TEXT_GENERATOR) else NO_MODEL


def expansion_submit(
    *, caller: Caller, prompt: Any, model: Any = "", count: Any = DEFAULT_PROMPTS, seed: Any = -1
) -> PromptExpansion:
    """Accept a short prompt.

    Raises:
        ForbiddenError: The caller only reads the team's work.
        ExpansionMissingError: Nothing is installed that could write.
        InvalidRequestError: With everything that is wrong; nothing is stored.
        TooManyExpansionsError: The team has enough of them waiting.
        UnavailableError: No pool is enabled.
    """
    role = caller.user.role_in(caller.team)
    if role in READING_ROLES:
        raise ForbiddenError(f"Prompts are expanded by leads and members, not in the role {role}.")
    if obstacle := expansion_obstacle(caller):
        raise ExpansionMissingError(obstacle)
    errors = [*_wrong_prompt(prompt), *_wrong_number("count", count, 1, MOST_PROMPTS)]
    errors += _wrong_number("seed", seed, -1, MAX_SEED)
    asset = _model(caller, model)
    if asset is None:
        installed = ", ".join(one.name for one in newest_of(caller, AssetKind.TEXT_GENERATOR))
        errors.append(FieldError("model", f"Model {str(model)[:80]!r} is unknown; installed are {installed}.", model))
    if errors:
        raise InvalidRequestError(errors)
    assert asset is not None
    open_ones = PromptExpansion.objects.filter(team=caller.team, state__in=EXPANSION_OPEN).count()
    if open_ones >= MAX_OPEN_PER_TEAM:
        raise TooManyExpansionsError(f"{open_ones} prompts of the team wait already; {MAX_OPEN_PER_TEAM} may.")
    pool = pool_for([asset], pools_for_new_jobs())
    with transaction.atomic():
        expansion = PromptExpansion.objects.create(
            team=caller.team,
            user=caller.user,
            token=caller.token,
            pool=pool,
            model=asset,
            habits=asset.metadata,
            prompt=prompt.strip(),
            count=count,
            seed=random.SystemRandom().randint(0, A1111_RANDOM_SEED_MAX) if seed == -1 else seed,
            created_at=Now(),
        )
        wake_on_commit(pool.name)
    return PromptExpansion.objects.select_related("model").get(pk=expansion.pk)


def expansion_get(caller: Caller, expansion_id: str) -> PromptExpansion:
    """Raises: NotFoundError: No such expansion, or another team's."""
    try:
        key = uuid.UUID(expansion_id)
    except ValueError:
        key = None
    found = PromptExpansion.objects.filter(team=caller.team, pk=key).select_related("model").first()
    if found is None:
        raise NotFoundError("There is no such expansion of a prompt.")
    return found


def _model(caller: Caller, name: Any) -> Asset | None:
    """The one of that name; without a name, the first."""
    if name in ("", None):
        return newest_of(caller, AssetKind.TEXT_GENERATOR)[0]
    if not isinstance(name, str) or "\x00" in name:
        return None
    return asset_find(caller, AssetKind.TEXT_GENERATOR, name)


def _wrong_prompt(prompt: Any) -> list[FieldError]:
    limit = settings.MAX_PROMPT_BYTES
    if not isinstance(prompt, str) or not prompt.strip() or "\x00" in prompt:
        return [FieldError("prompt", "prompt must be a text that is not empty.")]
    if len(prompt.encode(errors="surrogatepass")) > limit:
        return [FieldError("prompt", f"prompt must be at most {limit} bytes long.")]
    try:
        prompt.encode()
    except UnicodeEncodeError:
        return [FieldError("prompt", "prompt holds half a character, which no text has.")]
    return []


def _wrong_number(name: str, value: Any, least: int, most: int) -> list[FieldError]:
    if type(value) is int and least <= value <= most:
        return []
    return [FieldError(name, f"{name} must be a whole number from {least} to {most}.", value)]


# --- the worker's side -----------------------------------------------------------------------------------------------


def waiting_in(pool_id: int) -> QuerySet[PromptExpansion]:
    """What a worker may take, oldest first: what nobody holds any more, too."""
    lost = Q(state=ExpansionState.WRITING) & (Q(claim__ended_at__isnull=False) | Q(claim__expires_at__lte=Now()))
    waiting = PromptExpansion.objects.filter(Q(state=ExpansionState.WAITING) | lost, pool_id=pool_id)
    return waiting.filter(state__in=EXPANSION_OPEN).order_by("pk")


def expansion_claim(*, worker_id: int, pool_id: int) -> ClaimedExpansion | None:
    """Lease the first one; None when none waits. One that was lost too often fails here."""
    for _ in range(CLAIM_RETRIES):
        found = waiting_in(pool_id).select_related("model").first()
        if found is None:
            return None
        as_found = PromptExpansion.objects.filter(pk=found.pk, state=found.state, claim_id=found.claim_id)
        if found.attempts >= settings.MAX_ATTEMPTS:
            as_found.update(**_failed("poison", f"The worker was lost {found.attempts} times while writing."))
        elif claim_id := _leased(worker_id, found, as_found):
            return ClaimedExpansion(claim_id, found.pk, found.team_id, found.recipe)
    return None  # others were faster each time; the next wake-up or poll comes again


@transaction.atomic
def _leased(worker_id: int, found: PromptExpansion, as_found: QuerySet[PromptExpansion]) -> int | None:
    """The new claim's number; None where another worker was faster."""
    claim = Claim.objects.create(worker_id=worker_id, created_at=Now(), expires_at=now_plus(settings.LEASE_SECONDS))
    if not as_found.update(state=ExpansionState.WRITING, claim=claim, attempts=F("attempts") + 1):
        claim.delete()
        return None
    Claim.objects.filter(pk=found.claim_id, ended_at=None).update(ended_at=Now())
    return claim.pk


@transaction.atomic
def expansion_finish(*, claimed: ClaimedExpansion, prompts: tuple[str, ...], gpu_us: int) -> None:
    """Keep what was written. Calling it again after a lost answer changes nothing.

    Raises:
        LeaseLost: Another worker may have it; nothing is written.
    """
    _end(claimed, state=ExpansionState.WRITTEN, prompts=list(prompts), gpu_us=gpu_us, finished_at=Now())


@transaction.atomic
def expansion_fail(*, claimed: ClaimedExpansion, code: str, message: str, retryable: bool) -> None:
    """Put it back for another try, or end it. Raises: LeaseLost: As ``expansion_finish``."""
    row = PromptExpansion.objects.filter(pk=claimed.expansion_id, claim_id=claimed.claim_id)
    if retryable and row.filter(attempts__lt=settings.MAX_ATTEMPTS).exists():
        _end(claimed, state=ExpansionState.WAITING, claim=None)
    else:
        _end(claimed, **_failed(code, message))


@transaction.atomic
def expansion_release(*, claim_id: int) -> None:
    """Give an unfinished one back at once; it does not count as a try."""
    held = PromptExpansion.objects.filter(claim_id=claim_id, state=ExpansionState.WRITING)
    held.update(state=ExpansionState.WAITING, claim=None, attempts=F("attempts") - 1)


def _end(claimed: ClaimedExpansion, **values: Any) -> None:
    """Let go of the row, if this claim still holds it or has let go of it in the same way before."""
    row = PromptExpansion.objects.filter(pk=claimed.expansion_id)
    held = row.filter(claim_id=claimed.claim_id, state=ExpansionState.WRITING)
    if lease_is_valid(claimed.claim_id) and held.update(**values):
        Claim.objects.filter(pk=claimed.claim_id, ended_at=None).update(ended_at=Now())
    elif not row.filter(claim_id=claimed.claim_id, state=values["state"]).exists():
        raise LeaseLost


def _failed(code: str, message: str) -> dict[str, Any]:
    ended = {"state": ExpansionState.FAILED, "finished_at": Now()}
    return {**ended, "error_code": code, "error_message": message}
