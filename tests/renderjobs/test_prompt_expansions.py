"""Short prompts wait in the database and are written under a lease: nothing is lost with a worker, nothing is written twice."""

from __future__ import annotations

import pytest

from accounts.models import Role
from assets.models import Access, Asset
from common.database import now_plus
from common.errors import ForbiddenError, InvalidRequestError
from fleet.services import worker_register
from renderjobs.claims import LeaseLost, leases_expire
from renderjobs.models import Claim, PromptExpansion
from renderjobs.prompt_expansions import (
    MAX_OPEN_PER_TEAM,
    MAX_SEED,
    ClaimedExpansion,
    ExpansionMissingError,
    TooManyExpansionsError,
    expansion_claim,
    expansion_fail,
    expansion_finish,
    expansion_release,
    expansion_submit,
)
from tests.factories import a_caller, a_platform, a_pool, a_text_generator_row

pytestmark = pytest.mark.django_db
PROMPTS = ("a red circle, sharp focus", "a red circle, oil on canvas")


@pytest.fixture(autouse=True)
def installed(settings) -> None:
    settings.PROMPT_EXPANSION = True
    a_platform()
    a_text_generator_row()


def submitted(**changes: object) -> PromptExpansion:
    return expansion_submit(caller=a_caller(), **{"prompt": "a red circle", "count": 2, "seed": 7, **changes})


def claim(name: str = "w1") -> ClaimedExpansion | None:
    worker = worker_register(name=name, pool=a_pool(), device="cpu")
    return expansion_claim(worker_id=worker.pk, pool_id=a_pool().pk)


def taken(name: str = "w1") -> ClaimedExpansion:
    claimed = claim(name)
    assert claimed is not None
    return claimed


def let_pass(claim_id: int) -> None:
    Claim.objects.filter(pk=claim_id).update(expires_at=now_plus(-1))


def now(expansion: PromptExpansion) -> PromptExpansion:
    return PromptExpansion.objects.get(pk=expansion.pk)


def test_what_was_written_is_kept_once_and_for_all():
    expansion = submitted()
    claimed = taken()
    assert claimed.recipe == expansion.recipe and now(expansion).state == "writing"
    expansion_finish(claimed=claimed, prompts=PROMPTS, gpu_us=5)
    expansion_finish(claimed=claimed, prompts=PROMPTS, gpu_us=5)
    kept = now(expansion)
    assert (kept.state, tuple(kept.prompts), kept.gpu_us) == ("written", PROMPTS, 5) and kept.finished_at
    assert claim() is None and not Claim.objects.filter(ended_at=None).exists()


def test_the_oldest_goes_first_and_nobody_takes_one_that_is_held():
    first, second = submitted(), submitted()
    assert [taken("w1").expansion_id, taken("w2").expansion_id] == [first.pk, second.pk] and claim("w3") is None


@pytest.mark.parametrize("reaped", [False, True], ids=["by time alone", "by the reaper"])
def test_one_that_was_lost_with_its_worker_goes_to_the_next_and_the_first_writes_nothing(reaped):
    expansion = submitted()
    lost = taken("w1")
    let_pass(lost.claim_id)
    if reaped:
        leases_expire()
    again = taken("w2")
    with pytest.raises(LeaseLost):
        expansion_finish(claimed=lost, prompts=("mine",), gpu_us=1)
    with pytest.raises(LeaseLost):
        expansion_fail(claimed=lost, code="x", message="x", retryable=False)
    expansion_finish(claimed=again, prompts=PROMPTS, gpu_us=1)
    assert tuple(now(expansion).prompts) == PROMPTS and now(expansion).attempts == 2


def test_a_lease_that_passed_unnoticed_writes_nothing():
    claimed = (submitted(), taken())[1]
    let_pass(claimed.claim_id)
    with pytest.raises(LeaseLost):
        expansion_finish(claimed=claimed, prompts=PROMPTS, gpu_us=1)


