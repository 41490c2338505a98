"""A short prompt from the door to the long ones: the real engine, a tiny Bloom taken in by the command, one worker's loop."""

from __future__ import annotations

from pathlib import Path

import pytest
from django.core.management import call_command

from assets.models import Asset
from billing.models import LedgerTransaction
from common.database import now_plus
from gpuworker.engine import DiffusersRenderer
from renderjobs.models import Claim, PromptExpansion
from renderjobs.prompt_expansions import expansion_submit
from tests.engine.companions import a_text_generator
from tests.factories import a_caller, a_job, a_platform, a_text_generator_row
from tests.fakes import PatternRenderer
from tests.gpuworker.test_runner import a_runner, checkpoint, threads_of_the_runners_end  # noqa: F401

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def switched_on(settings) -> None:
    settings.PROMPT_EXPANSION = True
    a_platform()


@pytest.fixture
def writer(tmp_path) -> Asset:
    call_command(
        "import_asset",
        str(a_text_generator(tmp_path / "tiny-text2prompt-sd")),
        kind="text_generator",
        verbosity=0,
    )
    return Asset.objects.get(kind="text_generator")


def written(runner, **changes: object) -> PromptExpansion:
    expansion = expansion_submit(caller=a_caller(), **{"prompt": "a red circle", "count": 3, "seed": 7, **changes})
    runner.run_until_empty()
    return PromptExpansion.objects.get(pk=expansion.pk)


def test_a_short_prompt_becomes_long_ones_and_the_same_again_for_its_seed(writer):
    runner = a_runner(DiffusersRenderer())
    first = written(runner)
    assert first.state == "written", first.error_message
    assert len(set(first.prompts)) == 3 and first.gpu_us > 0
    assert written(runner).prompts == first.prompts
    assert written(runner, seed=8, count=2).prompts == first.prompts[1:]
    assert first.habits["instruction"].startswith("Instruction: Give a simple description")
    assert not LedgerTransaction.objects.exists()


def test_a_prompt_the_model_cannot_read_fails_with_the_reason(writer):
    failed = written(a_runner(DiffusersRenderer()), prompt="q!z" * 5000)
    assert (failed.state, failed.error_code, failed.attempts) == ("failed", "invalid_spec", 1)
    assert "tokens long with its instruction" in failed.error_message


def test_weights_that_are_gone_or_damaged_fail_with_the_reason(writer, tmp_path):
    Path(tmp_path / "assets" / writer.file_key).write_bytes(b"other")
    failed = written(a_runner(DiffusersRenderer()))
    assert (failed.state, "sha-256" in failed.error_message) == ("failed", True)


def test_prompts_and_pictures_take_turns(writer):
    turns: list[str] = []

    class Noting(PatternRenderer):
        def render(self, spec, **more):
            turns.append("picture")
            yield from super().render(spec, **more)

        def write(self, spec, **more):
            turns.append("prompt")
            return super().write(spec, **more)

    caller = a_caller()
    for width in (64, 128):
        a_job(caller, width=width)
        expansion_submit(caller=caller, prompt="a red circle")
    a_runner(Noting()).run_until_empty()
    assert turns == ["prompt", "picture", "prompt", "picture"]


def test_a_renderer_that_breaks_is_tried_again_and_says_nothing_of_its_inside(writer, settings):
    class Broken(PatternRenderer):
        tries = 0

        def write(self, spec, **_):
            self.tries += 1
            raise RuntimeError("boom")

    renderer = Broken()
    failed = written(a_runner(renderer))
    assert (failed.state, failed.error_code, renderer.tries) == ("failed", "internal", settings.MAX_ATTEMPTS)
    assert "boom" not in failed.error_message


def test_a_prompt_whose_lease_was_lost_is_left_to_the_next_worker(writer):
    class Stopped(PatternRenderer):
        def write(self, spec, **more):
            (lease,) = runner.heartbeat.kept()
            lease.stop = True
            return super().write(spec, **more)

    runner = a_runner(Stopped())
    held = written(runner)
    assert (held.state, held.prompts) == ("writing", [])
    Claim.objects.update(expires_at=now_plus(-1))
    a_runner().run_until_empty()
    held.refresh_from_db()
    assert (held.state, held.attempts, len(held.prompts)) == ("written", 2, 3)


def test_a_worker_that_stops_gives_its_prompt_back(writer):
    class Stopping(PatternRenderer):
        def write(self, spec, **more):
            runner.release_all()
            runner.draining.set()
            return super().write(spec, **more)

    runner = a_runner(Stopping())
    given_back = written(runner)
    assert (given_back.state, given_back.attempts) == ("waiting", 0)


def test_a_file_that_is_gone_fails_after_the_tries(settings):
    a_text_generator_row()
    failed = written(a_runner(DiffusersRenderer()))
    assert (failed.state, failed.attempts) == ("failed", settings.MAX_ATTEMPTS)
