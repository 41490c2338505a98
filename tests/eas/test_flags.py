"""What a service's flags change in the answers and the log: hidden tabs, ``cmd-flags``, lines per call."""

from __future__ import annotations

import json
import logging
import re
from typing import Any

import pytest
from django.test import Client

from renderjobs.compat.eas import synchronous
from renderjobs.models import EasService, RenderJob
from tests.eas.calls import Calls
from tests.eas.documents import API, RICH
from tests.eas.test_documents import imported
from tests.eas.test_requests import SMALL, gpu_worker, put, work_off  # noqa: F401  one is a fixture
from tests.eas.test_synchronous import time_is_up  # noqa: F401  a fixture
from tests.factories import a_caller, a_platform, an_eas_service

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("gpu_worker")]
TXT2IMG = "/sdapi/v1/txt2img"
LOG = "renderjobs.compat.eas.call_log"
SECONDS = r"in \d+\.\d{3} s"


def read(token: str, path: str) -> dict[str, Any]:
    return Client().get(f"/sdapi/v1/{path}", headers={"Authorization": token}).json()


def test_c7_hidden_tabs_are_an_option_as_a1111_has_it():
    service = an_eas_service("sd", edition="standard", hidden_tabs=["Extensions", "Train"])
    member = a_caller("team-a", "ada").token.text
    at_the_address = Calls.to(service).call("GET", path="/sdapi/v1/options", Authorization=member).json()
    assert (
        read(service.token.text, "options")["hidden_tabs"] == at_the_address["hidden_tabs"] == ["Extensions", "Train"]
    )
    assert read(member, "options")["hidden_tabs"] == []


def test_c7_a_caller_gives_back_what_it_read_and_shows_no_hidden_tab():
    a_platform()
    service = an_eas_service("sd", edition="standard", hidden_tabs=["Extensions"])
    header = {"Authorization": service.token.text}
    for tabs, status in ((["Extensions"], 200), ([], 501)):
        given = json.dumps({**read(service.token.text, "options"), "hidden_tabs": tabs})
        assert Client().post("/sdapi/v1/options", given, "application/json", headers=header).status_code == status
        assert read(service.token.text, "options")["hidden_tabs"] == ["Extensions"]


def test_cmd_flags_are_those_of_the_services_command_as_it_is_set_today():
    service, member = imported(RICH), a_caller("team-a", "ada").token.text
    plain = read(member, "cmd-flags")
    flags = Calls(f"/api/predict/{service.name}", member).call("GET", path="/sdapi/v1/cmd-flags").json()
    assert {name: value for name, value in flags.items() if value != plain.get(name)} == {
        "listen": True, "port": 8000, "skip_version_check": True, "no_hashing": True, "no_download_sd_model": True,
        "skip_prepare_environment": True, "xformers": True, "cluster_status": True, "lora_dir": "/mnt/data/models/Lora",
        "vae_dir": "/mnt/data/models/VAE", "root_extensions": True, "always_hide_tabs": ["Checkpoint Merger", "Train"],
        "sd_dynamic_cache": True, "min_ram_reserved": "40.5", "enable_nsfw_censor": True, "data_dir": "/mnt/data",
    }  # fmt: skip
    EasService.objects.update(public_folders=[], hidden_tabs=[])
    flags = Calls(f"/api/predict/{service.name}", member).call("GET", path="/sdapi/v1/cmd-flags").json()
    assert flags["lora_dir"] == plain.get("lora_dir") and "always_hide_tabs" not in flags


# --- the log ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def lines(caplog):
    caplog.set_level(logging.INFO, logger=LOG)
    return lambda: [record.getMessage() for record in caplog.records if record.name == LOG]


def a_service(**flags: Any) -> EasService:
    a_platform()
    return an_eas_service("sd", edition="standard", **flags)


def called(service: EasService, path: str = TXT2IMG, **changes: Any) -> int:
    body = json.dumps({**SMALL, **changes}).encode()
    return Calls.to(service).call("POST", {"secret": "q"}, path=path, body=body).status_code


def test_c9_nothing_is_logged_unless_it_is_asked_for(lines):
    assert called(a_service()) == 200 and lines() == []


@pytest.mark.parametrize("flag", ["api_log", "time_log"])
def test_c9_each_call_is_one_line_with_path_status_and_seconds(lines, flag):
    service = a_service(**{flag: True})
    assert called(service) == 200 and called(service, steps="many") == 422
    assert called(service, "/sdapi/v1/nothing%1B[1m") == 404
    Client().get("/sdapi/v1/samplers?secret=q", headers={"Authorization": service.token.text})
    starts = [
        "sd: POST /sdapi/v1/txt2img answered 200", "sd: POST /sdapi/v1/txt2img answered 422",
        "sd: POST /sdapi/v1/nothing?[1m answered 404", "sd: GET /sdapi/v1/samplers answered 200",
    ]  # fmt: skip
    assert [line.partition(" in ")[0] for line in lines()] == starts
    assert all(bool(re.search(f" {SECONDS}$", line)) == (flag == "time_log") for line in lines())
    said = "".join(lines())
    assert service.token.text not in said and "secret" not in said and SMALL["prompt"] not in said


def test_c9_a_queued_call_is_logged_when_it_is_made(lines):
    a_platform()
    service = an_eas_service(time_log=True)
    put(service)
    assert lines() == [] and work_off() == 1
    (line,) = lines()
    assert line.startswith("sd_async: POST /sdapi/v1/txt2img answered 200 in ")


def test_c9_calls_that_are_refused_or_take_too_long_are_logged_too(lines, monkeypatch, time_is_up):  # noqa: F811
    service = a_service(time_log=True)
    assert called(service) == 408 and RenderJob.objects.count() == 1
    monkeypatch.setitem(synchronous._running, service.pk, service.max_queue_size)
    assert called(service) == 450
    first, second = lines()
    assert re.search(rf" answered 408 {SECONDS}$", first) and re.search(rf" answered 450 {SECONDS}$", second)


def test_c9_the_api_document_asks_for_both(lines):
    a_platform()
    service = imported(API)
    assert service.api_log and service.time_log
