"""J15 at the door: one stored answer per key, whoever comes first, and also when the first call died half-way."""

from __future__ import annotations

import pytest

from renderjobs.models import IdempotencyRecord, RenderJob
from tests.api.test_jobs import GOOD, client_of, post
from tests.factories import a_caller, a_platform
from tests.renderjobs.test_races import at_once


@pytest.mark.django_db(transaction=True)
def test_i5_racing_calls_with_one_key_get_one_answer():
    a_platform()
    caller, answers = a_caller(), []

    def submit() -> None:
        answers.append(post(client_of(caller), GOOD, **{"Idempotency-Key": "k"}))

    at_once(submit, submit, submit)
    assert RenderJob.objects.count() == 1 and len({answer.content for answer in answers}) == 1
    assert [answer.status_code for answer in answers] == [201] * 3
    assert sum("Idempotency-Replayed" in answer.headers for answer in answers) == 2


@pytest.mark.django_db
def test_i5_a_repeat_stores_the_answer_that_a_dead_call_left_out():
    a_platform()
    api = client_of(a_caller())
    post(api, GOOD, **{"Idempotency-Key": "k"})
    IdempotencyRecord.objects.update(response=None)
    second = post(api, GOOD, **{"Idempotency-Key": "k"})
    RenderJob.objects.update(priority=9)
    assert post(api, GOOD, **{"Idempotency-Key": "k"}).content == second.content


@pytest.mark.django_db
def test_j15_keys_of_two_tokens_are_strangers():
    a_platform()
    answers = [post(client_of(a_caller(user=user)), GOOD, **{"Idempotency-Key": "k"}).json() for user in ("ada", "bob")]
    assert answers[0]["id"] != answers[1]["id"]


@pytest.mark.django_db
@pytest.mark.parametrize("key", ["k" * 256, "a\tb", "\x7f"])
def test_j15_a_key_that_cannot_be_stored_is_refused(key):
    a_platform()
    assert post(client_of(a_caller()), GOOD, **{"Idempotency-Key": key}).status_code == 422
    assert not RenderJob.objects.exists()
