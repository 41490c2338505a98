"""A service's document comes out as it went in; what has been changed since is said in it, and nothing else."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from hypothesis import given, settings
from hypothesis import strategies as st

from accounts.models import ApiToken, Team, User
from common.errors import ConflictError, InvalidRequestError
from renderjobs.compat.eas.documents import SETTINGS, document_parsed, document_with, settings_of
from renderjobs.compat.eas.flags import ARITIES, flags_of
from renderjobs.compat.eas.services import service_document, service_import, service_token_renew
from renderjobs.models import EasEdition, EasService
from renderjobs.models.eas import PublicFolder
from tests.eas.calls import Calls
from tests.eas.documents import API, COMMON, EVERY, RICH, STANDARD
from tests.factories import a_pool, an_eas_service

DATA = "/code/stable-diffusion-webui/data"
KNOWN = {DATA: "data"}


def imported(document: dict[str, Any], **options: Any) -> EasService:
    team, _ = Team.objects.get_or_create(name="team-a")
    service, text = service_import(text=json.dumps(document), team=team, **options)
    service.token.text = text
    return EasService.objects.get(pk=service.pk)


def changed(document: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy with another value at ``a/0/b``; ... takes the key away."""
    made = copy.deepcopy(document)
    *steps, last = [int(step) if step.isdecimal() else step for step in path.split("/")]
    place = made
    for step in steps:
        place = place[step]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return made


# --- both documents, and richer ones ----------------------------------------------------------------------------------


@pytest.mark.django_db
def test_b4_the_standard_document_is_a_standard_service():
    service = imported(STANDARD)
    assert (service.name, service.edition, service.replicas) == ("sd_v32", "standard", 1)
    assert service.mounts == {DATA: "data"} and not service.queues.exists()
    assert (service.window, service.api_log, service.time_log) == (8, False, False)


@pytest.mark.django_db
def test_b4_the_api_document_is_a_service_with_queues_that_work():
    service = imported(API)
    assert (service.name, service.edition, service.window, service.max_delivery) == ("sd_async", "api", 1, 1)
    assert service.api_log and service.time_log and not service.safety_filter
    assert Calls(f"/api/predict/{service.name}", service_token_renew(service=service)).put() == 1


@pytest.mark.django_db
def test_a_document_with_everything_fills_every_setting():
    service = imported(RICH)
    found = {name: getattr(service, name) for name in SETTINGS}
    assert found == {
        "name": "studio.cluster", "edition": "cluster", "replicas": 3, "window": 6, "max_delivery": 1,
        "keepalive_seconds": 91, "max_queue_size": 12, "rate_limit": 5,
        "mounts": {"/mnt/data": "data", "/mnt/models": "models"},
        "public_folders": ["lora", "vae", "extensions"], "hidden_tabs": ["Checkpoint Merger", "Train"],
        "api_log": False, "time_log": False, "safety_filter": True, "dynamic_cache": True, "min_ram_reserved_gb": 40.5,
        "max_payload_bytes": 1_048_576, "max_frames": 500, "pool": None,
    }  # fmt: skip


@pytest.mark.django_db
@pytest.mark.parametrize("name", EVERY)
def test_b4_what_was_not_changed_comes_out_as_it_went_in(name):
    service = imported(EVERY[name])
    made = service_document(service)
    assert made == EVERY[name] and list(made) == list(EVERY[name])
    assert made["containers"][0]["script"] == EVERY[name]["containers"][0]["script"]


@pytest.mark.django_db
def test_what_was_changed_is_said_and_everything_else_stays():
    service = imported(RICH)
    service.replicas, service.window, service.keepalive_seconds = 2, 8, 30
    service.hidden_tabs, service.public_folders, service.safety_filter = [], ["vae", "embeddings"], False
    service.mounts = {"/mnt/data": "data", "/new": "other"}
    made = service_document(service)
    script = made["containers"][0]["script"]
    assert script == (
        f"{COMMON} \\\n --xformers --cluster-status --vae-dir=/mnt/data/models/VAE --sd-dynamic-cache --min-ram-reserved 40.5 "
        "--data-dir /mnt/data --theme dark --tcmalloc --embeddings-dir /mnt/data/embeddings"
    )
    assert made["metadata"]["rpc"] == {"keepalive": 30_000, "max_queue_size": 12}
    assert (made["metadata"]["instance"], made["metadata"]["rpc.worker_threads"]) == (2, 4)
    assert [entry["mount_path"] for entry in made["storage"]] == ["/mnt/data/", "/dev/shm", "/new"]
    assert made["renderkiln"] == {"max_frames": 500, "mounts": {"/mnt/data": "data", "/new": "other"}}
    for key in ("autoscaler", "x"):
        assert made[key] == RICH[key]


