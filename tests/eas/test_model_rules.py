"""What a cluster's callers see of the models, by kind and flag: in lists, in prompts, in pins, on every way into the service."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from typing import Any

import pytest
from django.test import Client

from accounts.authentication import caller_with
from assets.models import Access, Asset, AssetKind
from assets.selectors import asset_find, newest_of
from renderjobs.compat.sdapi.script_calls import script_advance, script_begin
from renderjobs.delivery import image_deliver
from renderjobs.models import EasService, RenderJob
from renderjobs.models.eas import PublicFolder
from renderjobs.pinning import pinned
from tests.eas.calls import Calls
from tests.eas.test_requests import gpu_worker, work_off  # noqa: F401  one is a fixture
from tests.factories import a_caller, a_checkpoint, a_platform, a_request, an_eas_service
from tests.renderjobs.test_delivery import begun
from tests.sdapi.test_controlnet import picture_text
from tests.sdapi.test_txt2img import a_stored_picture

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("gpu_worker")]

OWN, PUBLIC, BOTH = {"teams", "users"}, {"public"}, {"teams", "users", "public"}
TABLE = {
    "C11 LoRA": (AssetKind.LORA, PublicFolder.LORA, OWN, BOTH),
    "C12 VAE": (AssetKind.VAE, PublicFolder.VAE, OWN, PUBLIC),
    "C14 embeddings": (AssetKind.EMBEDDING, PublicFolder.EMBEDDINGS, OWN, PUBLIC),
    "C15 hypernetworks": (AssetKind.HYPERNETWORK, PublicFolder.HYPERNETWORKS, OWN, PUBLIC),
    "C16 checkpoints": (AssetKind.CHECKPOINT, None, BOTH, BOTH),
    "C16 ControlNet": (AssetKind.CONTROLNET, None, BOTH, BOTH),
    "upscalers, of which nothing is said": (AssetKind.UPSCALER, None, BOTH, BOTH),
}
EVERYTHING = list(PublicFolder.values)


def a_model(kind: str, name: str, access: str, service: EasService) -> Asset:
    asset = a_checkpoint(name, kind=kind, access=access, is_default=False, metadata={"encoders": 1})
    if access == Access.TEAMS:
        asset.teams.add(service.team)
    if access == Access.USERS:
        asset.users.add(service.user)
    return asset


def models_of(kind: str, service: EasService) -> None:
    """One public, one of the team, one of the service's account; and what is not theirs at all."""
    a_model(kind, f"public-{kind}", Access.PUBLIC, service)
    a_model(kind, f"teams-{kind}", Access.TEAMS, service)
    a_model(kind, f"users-{kind}", Access.USERS, service)
    a_checkpoint(f"theirs-{kind}", kind=kind, access=Access.TEAMS, is_default=False)


def a_cluster(*, folders: list[str] | None = None, **fields: Any) -> EasService:
    a_platform()
    return an_eas_service("sd", edition="cluster", public_folders=folders or [], **fields)


def seen(caller: Any, kind: str) -> set[str]:
    return {asset.name.removesuffix(f"-{kind}") for asset in newest_of(caller, kind)} - {"mini"}


@pytest.mark.parametrize("rule", TABLE)
@pytest.mark.parametrize("is_given", [False, True], ids=["flag not given", "flag given"])
def test_who_sees_which_models(rule, is_given):
    kind, folder, without, with_flag = TABLE[rule]
    # The other kinds' flags are the other way round: none counts for another kind.
    folders = [one for one in EVERYTHING if (one == folder) == is_given]
    service = a_cluster(folders=folders)
    models_of(kind, service)
    caller = caller_with(service.token.text)
    expected = with_flag if is_given else without
    assert seen(caller, kind) == expected
    found = {who for who in BOTH if asset_find(caller, kind, f"{who}-{kind}.safetensors")}
    assert found == expected


@pytest.mark.parametrize("edition", ["standard", "api", "serverless"])
def test_the_rules_are_a_clusters(edition):
    service = an_eas_service("sd", edition=edition)
    models_of(AssetKind.LORA, service)
    assert seen(caller_with(service.token.text), AssetKind.LORA) == BOTH


def test_a_team_token_is_bound_by_the_rules_at_the_services_address_alone():
    service = a_cluster()
    models_of(AssetKind.LORA, service)
    token = a_caller("team-a", "ada").token.text
    at_the_address = Calls.to(service).call("GET", path="/sdapi/v1/loras", Authorization=token).json()
    assert [row["name"] for row in at_the_address] == ["teams-lora"], "the account's own is not ada's"
    everywhere_else = Client().get("/sdapi/v1/loras", headers={"Authorization": token}).json()
    assert {row["name"] for row in everywhere_else} == {"public-lora", "teams-lora"}


