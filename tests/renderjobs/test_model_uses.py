"""What would break: everything kept that leads to a model is found, and told apart by what it would lead to without it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from accounts.authentication import Caller
from accounts.models import Role, User
from assets.models import Access, Asset, PromptStyle
from assets.selectors import asset_find
from assets.services import asset_retire
from assets.uses import MOST_SHOWN, answers_to, uses_of
from renderjobs.models import BatchSchedule, BatchTemplate, OptionProfile
from renderjobs.saved_batches import template_save
from renderjobs.schedules import schedule_sync
from tests.admin.pages import client_of, page
from tests.factories import TEMPLATE_REQUEST, a_caller, a_checkpoint, a_job, a_platform

pytestmark = pytest.mark.django_db


@pytest.fixture
def ada() -> Caller:
    a_platform()
    return a_caller()


def a_network(name: str, kind: str, **changes: Any) -> Asset:
    return a_checkpoint(name, kind=kind, is_default=False, family=kind, **changes)


def saved(caller: Caller, name: str = "nightly", **request: Any) -> BatchTemplate:
    template = BatchTemplate(team=caller.team, name=name)
    template_save(
        template=template, user=caller.user, kind="txt2img", request={**TEMPLATE_REQUEST, **request}, locked=[]
    )
    return template


def shown(asset: Asset) -> list[tuple[str, str, str]]:
    return [(use.what, use.name, use.then) for use in uses_of(asset).found]


NAMED_BY: dict[str, tuple[str, dict[str, Any]]] = {
    "name": ("checkpoint", {"sd_model_checkpoint": "dream"}),
    "file name": ("checkpoint", {"sd_model_checkpoint": "dream.safetensors"}),
    "option": ("checkpoint", {"override_settings": {"sd_model_checkpoint": "dream"}}),
    "refiner, loosely": ("checkpoint", {"refiner_checkpoint": "rea", "refiner_switch_at": 0.5}),
    "VAE": ("vae", {"override_settings": {"sd_vae": "dream"}}),
    "LoRA": ("lora", {"prompt": "a ring <lora:dream:0.7>"}),
    "LoRA's alias": ("lora", {"prompt": "a ring <lora:other name:0.7>"}),
    "hypernetwork": ("hypernetwork", {"prompt": "a ring <hypernet:dream:1>"}),
    "embedding": ("embedding", {"negative_prompt": "a (dream:1.2)"}),
    "upscaler": ("upscaler", {"enable_hr": True, "hr_scale": 2, "hr_upscaler": "dream"}),
    "ControlNet, loosely": ("controlnet", {"control": [{"module": "canny", "model": "REA", "image": ""}]}),
}


@pytest.mark.parametrize("how", NAMED_BY)
def test_a_template_that_names_it_is_found(ada, how):
    kind, request = NAMED_BY[how]
    asset = a_network("dream", kind, alias="other name" if kind == "lora" else "")
    template = saved(ada)
    version = template.newest
    version.request = {**version.request, **request}
    version.save()
    without = kind in ("vae", "lora", "hypernetwork", "embedding")
    (use,) = uses_of(asset).found
    assert (use.name, use.team, use.then) == (
        "nightly", "team-a", "would be drawn without it" if without else "would be refused",
    )  # fmt: skip
    assert use.breaks is not without


def test_what_a_prompt_only_speaks_of_is_no_use(ada):
    dream = a_network("dream", "checkpoint")
    saved(ada, prompt="a dream <lora:dream:1>")
    saved(ada, "hourly", sd_model_checkpoint="mini")
    assert shown(dream) == []


def test_p4_the_newer_upload_of_a_name_takes_over_and_the_older_one_is_not_used(ada):
    old = a_network("dream", "checkpoint", approved_at=timezone.now() - timedelta(days=9))
    new = a_network("dream", "checkpoint", sha256="f" * 64, short_hash="f" * 10)
    saved(ada, sd_model_checkpoint="dream")
    saved(ada, "pinned", sd_model_checkpoint=old.short_hash)
    assert shown(old) == [("template", "pinned", "would be refused")]
    assert shown(new) == [("template", "nightly", f"would use {old.title} of {old.approved_at:%Y-%m-%d}")]


def test_a_file_that_the_team_may_not_use_takes_no_place(ada):
    dream = a_network("dream", "checkpoint")
    a_network(
        "dream", "checkpoint", sha256="e" * 64, access=Access.TEAMS, approved_at=timezone.now() - timedelta(days=1)
    )
    saved(ada, sd_model_checkpoint="dream")
    assert shown(dream) == [("template", "nightly", "would be refused")]


def test_schedules_say_when_they_run_next(ada):
    dream = a_network("dream", "checkpoint")
    template = saved(ada, sd_model_checkpoint="dream")
    for enabled in (True, False):
        schedule_sync(BatchSchedule.objects.create(template=template, enabled=enabled))
    before = timezone.now()
    (schedule,) = [use for use in uses_of(dream).found if use.what == "schedule"]
    assert schedule.when and schedule.when > before and schedule.breaks


def test_only_the_newest_version_of_a_template_counts(ada):
    dream = a_network("dream", "checkpoint")
    template = saved(ada, sd_model_checkpoint="dream")
    template_save(template=template, user=ada.user, kind="txt2img", request=TEMPLATE_REQUEST, locked=[])
    assert shown(dream) == []


def test_options_and_styles_are_found_and_the_default_names_its_follower(ada):
    mini = Asset.objects.get(name="mini")
    follower = a_checkpoint("zoo")
    ink = a_network("ink", "lora")
    OptionProfile.objects.create(team=ada.team, user=ada.user, values={"sd_model_checkpoint": mini.title})
    PromptStyle.objects.create(name="inked", prompt="<lora:ink:1>")
    then = f"would use {follower.title} of {follower.approved_at:%Y-%m-%d}"
    assert shown(mini) == [
        ("default", "requests that name no checkpoint", then),
        ("options", "ada", "would have no effect"),
    ]
    assert shown(ink) == [("style", "inked", "would be drawn without it")]


def test_p4_open_jobs_are_counted_and_keep_what_they_pinned(ada):
    job = a_job(ada)
    mini = Asset.objects.get(name="mini")
    assert uses_of(mini).jobs == {"queued": 1}
    asset_retire(asset=mini)
    job.refresh_from_db()
    assert job.assets.get() == mini and job.state == "queued"


@pytest.mark.parametrize(
    "name", ["dream", "dream.ckpt", "dream [abc]", "dream.safetensors [abc]", "abc", "other", "Dream", "", " dream ", "[abc]", "x"]
)  # fmt: skip
def test_a_name_leads_here_exactly_when_it_does_at_a_submission(ada, name):
    asset = a_network("dream", "lora", short_hash="abc", alias="other")
    assert answers_to(asset, name) == (asset_find(ada, "lora", name) == asset)


def test_c5_the_queries_do_not_grow_with_what_is_there(ada):
    dream = a_network("dream", "checkpoint")
    counts = []
    for first, last in ((0, 3), (3, MOST_SHOWN + 20)):
        for number in range(first, last):
            schedule_sync(BatchSchedule.objects.create(template=saved(ada, f"t{number}", sd_model_checkpoint="dream")))
        with CaptureQueriesContext(connection) as queries:
            uses = uses_of(dream)
        counts.append(len(queries))
    assert counts[0] == counts[1] <= 8 and uses.more
    assert [use.what for use in uses.found] == ["template"] * MOST_SHOWN + ["schedule"] * MOST_SHOWN


def test_retiring_asks_first_and_shows_what_uses_it(ada):
    root = client_of(User.objects.create_superuser("root"))
    dream = a_network("dream", "checkpoint")
    saved(ada, sd_model_checkpoint="dream")
    chosen = {"action": "retire", "_selected_action": [dream.pk]}
    body = root.post(page("assets_asset", "changelist"), chosen).content.decode()
    assert "nightly" in body and "would be refused" in body and Asset.objects.get(pk=dream.pk).state == "approved"
    root.post(page("assets_asset", "changelist"), {**chosen, "confirmed": "yes"})
    assert Asset.objects.get(pk=dream.pk).state == "retired"


def test_p11_the_api_tells_a_lead_of_the_own_team_only():
    lead, other = a_caller("team-a", "lena", Role.LEAD), a_caller("team-b", "bob")
    a_platform()
    dream = a_network("dream", "checkpoint", access=Access.TEAMS)
    dream.teams.add(lead.team, other.team)
    for caller in (lead, other):
        saved(caller, f"of {caller.team}", sd_model_checkpoint="dream")
    dream.teams.set([lead.team])
    client = Client(headers={"Authorization": f"Bearer {lead.token.text}"})
    answer = client.get(f"/api/v1/models/{dream.pk}/uses").json()
    assert [(use["name"], use["breaks"]) for use in answer["uses"]] == [("of team-a", True)] and answer[
        "open_jobs"
    ] == {}
    member = Client(headers={"Authorization": f"Bearer {a_caller('team-a', 'max').token.text}"})
    assert member.get(f"/api/v1/models/{dream.pk}/uses").status_code == 403