@pytest.mark.django_db
def test_a_service_made_by_hand_has_a_document_too():
    pool = a_pool("fast")
    service = an_eas_service("by_hand", edition="serverless", replicas=2, pool=pool, max_frames=7, api_log=True)
    document = service_document(service)
    assert document["metadata"]["instance"] == 2 and "--api-log" in document["containers"][0]["script"]
    again = imported(changed(document, "metadata/name", "again"))
    assert {name: getattr(again, name) for name in SETTINGS} == {
        **{name: getattr(service, name) for name in SETTINGS},
        "name": "again",
    }


# --- the property -----------------------------------------------------------------------------------------------------

PARTS = st.text("abcXYZ019_-", min_size=1, max_size=6).filter(lambda part: part[0] not in "-")
PATHS = st.lists(PARTS, min_size=1, max_size=3).map(lambda parts: "/" + "/".join(parts))
TABS = st.text(min_size=1, max_size=12).filter(lambda name: name.isprintable() and name.strip() == name)
ANYTHING = {
    "name": PARTS,
    "replicas": st.integers(1, 1000),
    "window": st.integers(1, 1000),
    "max_delivery": st.integers(1, 99),
    "keepalive_seconds": st.integers(1, 100_000),
    "max_queue_size": st.integers(0, 999),
    "rate_limit": st.integers(0, 999),
    "mounts": st.dictionaries(PATHS, st.lists(PARTS, min_size=1, max_size=2).map("/".join), min_size=1, max_size=4),
    "public_folders": st.sets(st.sampled_from(PublicFolder.values)).map(list),
    "hidden_tabs": st.lists(TABS, max_size=4),
    "api_log": st.booleans(),
    "time_log": st.booleans(),
    "safety_filter": st.booleans(),
    "dynamic_cache": st.booleans(),
    "min_ram_reserved_gb": st.none() | st.floats(0, 1_000_000).map(lambda value: value + 0.0),
    "max_payload_bytes": st.integers(1024, 33_554_432),
    "max_frames": st.integers(1, 10**6),
    "pool": st.none() | PARTS,
}


@st.composite
def settings_of_services(draw: Any) -> dict[str, Any]:
    edition = draw(st.sampled_from(EasEdition.values))
    found = {"edition": edition, **{name: draw(values) for name, values in ANYTHING.items()}}
    return {**found, "replicas": 1 if edition == "standard" else found["replicas"]}


@settings(max_examples=150, deadline=None)
@given(wanted=settings_of_services(), start=st.sampled_from([None, STANDARD, API, RICH]))
def test_b4_reading_what_was_written_gives_the_same_settings(wanted, start):
    assert set(wanted) == set(SETTINGS)
    made = document_with(start, wanted, known_mounts=KNOWN)
    read = settings_of(document_parsed(json.dumps(made)), known_mounts=KNOWN)
    assert {**read, "public_folders": set(read["public_folders"])} == {
        **wanted,
        "public_folders": set(wanted["public_folders"]),
    }
    assert document_with(made, read, known_mounts=KNOWN) == made
    for key, value in (start or {}).items():
        assert key in ("metadata", "containers", "storage", "queue", "renderkiln") or made[key] == value


# --- flags ------------------------------------------------------------------------------------------------------------

FLAGS = {
    "C6 --enable-nsfw-censor": {"safety_filter": True},
    "C7 --always-hide-tabs Extensions 'Checkpoint Merger'": {"hidden_tabs": ["Extensions", "Checkpoint Merger"]},
    "C7 --always-hide-tabs=Extensions,Train": {"hidden_tabs": ["Extensions", "Train"]},
    "C7 --always-hide-tabs": {},
    "C8 --min-ram-reserved 40 --sd-dynamic-cache": {"min_ram_reserved_gb": 40.0, "dynamic_cache": True},
    "C9 --time-log": {"time_log": True},
    "C9 --api-log": {"api_log": True},
    "C11 --lora-dir /code/stable-diffusion-webui/data/models/Lora": {"public_folders": ["lora"]},
    "C12 --vae-dir=/a/VAE": {"public_folders": ["vae"]},
    "C13 --gfpgan-dir /a": {"public_folders": ["gfpgan"]},
    "C14 --embeddings-dir /a": {"public_folders": ["embeddings"]},
    "C15 --hypernetwork-dir /a": {"public_folders": ["hypernetworks"]},
    "C17 --root-extensions": {"public_folders": ["extensions"]},
    "C1 --blade --xformers": {},
    "C2 --filebrowser --api --nowebui": {},
    "C3 --data-dir data": {},
    "C3 --data-dir=/code/stable-diffusion-webui/data/": {},
    "C10 --listen --port 8000 --skip-version-check --no-hashing --no-download-sd-model --skip-prepare-environment": {},
    "C10 --disable-safe-unpickle": {},
    "A10 --cluster-status --sd-dynamic-cache": {"dynamic_cache": True},
    "unknown --theme dark --my-flag=3": {},
    "the last one counts --min-ram-reserved 1 --min-ram-reserved=2": {"min_ram_reserved_gb": 2.0},
    "behind a pipe --api-log | tee log": {"api_log": True},
}


