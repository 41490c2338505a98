"""The page of prompts: a short one is typed, a model is chosen, one of the long ones goes into a template's form."""

from __future__ import annotations

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from accounts.models import Role, User
from assets.models import Access
from renderjobs.models import PromptExpansion
from tests.admin.pages import client_of, page
from tests.factories import a_caller, a_platform, a_template, a_text_generator_row, a_written_prompt

pytestmark = pytest.mark.django_db
NAME = "renderjobs_promptexpansion"
LONG = ("a red circle, sharp focus", "a red circle, <b>oil</b> on canvas")


@pytest.fixture(autouse=True)
def switched_on(settings) -> None:
    settings.PROMPT_EXPANSION = True
    a_platform()


def person(user: str = "mia", role: str = Role.MEMBER, team: str = "team-a") -> tuple[Client, object]:
    caller = a_caller(team, user, role)
    User.objects.filter(pk=caller.user.pk).update(is_staff=True)
    return client_of(User.objects.get(pk=caller.user.pk)), caller


def typed(client: Client, caller, **changes: object):
    given = {"team": caller.team.pk, "prompt": "a red circle", "model": "writer", "count": 3, "seed": 7, **changes}
    return client.post(page(NAME, "add"), given, follow=True)


def test_what_a_person_types_waits_and_is_shown():
    a_text_generator_row()
    client, caller = person()
    body = typed(client, caller).content.decode()
    expansion = PromptExpansion.objects.get()
    assert (expansion.prompt, expansion.count, expansion.user, expansion.state) == (
        "a red circle",
        3,
        caller.user,
        "waiting",
    )
    assert "this page shows when it has" in body and "data-live-until-ended" in body


def test_models_to_choose_from_are_those_the_person_may_use():
    a_text_generator_row("open")
    own = a_text_generator_row("own", access=Access.TEAMS)
    a_text_generator_row("foreign", access=Access.TEAMS)
    client, caller = person()
    own.teams.add(caller.team)
    body = client.get(page(NAME, "add")).content.decode()
    assert [name for name in ("open", "own", "foreign") if f'value="{name}"' in body] == ["open", "own"]


@pytest.mark.parametrize(("on", "sentence"), [(True, "import_asset FOLDER"), (False, "PROMPT_EXPANSION=1")])
def test_where_nothing_can_be_written_the_page_says_what_to_do(settings, on, sentence):
    settings.PROMPT_EXPANSION = on
    client, caller = person()
    assert sentence in client.get(page(NAME, "add")).content.decode()
    typed(client, caller)
    assert not PromptExpansion.objects.exists()


def test_wrong_input_is_named_beside_its_field():
    a_text_generator_row()
    client, caller = person()
    assert "at most 16384 bytes" in typed(client, caller, prompt="ä" * 9000).content.decode()
    assert "less than or equal to 8" in typed(client, caller, count=9).content.decode()
    assert not PromptExpansion.objects.exists()


def test_one_of_the_long_prompts_goes_into_the_form_of_a_template():
    client, caller = person()
    template = a_template(caller.user, caller.team)
    expansion = a_written_prompt(caller, *LONG)
    body = client.get(page(NAME, "change", expansion.pk)).content.decode()
    assert "nightly" in body and "&lt;b&gt;oil&lt;/b&gt;" in body
    use = reverse("admin:renderjobs_prompt_use", args=[expansion.pk])
    form = client.get(use, {"template": template.pk, "number": 1}, follow=True)
    assert form.context["form"]["prompt"].value() == LONG[1]
    without = client.get(reverse("admin:renderjobs_batchtemplate_submit", args=[template.pk]))
    assert without.context["form"]["prompt"].value() == "a ring"


def test_a_template_whose_prompt_is_locked_is_not_offered_and_takes_none():
    client, caller = person()
    template = a_template(caller.user, caller.team, locked=["prompt"])
    expansion = a_written_prompt(caller, *LONG)
    assert "nightly" not in client.get(page(NAME, "change", expansion.pk)).content.decode()
    use = reverse("admin:renderjobs_prompt_use", args=[expansion.pk])
    assert client.get(use, {"template": template.pk, "number": 1}).status_code == 404
    form = reverse("admin:renderjobs_batchtemplate_submit", args=[template.pk])
    assert client.get(form, {"expansion": expansion.pk, "number": 1}).context["form"]["prompt"].value() == "a ring"


def test_a_prompt_of_another_team_goes_into_no_form():
    client, caller = person()
    template = a_template(caller.user, caller.team)
    foreign = a_written_prompt(a_caller("team-b", "bob"), *LONG)
    use = reverse("admin:renderjobs_prompt_use", args=[foreign.pk])
    assert client.get(use, {"template": template.pk, "number": 1}).status_code == 404
    form = reverse("admin:renderjobs_batchtemplate_submit", args=[template.pk])
    for number in ("1", "9", "-1", "x"):
        shown = client.get(form, {"expansion": foreign.pk, "number": number})
        assert shown.context["form"]["prompt"].value() == "a ring"


def test_the_list_takes_as_many_queries_for_many_as_for_one():
    client, caller = person()

    def queries() -> int:
        with CaptureQueriesContext(
            connection,
        ) as seen:
            assert client.get(page(NAME, "changelist")).status_code == 200
        return len(seen)

    a_written_prompt(caller)
    one = queries()
    for _ in range(9):
        a_written_prompt(caller)
    assert queries() == one
