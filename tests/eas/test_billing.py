"""Every job knows the service it came through, by whatever way; the service's page says what it costs (J5, J7)."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import timedelta

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from accounts.models import User
from billing.models import DeploymentSpan
from renderjobs.models import EasService, RenderJob, ScriptCall
from renderjobs.submission import job_repeat
from tests.billing.deployed import a_priced_platform, a_service, rendered
from tests.eas.calls import Calls
from tests.eas.test_requests import SMALL, gpu_worker, put, work_off  # noqa: F401  a fixture among them
from tests.factories import a_caller, a_job, a_platform, a_pool, an_eas_service

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("gpu_worker")]
TXT2IMG = "/sdapi/v1/txt2img"
BODY = json.dumps(SMALL).encode()


def queued(service: EasService) -> None:
    put(service)
    work_off()


def queued_with_the_token_of_a_member(service: EasService) -> None:
    Calls(Calls.to(service).path, a_caller(service.team.name).token.text).put(BODY, path=TXT2IMG)
    work_off()


def at_its_address(service: EasService) -> None:
    EasService.objects.filter(pk=service.pk).update(edition="standard")
    service.queues.all().delete()
    member = a_caller(service.team.name)
    assert Calls(Calls.to(service).path, member.token.text).call("POST", path=TXT2IMG, body=BODY).status_code == 200


def sent(service: EasService, address: str, body: dict) -> None:
    headers = {"Authorization": f"Bearer {service.token.text}"}
    assert Client().post(address, body, content_type="application/json", headers=headers).status_code in (200, 201)


def with_its_token_at_the_web_api(service: EasService) -> None:
    sent(service, TXT2IMG, SMALL)


def with_its_token_at_the_job_api(service: EasService) -> None:
    service.token.__class__.objects.filter(pk=service.token.pk).update(scopes=["jobs:write"])
    sent(service, "/api/v1/jobs", {"kind": "txt2img", "request": {"prompt": "a ring"}})


def a_script_in_the_queue(service: EasService) -> None:
    put(service, {**SMALL, "script_name": "Prompt matrix", "script_args": [False, False, "positive", "comma", 0]})
    work_off()
    assert ScriptCall.objects.get().service == service


@pytest.mark.parametrize(
    "call",
    [
        queued,
        queued_with_the_token_of_a_member,
        at_its_address,
        with_its_token_at_the_web_api,
        with_its_token_at_the_job_api,
        a_script_in_the_queue,
    ],
)
def test_a_job_knows_its_service_and_goes_to_its_pool(call: Callable[[EasService], None]):
    a_platform()
    service = an_eas_service(pool=a_pool())
    a_pool("another")
    call(service)
    job = RenderJob.objects.get()
    assert (job.service, job.pool.name, job.team) == (service, "default", service.team)


def test_a_job_that_came_through_no_service_has_none_and_so_has_its_repetition():
    a_platform()
    service = an_eas_service()
    assert a_job(a_caller(service.team.name)).service is None
    queued(service)
    job = RenderJob.objects.get(service=service)
    assert job_repeat(job=job, user=a_caller(service.team.name).user, source="admin").service is None


def test_the_job_api_and_the_jobs_page_name_the_service():
    a_priced_platform()
    service, caller = a_service("sd"), a_caller()
    job = rendered(service, caller, timezone.now(), 2_000_000)
    client = Client(headers={"Authorization": f"Bearer {caller.token.text}"})
    assert client.get(f"/api/v1/jobs/{job.pk}").json()["service"] == "sd"
    assert client.get("/api/v1/jobs").json()["results"][0]["service"] == "sd"
    root = Client()
    root.force_login(User.objects.create_superuser("root"))
    assert ">sd<" in root.get(reverse("admin:renderjobs_renderjob_change", args=[job.pk])).content.decode()
    listed = root.get(reverse("admin:renderjobs_renderjob_changelist"), {"q": "sd"})
    assert [row.pk for row in listed.context["cl"].result_list] == [job.pk]


def page_of(service: EasService) -> str:
    root = Client()
    root.force_login(User.objects.get_or_create(username="root", is_staff=True, is_superuser=True)[0])
    return root.get(reverse("admin:renderjobs_easservice_change", args=[service.pk])).content.decode()


def test_a_services_page_shows_the_months_pictures_and_instances():
    a_priced_platform()
    service = a_service("sd", replicas=2)
    rendered(service, a_caller(), timezone.now(), 1_500_000)
    DeploymentSpan.objects.filter(service="sd").update(started_at=timezone.now() - timedelta(seconds=36))
    body = page_of(service)
    assert "1 pictures in 1.500 s of GPU time; on the bill 0.000000 USD" in body
    assert re.search(r"Not settled yet: 0\.\d\d instance hours in pool default, 0\.\d{6} USD so far", body)


def test_a_services_page_says_when_nothing_is_billed_and_that_serverless_never_is():
    a_priced_platform(None)
    service, free = a_service("sd"), a_service("free", edition="serverless")
    DeploymentSpan.objects.update(started_at=timezone.now() - timedelta(seconds=36))
    said = r"Not billed: 0\.\d\d instance hours in pool default, for no rate card in force has a price for them"
    assert re.search(said, page_of(service))
    body = page_of(free)
    assert "Serverless: only the time of pictures is billed" in body and "instance hours" not in body