LISTS = {
    "loras": ("lora", lambda rows: {row["name"] for row in rows}),
    "sd-vae": ("vae", lambda rows: {row["model_name"].removesuffix(".safetensors") for row in rows}),
    "embeddings": ("embedding", lambda rows: set(rows["loaded"]) | set(rows["skipped"])),
    "hypernetworks": ("hypernetwork", lambda rows: {row["name"] for row in rows}),
    "sd-models": ("checkpoint", lambda rows: {row["model_name"] for row in rows} - {"mini"}),
}


@pytest.mark.parametrize("path", LISTS)
def test_the_lists_of_the_web_api_follow_by_token_and_by_address(path):
    kind, names = LISTS[path]
    service = a_cluster()
    models_of(kind, service)
    by_address = Calls.to(service).call("GET", path=f"/sdapi/v1/{path}").json()
    by_token = Client().get(f"/sdapi/v1/{path}", headers={"Authorization": service.token.text}).json()
    expected = BOTH if kind == "checkpoint" else OWN
    assert names(by_address) == names(by_token) == {f"{who}-{kind}" for who in expected}


def test_what_lies_outside_is_unknown_in_prompts_and_refusals_alike():
    service = a_cluster()
    for kind in (AssetKind.LORA, AssetKind.HYPERNETWORK, AssetKind.VAE, AssetKind.EMBEDDING):
        models_of(kind, service)
    prompt = "<lora:{0}-lora:1> <hypernet:{0}-hypernetwork:1> {0}-embedding"
    caller = caller_with(service.token.text)

    def outcome(who: str) -> tuple[list[str], list[str]]:
        pins = pinned(caller, a_request(prompt=prompt.format(who), vae=f"{who}-vae"))
        used = {asset.kind for asset in pins.assets.values()} - {"checkpoint"}
        return sorted(used), [text.replace(who, "…") for text in pins.warnings]

    assert outcome("teams") == (["embedding", "hypernetwork", "lora", "vae"], [])
    assert outcome("public") == outcome("theirs") == outcome("nobodys")
    assert outcome("public")[0] == [] and len(outcome("public")[1]) == 3


def test_a_submission_through_the_address_pins_by_the_rule():
    service = a_cluster(folders=["vae"])
    models_of(AssetKind.VAE, service)
    body = {
        "prompt": "x",
        "steps": 1,
        "width": 64,
        "height": 64,
        "override_settings": {"sd_vae": "teams-vae.safetensors"},
    }
    assert Calls.to(service).call("POST", path="/sdapi/v1/txt2img", body=json.dumps(body).encode()).status_code == 200
    body["override_settings"] = {"sd_vae": "public-vae.safetensors"}
    assert Calls.to(service).call("POST", path="/sdapi/v1/txt2img", body=json.dumps(body).encode()).status_code == 200
    first, second = RenderJob.objects.order_by("created_at")
    assert first.warnings and not second.warnings
    assert [job.assets.filter(kind="vae").count() for job in (first, second)] == [0, 1]


def test_a_queued_request_put_with_a_clusters_token_is_drawn_by_its_rule():
    cluster, queue = a_cluster(), an_eas_service("sd_async")
    models_of(AssetKind.LORA, cluster)
    body = {"prompt": "<lora:public-lora:1>", "steps": 1, "width": 64, "height": 64}
    for token in (cluster.token.text, queue.token.text):
        Calls(f"/api/predict/{queue.name}", token).put(json.dumps(body).encode(), path="/sdapi/v1/txt2img")
    assert work_off() == 2
    used = {job.token_id: job.assets.filter(kind="lora").count() for job in RenderJob.objects.all()}
    assert used == {cluster.token_id: 0, queue.token_id: 1}


def test_every_step_of_a_script_is_bound_by_the_address_it_was_called_at():
    service = a_cluster()
    models_of(AssetKind.LORA, service)
    values = {"prompt": "<lora:public-lora:1>", "steps": 1, "width": 64, "height": 64, "init_images": [picture_text()],
              "script_name": "loopback", "script_args": [2, 0.5, "Linear", "None"]}  # fmt: skip
    caller = replace(a_caller("team-a", "ada"), through=service)
    call = script_begin(caller=caller, body=values, tab="img2img", most_images=8)
    batch = begun()
    (image,) = batch.images
    stored = a_stored_picture(image, base64.b64decode(picture_text()))
    image_deliver(batch=batch, image=image, picture=stored, gpu_us=1000)
    assert script_advance(call.pk).waiting
    assert [bool(job.warnings) for job in RenderJob.objects.all()] == [True, True]
