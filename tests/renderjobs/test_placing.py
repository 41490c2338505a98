"""P5: a model runs only in the pools it is for; where a job cannot go anywhere the refusal says which model keeps it from where."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from accounts.models import User
from assets.models import Access, Asset
from common.errors import InvalidRequestError
from fleet.models import Pool
from renderjobs.models import RenderJob
from renderjobs.models.jobs import Source
from renderjobs.pinning import UnknownNameError
from renderjobs.submission import job_estimate, job_submit
from tests.admin.pages import client_of, page
from tests.factories import a_caller, a_checkpoint, a_job, a_platform, a_pool, a_request, an_eas_service

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def pools() -> tuple[Pool, Pool]:
    a_platform()
    return a_pool("default"), a_pool("large")


def restricted(name: str, *pools: str, kind: str = "checkpoint", **changes: Any) -> Asset:
    asset = a_checkpoint(name, kind=kind, is_default=False, **changes)
    asset.pools.set([a_pool(pool) for pool in pools])
    return asset


def test_a_job_goes_to_the_first_pool_that_may_run_all_its_models():
    restricted("heavy", "large")
    assert a_job(checkpoint="heavy").pool.name == "large" and a_job().pool.name == "default"


def test_a_model_for_several_pools_goes_to_the_first_of_them():
    restricted("both", "large", "default")
    assert a_job(checkpoint="both").pool.name == "default"


def test_a_switched_off_pool_is_no_place():
    restricted("heavy", "large")
    Pool.objects.filter(name="large").update(enabled=False)
    with pytest.raises(InvalidRequestError, match="Checkpoint 'heavy' may not run in default.") as refused:
        a_job(checkpoint="heavy")
    assert refused.value.field == "sd_model_checkpoint" and not RenderJob.objects.exists()


def test_networks_count_as_checkpoints_do():
    restricted("ink", "large", kind="lora")
    assert a_job(prompt="a ring <lora:ink:1>").pool.name == "large"


def test_models_that_share_no_pool_are_named():
    restricted("heavy", "large")
    restricted("ink", "default", kind="lora")
    with pytest.raises(InvalidRequestError, match="No pool of default, large may run all of 'heavy', 'ink' together."):
        a_job(checkpoint="heavy", prompt="a ring <lora:ink:1>")


def test_a_services_pool_is_not_left_for_another_one():
    restricted("heavy", "large")
    caller = replace(a_caller(), through=an_eas_service(pool=a_pool("default")))
    with pytest.raises(InvalidRequestError, match="may not run in default"):
        job_submit(caller=caller, request=a_request(checkpoint="heavy"), source=Source.API)


def test_an_estimate_is_refused_as_the_submission_would_be():
    restricted("heavy", "nowhere")
    Pool.objects.filter(name="nowhere").update(enabled=False)
    with pytest.raises(InvalidRequestError, match="may not run in default, large"):
        job_estimate(caller=a_caller(), request=a_request(checkpoint="heavy"), lane=1)


def test_a_model_one_may_not_use_is_unknown_wherever_it_may_run():
    restricted("secret", "large", access=Access.TEAMS)
    with pytest.raises(UnknownNameError, match="Checkpoint 'secret' is unknown."):
        a_job(checkpoint="secret")


def test_p4_a_queued_job_stays_where_it_is_when_the_pools_of_its_model_change():
    job = a_job()
    Asset.objects.get(name="mini").pools.set([a_pool("large")])
    job.refresh_from_db()
    assert (job.state, job.pool.name) == ("queued", "default") and a_job().pool.name == "large"


def test_the_question_costs_one_query_however_many_models_there_are():
    counts = []
    for number in (1, 8):
        for index in range(number):
            Asset.objects.filter(name=f"n{index}").exists() or restricted(f"n{index}", "default", kind="lora")
        prompt = "a ring" + "".join(f" <lora:n{index}:1>" for index in range(number))
        caller = a_caller()
        with CaptureQueriesContext(connection) as queries:
            job_submit(caller=caller, request=a_request(prompt=prompt), source=Source.API)
        counts.append(sum("asset_pools" in query["sql"] for query in queries))
    assert counts == [1, 1]


def test_pools_are_chosen_in_the_admin_and_shown_by_the_api():
    root = client_of(User.objects.create_superuser("root"))
    mini = Asset.objects.get(name="mini")
    large = a_pool("large")
    root.post(page("assets_asset", "change", mini.pk), {"access": "public", "pools": [large.pk]})
    assert list(mini.pools.all()) == [large]
    assert "large" in root.get(page("assets_asset", "changelist")).content.decode()
    caller = a_caller()
    shown = Client(headers={"Authorization": f"Bearer {caller.token.text}"}).get(f"/api/v1/models/{mini.pk}").json()
    assert shown["pools"] == ["large"]


def test_the_a1111_door_answers_with_the_sentence():
    restricted("heavy", "large")
    Pool.objects.filter(name="large").update(enabled=False)
    client = Client(headers={"Authorization": f"Bearer {a_caller().token.text}"})
    call = {"prompt": "x", "width": 64, "height": 64, "steps": 1, "override_settings": {"sd_model_checkpoint": "heavy"}}
    answer = client.post("/sdapi/v1/txt2img", call, content_type="application/json")
    assert answer.status_code == 422 and "may not run in default" in answer.content.decode()