@pytest.mark.parametrize("case", FLAGS)
def test_flags_are_settings_and_are_kept_as_they_were_written(case):
    text = case[case.index("--") :]
    document = changed(STANDARD, "containers/0/script", f"./webui.sh {text}")
    plain = settings_of(changed(STANDARD, "containers/0/script", "./webui.sh"), known_mounts=KNOWN)
    found = settings_of(document, known_mounts=KNOWN)
    assert {name: value for name, value in found.items() if value != plain[name]} == FLAGS[case]
    assert document_with(document, found, known_mounts=KNOWN) == document


def test_new_flags_stand_before_what_the_shell_does_with_the_output():
    document = changed(STANDARD, "containers/0/script", "cd /x && ./webui.sh --listen 2>&1 | tee log")
    found = settings_of(document, known_mounts=KNOWN)
    made = document_with(document, {**found, "time_log": True}, known_mounts=KNOWN)
    assert made["containers"][0]["script"] == "cd /x && ./webui.sh --listen --time-log 2>&1 | tee log"


def test_every_flag_of_the_documents_is_known():
    said = {flag.name for document in (STANDARD, API) for flag in flags_of(document["containers"][0]["script"])}
    assert said <= set(ARITIES)


@pytest.mark.parametrize(
    ("tag", "edition"),
    [("4.2", "standard"), ("4.2-standard", "standard"), ("4.2-api", "api"), ("4.2-cluster-webui", "cluster")],
)
def test_a9_the_image_says_the_edition_where_the_type_does_not(tag, edition):
    document = changed(STANDARD, "containers/0/image", f"registry:5000/pai-eas/stable-diffusion-webui:{tag}")
    assert settings_of(document, known_mounts=KNOWN)["edition"] == edition
    cluster = changed(document, "metadata/type", "SDCluster")
    assert settings_of(cluster, known_mounts=KNOWN)["edition"] == "cluster"


# --- what cannot be used ----------------------------------------------------------------------------------------------

WRONG = {
    "no name": ("metadata/name", ..., "metadata.name"),
    "a name with a slash": ("metadata/name", "a/b", "metadata.name"),
    "no metadata": ("metadata", [], "metadata"),
    "an instance that is none": ("metadata/instance", "1", "metadata.instance"),
    "no instance": ("metadata/instance", 0, "metadata.instance"),
    "too many instances": ("metadata/instance", 10_000, "metadata.instance"),
    "a truth as a number": ("metadata/instance", True, "metadata.instance"),
    "another type": ("metadata/type", "LLMGateway", "metadata.type"),
    "no worker threads": ("metadata/rpc.worker_threads", 0, 'metadata["rpc.worker_threads"]'),
    "too many worker threads": ("metadata/rpc.worker_threads", 5000, 'metadata["rpc.worker_threads"]'),
    "keepalive in words": ("metadata/rpc.keepalive", "5s", 'metadata["rpc.keepalive"]'),
    "a negative rate": ("metadata/rpc.rate_limit", -1, 'metadata["rpc.rate_limit"]'),
    "a rate no column holds": ("metadata/rpc.rate_limit", 10**12, 'metadata["rpc.rate_limit"]'),
    "a queue size of two kinds": ("metadata/rpc", {"max_queue_size": -2}, "metadata.rpc.max_queue_size"),
    "rpc that is no object": ("metadata/rpc", 3, "metadata.rpc"),
    "no delivery": ("queue/max_delivery", 0, "queue.max_delivery"),
    "a queue that is none": ("queue", 1, "queue"),
    "no containers": ("containers", [], "containers"),
    "no script": ("containers/0/script", ..., "containers[0].script"),
    "an open quotation": ("containers/0/script", "./webui.sh --theme 'dark", "containers[0].script"),
    "a flag without its value": ("containers/0/script", "./webui.sh --lora-dir --api", "containers[0].script"),
    "a flag with a value": ("containers/0/script", "./webui.sh --api-log=yes", "containers[0].script"),
    "RAM in words": ("containers/0/script", "./webui.sh --min-ram-reserved much", "containers[0].script"),
    "a data directory beside the mounts": ("containers/0/script", "./webui.sh --data-dir /elsewhere", "containers[0].script"),
    "A7 no storage": ("storage", ..., "storage"),
    "A7 storage in memory alone": ("storage", [{"empty_dir": {}, "mount_path": "/dev/shm"}], "storage"),
    "storage that is no list": ("storage", {}, "storage"),
    "an entry that is no object": ("storage/0", "oss://x", "storage[0]"),
    "no mount path": ("storage/1/mount_path", ..., "storage[1].mount_path"),
    "a relative mount path": ("storage/0/mount_path", "data", "storage[0].mount_path"),
    "a mount path that leads out": ("storage/0/mount_path", "/a/../../b", "storage[0].mount_path"),
    "a source that is no object": ("storage/0/oss", "oss://x", "storage[0].oss"),
    "an unknown key of ours": ("renderkiln", {"colour": 1}, "renderkiln.colour"),
    "a key of ours of another kind": ("renderkiln", {"max_frames": "x"}, "renderkiln.max_frames"),
    "a pool that is not there": ("renderkiln", {"pool": "none"}, "renderkiln.pool"),
    "frames above any column": ("renderkiln", {"max_frames": 10**12}, "renderkiln.max_frames"),
}  # fmt: skip