def test_one_that_kills_its_workers_fails_and_lets_the_others_through(settings):
    poison, other = submitted(), submitted()
    for _ in range(settings.MAX_ATTEMPTS):
        let_pass(taken().claim_id)
    assert taken().expansion_id == other.pk
    failed = now(poison)
    assert (failed.state, failed.error_code) == ("failed", "poison") and "3 times" in failed.error_message


def test_an_error_that_may_pass_is_tried_again_and_others_are_not(settings):
    expansion = submitted()
    for _ in range(settings.MAX_ATTEMPTS - 1):
        expansion_fail(claimed=taken(), code="out_of_memory", message="It did not fit.", retryable=True)
        assert now(expansion).state == "waiting"
    expansion_fail(claimed=taken(), code="out_of_memory", message="It did not fit.", retryable=True)
    assert (now(expansion).state, now(expansion).error_message) == ("failed", "It did not fit.")
    once = submitted()
    expansion_fail(claimed=taken(), code="invalid_spec", message="It is too long.", retryable=False)
    assert now(once).state == "failed"


def test_a_worker_that_stops_gives_its_prompt_back_without_a_try():
    expansion = submitted()
    expansion_release(claim_id=taken().claim_id)
    assert (now(expansion).state, now(expansion).attempts) == ("waiting", 0)


# --- what is refused -------------------------------------------------------------------------------------------------


def test_where_it_is_switched_off_or_no_model_is_there_the_answer_says_what_to_do(settings):
    Asset.objects.filter(kind="text_generator").update(access=Access.TEAMS)
    with pytest.raises(ExpansionMissingError, match="import_asset FOLDER --kind text_generator"):
        submitted()
    settings.PROMPT_EXPANSION = False
    with pytest.raises(ExpansionMissingError, match="PROMPT_EXPANSION=1 switches it on"):
        submitted()
    assert not PromptExpansion.objects.exists()


WRONG = {
    "empty": ({"prompt": "  "}, "prompt"),
    "no text": ({"prompt": 5}, "prompt"),
    "NUL": ({"prompt": "a\x00b"}, "prompt"),
    "half a character": ({"prompt": "\ud800"}, "prompt"),
    "too long": ({"prompt": "ä" * 8193}, "prompt"),
    "too many": ({"count": 9}, "count"),
    "none": ({"count": 0}, "count"),
    "true": ({"count": True}, "count"),
    "seed": ({"seed": MAX_SEED + 1}, "seed"),
    "unknown model": ({"model": "nobody"}, "model"),
    "model of another kind": ({"model": "mini"}, "model"),
    "model as a list": ({"model": ["writer"]}, "model"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_named_and_nothing_is_stored(name):
    changes, field = WRONG[name]
    with pytest.raises(InvalidRequestError) as caught:
        submitted(**changes)
    assert [error.field for error in caught.value.errors] == [field] and not PromptExpansion.objects.exists()


def test_everything_that_is_wrong_is_named_at_once():
    with pytest.raises(InvalidRequestError) as caught:
        submitted(prompt="", count=0, seed="x", model="nobody")
    assert {error.field for error in caught.value.errors} == {"prompt", "count", "seed", "model"}


def test_the_largest_seed_and_the_longest_prompt_are_stored():
    expansion = submitted(seed=MAX_SEED, prompt="ä" * 8192, count=8)
    assert (now(expansion).seed, len(now(expansion).prompt)) == (MAX_SEED, 8192)


def test_who_only_reads_expands_nothing():
    with pytest.raises(ForbiddenError):
        expansion_submit(caller=a_caller(user="vera", role=Role.VIEWER), prompt="a")


def test_a_team_has_only_so_many_waiting():
    for _ in range(MAX_OPEN_PER_TEAM):
        submitted()
    with pytest.raises(TooManyExpansionsError):
        submitted()
    expansion_submit(caller=a_caller("team-b", "bob"), prompt="another team")


def test_a_random_seed_is_kept_so_that_the_same_can_be_asked_for_again():
    assert submitted(seed=-1).seed >= 0
