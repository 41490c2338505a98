"""S2: an address that names something of another team is answered like one that names nothing, whatever the method.

One table of every route of the API with a name in it; a new one must be added. The admin has its own tables in ``tests/admin``.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from django.apps import apps
from django.test import Client

from accounts.authentication import Caller
from assets.models import Access
from assets.uploads import upload_begin
from renderjobs.models import RenderJob
from tests.admin.pages import rendered_job
from tests.factories import a_caller, a_checkpoint, a_written_prompt, an_eas_service
from tests.meta.test_routes import METHODS, ROUTES

pytestmark = pytest.mark.django_db
NAMED = sorted(route for route in ROUTES if "<" in route and not route.startswith("admin/"))
SIGNED = {"files/<str:token>", "models/previews/<str:token>"}
"""What they name is in the signature: tests/api/test_jobs.py and tests/assets/test_cards.py."""
TASK = "task(confidential)"
HEADERS = {"Tus-Resumable": "1.0.0", "Upload-Offset": "0"}
BODY: dict[str, Any] = {"data": "{}", "content_type": "application/json"}


def a_model(owner: Caller) -> object:
    model = a_checkpoint("confidential", access=Access.TEAMS)
    model.teams.add(owner.team)
    return model.pk


def an_upload(owner: Caller) -> object:
    return upload_begin(uploaded_by=owner.user, name="confidential.safetensors", kind="lora", size_bytes=9).pk


def a_service(owner: Caller) -> object:
    return an_eas_service("confidential", team=owner.team.name).name


def a_task(owner: Caller) -> object:
    RenderJob.objects.filter(team=owner.team).update(task_id=TASK)
    return TASK


THINGS: dict[str, tuple[Callable[[Caller], object], object]] = {
    "str:job_id": (lambda owner: RenderJob.objects.filter(team=owner.team).first().pk, uuid.uuid4()),
    "int:model_id": (a_model, 999_999),
    "uuid:upload_id": (an_upload, uuid.uuid4()),
    "str:expansion_id": (lambda owner: a_written_prompt(owner).pk, uuid.uuid4()),
    "str:service": (a_service, "nobody-has-it"),
    "str:task_id": (a_task, "task(nothing)"),
    "str:over_id": (lambda owner: TASK, "task(nothing)"),
    "path:path": (lambda owner: "x", "x"),
}
"""What each part of an address names: something of another team, and nothing."""


def addresses(route: str, owner: Caller) -> tuple[str, str, list[tuple[str, str]]]:
    """Of the foreign thing, of none, and the words in which their answers may differ."""
    parts = re.findall(r"<([^>]+)>", route)
    values = [(str(THINGS[part][0](owner)), str(THINGS[part][1])) for part in parts]
    foreign, unknown = route, route
    for part, (theirs, nothing) in zip(parts, values, strict=True):
        foreign, unknown = foreign.replace(f"<{part}>", theirs), unknown.replace(f"<{part}>", nothing)
    return f"/{foreign}", f"/{unknown}", values


def said(answer: Any) -> str:
    body = b"".join(answer.streaming_content) if answer.streaming else answer.content
    return re.sub(r'"(request_)?id": ?"[^"]*"', "", body.decode())


@pytest.mark.parametrize("role", ["lead", "viewer"])
@pytest.mark.parametrize("route", [route for route in NAMED if route not in SIGNED])
def test_s2_what_is_anothers_is_answered_as_what_is_not_there(route, role):
    rendered_job("hidden-team", "zoltan")
    owner = a_caller("hidden-team", "zoltan")
    foreign, unknown, values = addresses(route, owner)
    client = Client(headers={"Authorization": a_caller("team-a", "eve", role=role).token.text, **HEADERS})
    rows = {model: model.objects.count() for model in apps.get_models()}
    for method in METHODS:
        first, second = (
            getattr(client, method)(address, **({} if method in ("get", "head") else BODY))
            for address in (foreign, unknown)
        )
        words = said(second)
        for theirs, nothing in values:
            words = words.replace(nothing, theirs)
        assert (first.status_code, said(first)) == (second.status_code, words), method
        assert not 200 <= first.status_code < 300 or method == "options" or "agent-scheduler" in route, method
    assert rows == {model: model.objects.count() for model in apps.get_models()}
    assert RenderJob.objects.get().state == "succeeded" and "zoltan" not in words


def test_s2_every_part_of_an_address_is_in_the_table():
    assert {part for route in NAMED if route not in SIGNED for part in re.findall(r"<([^>]+)>", route)} == set(THINGS)