@pytest.mark.django_db
@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_document_names_the_key_and_stores_nothing(case):
    path, value, key = WRONG[case]
    with pytest.raises(InvalidRequestError) as refused:
        imported(changed(API, path, value))
    assert key in {error.field for error in refused.value.errors}
    assert all(error.message.startswith(error.field) for error in refused.value.errors)
    assert not EasService.objects.exists() and not ApiToken.objects.exists() and not User.objects.exists()


@pytest.mark.django_db
@pytest.mark.parametrize("value", [2, 1000])
def test_a2_a_standard_service_has_one_instance(value):
    with pytest.raises(InvalidRequestError, match=r"metadata\.instance.*one instance"):
        imported(changed(STANDARD, "metadata/instance", value))


@pytest.mark.parametrize(
    "text",
    ["", "nonsense", "[]", '{"a": 1, "a": 2}', '{"a": NaN}', "[" * 100_000, "1" * 5000, " " * 70_000 + "{}"],
    ids=["empty", "no JSON", "a list", "a key twice", "no number", "very deep", "a long number", "too long"],
)
def test_what_is_no_document_is_refused(text):
    with pytest.raises(InvalidRequestError):
        document_parsed(text)


@pytest.mark.django_db
def test_b5_a_name_is_given_once_and_a_second_import_changes_nothing():
    service = imported(API)
    with pytest.raises(ConflictError):
        imported(API)
    assert list(EasService.objects.all()) == [service] and ApiToken.objects.count() == 1


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "service.json"
    path.write_text("\ufeff" + json.dumps(API), encoding="utf-8")
    return path


@pytest.mark.django_db
def test_the_command_takes_a_document_and_prints_the_token_alone(file, capsys):
    call_command("create_service", "--team", "studio", "--document", str(file))
    token = capsys.readouterr().out.strip()
    assert Calls("/api/predict/sd_async", token).put() == 1
    call_command("create_service", "sd_second", "--team", "studio", "--document", str(file))
    assert service_document(EasService.objects.get(name="sd_second"))["metadata"]["name"] == "sd_second"


@pytest.mark.django_db
def test_the_command_says_every_key_that_is_wrong(file):
    file.write_text(json.dumps(changed(changed(API, "metadata/instance", 0), "storage", ...)))
    with pytest.raises(CommandError, match=r"metadata\.instance: (.|\n)*storage: "):
        call_command("create_service", "--team", "studio", "--document", str(file))
    with pytest.raises(CommandError, match="leave --edition and --mount out"):
        call_command("create_service", "--team", "studio", "--document", str(file), "--edition", "api")
    with pytest.raises(CommandError, match="cannot be read"):
        call_command("create_service", "--team", "studio", "--document", str(file) + "x")
    with pytest.raises(CommandError, match="name is missing"):
        call_command("create_service", "--team", "studio")
    assert not Team.objects.exists()
