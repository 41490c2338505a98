"""What tests of the admin share: a signed-in client, addresses, a team in which every page has a row."""

from __future__ import annotations

import io

from django.apps import apps
from django.contrib import admin
from django.db.models import Model
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from accounts.models import User
from assets.zoo_models import ZooImport
from billing.models import BillingProfile, OutgoingMail, Quota
from renderjobs.models import BatchSchedule, BatchTemplate, DirectoryImport, RenderJob, SafetyPolicy
from renderjobs.saved_batches import template_save
from renderjobs.schedules import schedule_sync
from renderjobs.team_files import file_upload
from tests.billing.budgets import a_budget
from tests.factories import a_caller, a_job, a_written_prompt, an_eas_service
from tests.renderjobs.test_delivery import begun, deliver


def client_of(user: User) -> Client:
    client = Client()
    client.force_login(user)
    return client


def rendered_job(team: str, user: str) -> RenderJob:
    """A delivered and charged job, with a row of the same team for every page of teams."""
    caller = a_caller(team, user)
    a_budget("team", limit="1", team=caller.team, thresholds=((1, "notify"),))
    Quota.objects.create(team=caller.team, measure="open_jobs", limit=9)
    BillingProfile.objects.create(team=caller.team)
    job = a_job(caller)
    deliver(begun(), key=f"{team}.png")
    a_written_prompt(caller)
    an_eas_service(f"sd-{team}", team=team)
    SafetyPolicy.objects.create(team=caller.team, mode="off")
    template = BatchTemplate(team=job.team, name=f"of {team}")
    template_save(template=template, user=caller.user, kind="txt2img", request={}, locked=[])
    schedule_sync(BatchSchedule.objects.create(template=template))
    file_upload(team=job.team, folder="data", name=f"{team}.txt", file=io.BytesIO(b"notes"), user=caller.user)
    OutgoingMail.objects.create(key=team, to="ada@example.com", subject="a notice", text="of a budget")
    DirectoryImport.objects.create(team=job.team, directory="/data", created_at=timezone.now(), state="ended")
    ZooImport.objects.create(entry="sd15", created_at=timezone.now(), state="ended")
    return job


def page(name: str, kind: str, *args: object) -> str:
    return reverse(f"admin:{name}_{kind}", args=args)


def model_of(name: str) -> type[Model]:
    return apps.get_model(name.replace("_", ".", 1))


def one_of(name: str, *, team: str = "") -> object:
    """The key of the newest row that the page ``app_model`` lists, or of the newest of a team."""
    rows = model_of(name).objects.order_by("-pk")
    if team:
        steps = [step for step in admin.site.get_model_admin(model_of(name)).team_path.split("__") if step != "pk"]
        rows = rows.filter(**{"__".join([*steps, "name"]): team})
    return rows.first().pk
