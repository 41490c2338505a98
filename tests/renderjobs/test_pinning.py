"""Names → files: what is pinned, what is passed over with a sentence, what refuses the request."""

from __future__ import annotations

import pytest

from assets.models import Access, Asset, AssetKind, AssetState
from gpuworker.contract import Recipe
from renderjobs.expansion import recipe_from
from renderjobs.pinning import UnfitForFamilyError, UnknownNameError, pinned
from tests.factories import a_caller, a_checkpoint, a_job, a_platform, a_request

pytestmark = pytest.mark.django_db


def an_asset(kind: str, name: str, **changes) -> Asset:
    return a_checkpoint(name, kind=kind, is_default=False, listed_hash="0123456789ab", **changes)


@pytest.fixture
def caller():
    a_platform()
    return a_caller()


def test_tags_of_the_prompt_pin_networks_with_their_weights(caller):
    an_asset(AssetKind.LORA, "ink", alias="Indian ink")
    an_asset(AssetKind.HYPERNETWORK, "anime")
    found = pinned(caller, a_request(prompt="a cat <lora:Indian ink:0.5:0.8> <hypernet:anime:0.3>")).recipe
    assert [(use.kind, use.weights.name, use.te, use.unet) for use in found.networks] == [
        ("lora", "ink", 0.5, 0.8),
        ("hypernet", "anime", 0.3, 0.3),
    ]
    assert found.networks[0].listed_hash == "0123456789ab"


def test_unknown_networks_are_passed_over_and_said(caller):
    pins = pinned(caller, a_request(prompt="<lora:nobody:1> a cat"))
    assert pins.recipe.networks == () and "'nobody' is unknown" in pins.warnings[0]


def test_networks_can_be_switched_off(caller):
    an_asset(AssetKind.LORA, "ink")
    assert pinned(caller, a_request(prompt="<lora:ink:1>", networks=False)).recipe.networks == ()


def test_embeddings_are_pinned_where_a_prompt_names_them_and_they_fit(caller):
    an_asset(AssetKind.EMBEDDING, "bad-hands")
    an_asset(AssetKind.EMBEDDING, "other")
    an_asset(AssetKind.EMBEDDING, "of-sdxl", metadata={"encoders": 2})
    found = pinned(caller, a_request(prompt="a cat, of-sdxl", negative_prompt="(bad-hands:1.2)")).recipe
    assert [use.weights.name for use in found.embeddings] == ["bad-hands"]


def test_embeddings_inside_a_lora_are_pinned_where_its_tag_and_their_name_stand_in_the_prompts(caller):
    lora = an_asset(AssetKind.LORA, "ink", embeddings_inside={"inkling": 1, "other": 1, "of-sdxl": 2, "ink": 1})
    found = pinned(caller, a_request(prompt="a cat <lora:ink:1>, inkling of-sdxl")).recipe
    assert [(use.weights.name, use.weights.sha256, use.inside) for use in found.embeddings] == [
        ("inkling", lora.sha256, "ink")
    ]
    assert pinned(caller, a_request(prompt="a cat, inkling")).recipe.embeddings == ()
    assert pinned(caller, a_request(prompt="inkling <lora:ink:1>", networks=False)).recipe.embeddings == ()


def test_an_embedding_of_its_own_file_comes_before_one_inside_a_lora(caller):
    an_asset(AssetKind.LORA, "ink", embeddings_inside={"inkling": 1})
    an_asset(AssetKind.EMBEDDING, "inkling")
    (use,) = pinned(caller, a_request(prompt="<lora:ink:1> inkling")).recipe.embeddings
    assert use.inside == "" and use.listed_hash == "0123456789ab"


def test_another_teams_files_are_unknown(caller):
    an_asset(AssetKind.LORA, "secret", access=Access.TEAMS)
    assert pinned(caller, a_request(prompt="<lora:secret:1>")).recipe.networks == ()


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"refiner": {"checkpoint": "nobody"}}, "refiner_checkpoint"),
        ({"hires": {"checkpoint": "nobody"}}, "hr_checkpoint_name"),
        ({"hires": {"upscaler": "nobody"}}, "hr_upscaler"),
        ({"checkpoint": "nobody"}, "sd_model_checkpoint"),
    ],
)
def test_names_that_have_to_be_known_refuse_the_request(caller, changes, field):
    with pytest.raises(UnknownNameError) as refusal:
        pinned(caller, a_request(**changes))
    assert refusal.value.errors[0].field == field


def test_a_refiner_may_be_named_by_a_part_of_its_title(caller):
    a_checkpoint("photo-refiner-v1", is_default=False)
    found = pinned(caller, a_request(refiner={"checkpoint": "refiner", "switch_at": 0.8})).recipe
    assert (found.refiner.checkpoint.name, found.refiner.switch_at) == ("photo-refiner-v1", 0.8)


def test_a_job_keeps_what_it_pinned_when_a_newer_file_of_the_name_comes(caller):
    old = an_asset(AssetKind.LORA, "ink")
    job = a_job(caller, prompt="<lora:ink:1>")
    an_asset(AssetKind.LORA, "ink", sha256="f" * 64)
    Asset.objects.filter(pk=old.pk).update(state=AssetState.RETIRED)
    recipe = recipe_from(job.lock)
    assert isinstance(recipe, Recipe) and recipe.networks[0].weights.sha256 == old.sha256
    assert old in job.assets.all()


FLUX = {"checkpoint": "flow", "sampler": "Euler"}


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_plain_request_fits_every_family(caller, family):
    a_checkpoint("flow", family=family, is_default=False)
    assert pinned(caller, a_request(**FLUX)).recipe.checkpoint.name == "flow"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"prompt": "<lora:ink:1> a cat"}, "prompt"),
        ({"hires": {"scale": 2}}, "enable_hr"),
        ({"refiner": {"checkpoint": "mini"}}, "refiner_checkpoint"),
        ({"control": [{"module": "canny", "model": "edges"}]}, "control"),
        ({"sampler": "DPM++ 2M"}, "sampler_name"),
        ({"schedule": "Karras"}, "scheduler"),
        ({"clip_skip": 2}, "CLIP_stop_at_last_layers"),
        ({"tiling": True}, "tiling"),
        ({"negative_prompt": "blurry"}, "negative_prompt"),
        ({"width": 72}, "width"),
    ],
)
def test_what_the_checkpoints_family_cannot_do_refuses_the_request_by_its_field(caller, changes, field):
    a_checkpoint("flow", family="flux", is_default=False)
    an_asset(AssetKind.LORA, "ink")
    an_asset(AssetKind.CONTROLNET, "edges")
    with pytest.raises(UnfitForFamilyError) as refusal:
        pinned(caller, a_request(**{**FLUX, **changes}))
    assert [error.field for error in refusal.value.errors] == [field]


def test_name_of_an_embedding_is_a_word_to_a_family_that_reads_none(caller):
    a_checkpoint("flow", family="sd3", is_default=False)
    an_asset(AssetKind.EMBEDDING, "lighthouse")
    assert pinned(caller, a_request(prompt="a lighthouse", **FLUX)).recipe.embeddings == ()


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"refiner": {"checkpoint": "flow"}}, "refiner_checkpoint"),
        ({"hires": {"checkpoint": "flow"}}, "hr_checkpoint_name"),
    ],
)
def test_checkpoint_of_flows_cannot_take_over_from_another(caller, changes, field):
    a_checkpoint("flow", family="sd3", is_default=False)
    with pytest.raises(UnfitForFamilyError, match="cannot take over") as refusal:
        pinned(caller, a_request(**changes))
    assert refusal.value.errors[0].field == field
