"""The job API's two calls about prompts."""

from __future__ import annotations

import json
from typing import Any

import pytest
from django.http import HttpResponse
from django.test import Client

from accounts.authentication import Caller
from accounts.models import Scope
from fleet.services import worker_register
from renderjobs.models import PromptExpansion
from renderjobs.prompt_expansions import expansion_claim, expansion_finish
from tests.factories import a_caller, a_platform, a_pool, a_text_generator_row

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def installed(settings) -> None:
    settings.PROMPT_EXPANSION = True
    a_platform()


def client_of(caller: Caller) -> Client:
    return Client(headers={"Authorization": f"Bearer {caller.token.text}"})


def post(client: Client, body: Any) -> HttpResponse:
    return client.post("/api/v1/prompts/expand", json.dumps(body), content_type="application/json")


def write() -> None:
    worker = worker_register(name="w1", pool=a_pool(), device="cpu")
    claimed = expansion_claim(worker_id=worker.pk, pool_id=a_pool().pk)
    assert claimed is not None
    expansion_finish(claimed=claimed, prompts=("a red circle, sharp focus",), gpu_us=1_500_000)


def test_a_prompt_is_accepted_followed_and_read():
    a_text_generator_row()
    client = client_of(a_caller())
    accepted = post(client, {"prompt": " a red circle ", "count": 1, "seed": 7})
    shown = accepted.json()
    assert accepted.status_code == 201 and accepted.headers["Location"] == shown["links"]["self"]
    assert (shown["state"], shown["prompt"], shown["model"]) == ("waiting", "a red circle", "writer")
    assert (shown["seed"], shown["count"], shown["prompts"], shown["error"]) == (7, 1, [], None)
    write()
    written = client.get(shown["links"]["self"]).json()
    assert (written["state"], written["prompts"], written["gpu_seconds"]) == (
        "written",
        ["a red circle, sharp focus"],
        1.5,
    )


def test_a_model_is_chosen_by_its_name():
    a_text_generator_row("pai-bloom-1b1-text2prompt-sd")
    a_text_generator_row("pai-bloom-1b1-text2prompt-sd-v2")
    client = client_of(a_caller())
    assert post(client, {"prompt": "a"}).json()["model"] == "pai-bloom-1b1-text2prompt-sd"
    chosen = {"prompt": "a", "model": "pai-bloom-1b1-text2prompt-sd-v2"}
    assert post(client, chosen).json()["model"] == "pai-bloom-1b1-text2prompt-sd-v2"


@pytest.mark.parametrize(("on", "sentence"), [(True, "import_asset FOLDER"), (False, "PROMPT_EXPANSION=1")])
def test_where_nothing_is_installed_the_answer_says_what_to_do(settings, on, sentence):
    settings.PROMPT_EXPANSION = on
    answer = post(client_of(a_caller()), {"prompt": "a red circle"})
    assert (answer.status_code, answer.headers["Content-Type"]) == (501, "application/problem+json")
    assert answer.json()["code"] == "not_installed" and sentence in answer.json()["detail"]


def test_wrong_fields_are_named():
    a_text_generator_row()
    client = client_of(a_caller())
    unknown = post(client, {"prompt": "a", "temperature": 2})
    assert (unknown.status_code, unknown.json()["errors"][0]["pointer"]) == (422, "#/temperature")
    assert post(client, {"prompt": "a", "count": 9}).json()["errors"][0]["pointer"] == "#/count"
    assert post(client, ["a"]).status_code == 422 and not PromptExpansion.objects.exists()


def test_a_token_without_the_scope_and_another_team_see_nothing():
    a_text_generator_row()
    shown = post(client_of(a_caller()), {"prompt": "a"}).json()
    reading = client_of(a_caller(scopes=[Scope.JOBS_READ]))
    assert post(reading, {"prompt": "a"}).status_code == 403
    assert reading.get(shown["links"]["self"]).status_code == 200
    other = client_of(a_caller("team-b", "bob"))
    assert other.get(shown["links"]["self"]).status_code == 404
    assert other.get("/api/v1/prompts/nonsense").status_code == 404
    assert Client().get(shown["links"]["self"]).status_code == 401


def test_the_answer_has_exactly_the_documented_fields():
    a_text_generator_row()
    shown = post(client_of(a_caller()), {"prompt": "a"}).json()
    document = Client(headers={"Accept": "application/vnd.oai.openapi+json"}).get("/api/schema/?format=json").json()
    assert set(shown) == set(document["components"]["schemas"]["ExpansionSchema"]["properties"])
