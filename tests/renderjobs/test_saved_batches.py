"""Templates: versions that never change, fields that are locked, jobs that keep what they were made of."""

from __future__ import annotations

import pytest

from common.errors import InvalidRequestError
from renderjobs.saved_batches import template_save, template_submit
from tests.factories import TEMPLATE_REQUEST, a_caller, a_platform, a_template

pytestmark = pytest.mark.django_db


@pytest.fixture
def caller():
    a_platform()
    return a_caller()


def save(template, caller, **changes):
    values = {"kind": "txt2img", "request": TEMPLATE_REQUEST, "locked": [], **changes}
    return template_save(template=template, user=caller.user, **values)


def test_saving_changes_adds_a_version_and_saving_none_adds_nothing(caller):
    template = a_template(caller.user, caller.team)
    assert save(template, caller).number == 1
    assert save(template, caller, request={**TEMPLATE_REQUEST, "steps": 3}).number == 2
    assert [version.request["steps"] for version in template.versions.all()] == [3, 2]


def test_a_version_acts_for_whoever_wrote_it(caller):
    template = a_template(caller.user, caller.team)
    assert save(template, a_caller(user="lea")).created_by.username == "lea"


def test_j20_a_job_keeps_the_version_it_was_made_of(caller):
    template = a_template(caller.user, caller.team)
    job = template_submit(caller=caller, version=template.newest, source="api", changes={"prompt": "a disc"}).job
    save(template, caller, request={**TEMPLATE_REQUEST, "steps": 9})
    job.refresh_from_db()
    assert (job.template_version.number, job.request["steps"], job.request["prompt"]) == (1, 2, "a disc")


def test_a_locked_field_cannot_be_changed_and_may_be_repeated(caller):
    version = a_template(caller.user, caller.team, locked=["steps"]).newest
    with pytest.raises(InvalidRequestError, match="steps is locked by template nightly v1"):
        template_submit(caller=caller, version=version, source="api", changes={"steps": 50, "prompt": "x"})
    assert template_submit(caller=caller, version=version, source="api", changes={"steps": 2}).job.request["steps"] == 2


def test_options_that_are_not_named_stay(caller):
    template = a_template(caller.user, caller.team)
    options = {"override_settings": {"CLIP_stop_at_last_layers": 2, "eta_noise_seed_delta": 7}}
    version = save(template, caller, request={**TEMPLATE_REQUEST, **options})
    changes = {"override_settings": {"eta_noise_seed_delta": 9}}
    request = template_submit(caller=caller, version=version, source="api", changes=changes).job.request
    assert (request["clip_skip"], request["ensd"]) == (2, 9)


@pytest.mark.parametrize(
    ("wrong", "field"),
    [({"request": {"steps": -1}}, "request.steps"), ({"locked": ["seed"]}, "locked"), ({"locked": "steps"}, "locked")],
    ids=["a value out of range", "a field that is not there", "no list"],
)
def test_a_template_that_could_not_be_rendered_is_refused(caller, wrong, field):
    template = a_template(caller.user, caller.team)
    with pytest.raises(InvalidRequestError) as refused:
        save(template, caller, **wrong)
    assert refused.value.errors[0].field == field and template.versions.count() == 1
