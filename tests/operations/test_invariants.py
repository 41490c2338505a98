"""The checker is silent about what is right and finds each thing that is broken on purpose."""

from __future__ import annotations

import io
import os
import shutil
import threading
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from auditlog.models import LogEntry
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage, storages
from django.core.management import call_command
from django.db import connection, transaction
from django.db.models import QuerySet
from django.utils import timezone
from django_otp.plugins.otp_totp.models import TOTPDevice

from accounts.models import ApiToken, RecoveryCode
from assets.models import Asset, Upload, UploadPart, Wildcard
from assets.uploads import upload_append, upload_begin
from assets.zoo_models import ZooImport
from audit.models import Reading, Seal
from audit.reading import reading_note
from audit.sealing import seal_entries
from billing.deployments import deployments_settle
from billing.ledger import charges_of, reversals_append
from billing.models import (
    Budget,
    BudgetNotice,
    BudgetPeriod,
    DeploymentSpan,
    Hold,
    LedgerTransaction,
    OutgoingMail,
    Quota,
    StoredBytes,
)
from billing.ratecards import rate_card_publish
from common.database import append_only_removal_sql, frozen_removal_sql
from fleet.models import PassProfile
from operations.invariants import OBJECT_CHECKS, ROW_CHECKS, one_moment, violations
from renderjobs.claims import ClaimedBatch
from renderjobs.compat.eas import queues
from renderjobs.compat.eas.requests import Answer, request_answer, requests_take
from renderjobs.models import (
    Attempt,
    Claim,
    DirectoryImport,
    EasConsumer,
    EasDelivery,
    EasFrame,
    EasQueue,
    EasService,
    ImageAttachment,
    ImageReview,
    InputFile,
    JobApproval,
    JobEvent,
    OptionProfile,
    PromptExpansion,
    RenderImage,
    RenderJob,
    ScheduledRun,
    ScriptCall,
    TeamFile,
    TemplateVersion,
)
from renderjobs.submission import job_cancel
from tests.billing.budgets import a_budget
from tests.billing.deployed import a_service, logged
from tests.factories import a_caller, a_job, a_schedule, a_written_prompt, an_eas_service
from tests.renderjobs.test_delivery import begun, deliver, picture
from tests.services import PATIENCE_SECONDS

pytestmark = pytest.mark.django_db


class Undone(Exception):
    """Rolls a breakage back."""


@pytest.fixture
def delivered_job() -> RenderJob:
    """A scheduled job of two images, one delivered and one rendering, with the objects that belong to them; and half an upload."""
    import hashlib

    from renderjobs.delivery import StoredPicture, image_deliver

    caller = a_caller()
    a_budget("team", limit="1", team=caller.team, thresholds=((1, "notify"), (100, "block")))
    Quota.objects.create(team=caller.team, token=caller.token, measure="open_jobs", limit=9)
    job = a_job(caller, n_iter=2)
    a_written_prompt(caller)
    for asset in Asset.objects.all():
        storages["assets"].save(asset.file_key, ContentFile(b"w"))
    Asset.objects.update(size_bytes=1)
    default_storage.save("a.png", ContentFile(b"picture"))
    batch = begun()
    stored = StoredPicture(**{**picture_values(), "sha256": hashlib.sha256(b"picture").hexdigest()})
    image_deliver(batch=batch, image=batch.images[0], picture=stored, gpu_us=1_000_000)
    upload = upload_begin(uploaded_by=job.user, name="lora", kind="lora", size_bytes=10)
    upload_append(upload=upload, offset=0, part=io.BytesIO(b"part"))
    schedule = a_schedule(job.user, job.team)
    planned = timezone.now()
    body = default_storage.save("script.json", ContentFile(b"{}"))
    call = ScriptCall.objects.create(
        team=job.team, user=job.user, tab="txt2img", body_key=body, random_seed=1, created_at=planned
    )
    OptionProfile.objects.create(team=job.team, user=job.user)
    RenderJob.objects.update(schedule=schedule, scheduled_for=planned, script_call=call, script_cell=0)
    ScheduledRun.objects.create(schedule=schedule, planned_for=planned, outcome="submitted", job=job)
    a_watched_request(an_eas_service(team=job.team.name))
    a_deployed_service(job)
    job.refresh_from_db()
    return job


def a_deployed_service(job: RenderJob) -> None:
    """One that ran for an hour of a settled day."""
    rate_card_publish(
        name="instances",
        currency="USD",
        valid_from=datetime(2021, 5, 1, tzinfo=UTC),
        per_gpu_second=Decimal("0.001"),
        per_instance_hour=Decimal("0.01"),
    )
    a_budget("organisation", limit="1", span="total")
    start = datetime(2021, 5, 3, tzinfo=UTC)
    logged(a_service("deployed", team=job.team.name), (start, 1), (start + timedelta(hours=1), 0))
    deployments_settle()
    RenderJob.objects.filter(pk=job.pk).update(service=EasService.objects.get(name="sd_async"))


def a_watched_request(service: EasService) -> None:
    """One request in hand, one result with a consumer, who has a window of one."""
    requests, results = (queues.queue_of(service, kind) for kind in ("input", "sink"))
    queues.frames_put(queue=requests, frames=[queues.NewFrame(data=b"{}")] * 2)
    (taken, _) = requests_take()
    request_answer(taken=taken, answer=Answer(200, b"{}"))
    queues.frames_put(queue=results, frames=[queues.NewFrame(data=b"{}")])
    seat = queues.consumer_join(watch=queues.Watch(queue_id=results.pk, group="eas", uid="one"))
    assert len(queues.frames_take(seat=seat)) == 1


def with_another_consumer(**changes: str) -> None:
    watch = queues.Watch(queue_id=EasQueue.objects.get(kind="sink").pk, group="eas", uid="two")
    EasDelivery.objects.update(consumer=queues.consumer_join(watch=replace(watch, **changes)).consumer_id)


def beyond_its_window(job: RenderJob) -> None:
    consumer, frame = EasConsumer.objects.get(), EasFrame.objects.get(queue__kind="sink", answer_to=None)
    EasDelivery.objects.create(frame=frame, group="eas", consumer=consumer, connection=consumer.connection)


def picture_values() -> dict:
    made = picture("a.png")
    return {name: getattr(made, name) for name in made.__slots__}


def test_a_sound_installation_has_no_violation(delivered_job):
    assert list(violations()) == []


def a_reading_without_its_entry(job: RenderJob) -> None:
    reading_note(reader=a_caller("team-b", "bob").user, obj=job, owner_id=None, what="looked at the pictures")
    Reading.objects.update(entry_id=0)


def in_sql(*statements: str) -> None:
    """Change what the models would not allow, as only somebody with the database's keys could."""
    with transaction.atomic(), connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)


def unguarded(table: str, statement: str) -> None:
    in_sql(*append_only_removal_sql(table, connection.vendor), statement)


def image(job: RenderJob, state: str) -> QuerySet:
    return RenderImage.objects.filter(job=job, state=state)


def two_images_with_one_file(job: RenderJob) -> None:
    in_sql("DROP INDEX one_image_per_file")
    values = {"file_key": "a.png", "sha256": "0" * 64, "state": "delivered"}
    image(job, "rendering").update(**values)


def taken_back_too_much(job: RenderJob) -> None:
    charge = LedgerTransaction.objects.get(kind="charge")
    reversals_append([*charges_of([job.pk], [charge.pk])], note="root: noise")
    line = "UPDATE billing_ledgerline SET amount = 2 * amount WHERE transaction_id = "
    unguarded("billing_ledgerline", line + str(LedgerTransaction.objects.get(kind="reversal").pk))


def charged_twice(job: RenderJob) -> None:
    in_sql("DROP INDEX one_charge_per_image")
    entry = LedgerTransaction.objects.get(kind="charge")
    entry.pk, entry.event_id = None, "charge:again"
    entry.save(force_insert=True)


def an_old_object_of_nobody(job: RenderJob) -> None:
    key = default_storage.save("lost/b.png", ContentFile(b"x"))
    os.utime(default_storage.path(key), (0, 0))


def an_unknown_failure(job: RenderJob) -> None:
    entry = LedgerTransaction.objects.get(kind="charge")
    entry.pk, entry.event_id, entry.kind, entry.attempt_id = None, "failed:1", "overhead", 10**9
    entry.save(force_insert=True)


def a_notice_of_another_budget(job: RenderJob) -> None:
    other = a_budget("team", limit="1", team=job.team)
    BudgetNotice.objects.update(threshold=other.thresholds.get())


def two_second_factors(job: RenderJob) -> None:
    TOTPDevice.objects.bulk_create(TOTPDevice(user=job.user, name=name) for name in ("one", "two"))


def a_team_file(job: RenderJob, **changes: object) -> TeamFile:
    values = {"path": "a.png", "file_key": f"{job.team_id}/files/a.png", "sha256": "0" * 64, "size_bytes": 1}
    return TeamFile.objects.create(
        **{**values, "team": job.team, "made_at": timezone.now(), "created_at": timezone.now(), **changes}
    )


BREAKAGES = {
    "P13 two second factors": two_second_factors,
    "P13 codes without a second factor": lambda job: RecoveryCode.objects.create(user=job.user, digest="0" * 64),
    "U3 a review of no picture": lambda job: ImageReview.objects.create(
        image=image(job, "rendering").get(), rating=3, user=job.user
    ),
    "P12 a network that is none": lambda job: ApiToken.objects.update(networks=["10.1.2.3/8"]),
    "I1 counters": lambda job: RenderJob.objects.filter(pk=job.pk).update(images_delivered=2),
    "I1 total": lambda job: RenderJob.objects.filter(pk=job.pk).update(images_total=3),
    "I1 state": lambda job: RenderJob.objects.filter(pk=job.pk).update(state="succeeded"),
    "I1 left open": lambda job: RenderImage.objects.filter(job=job).exclude(state="delivered").update(state="failed"),
    "I2 shared": two_images_with_one_file,
    "I3 charged twice": charged_twice,
    "I3 ledger transaction": taken_back_too_much,
    "I3 uncharged": lambda job: image(job, "rendering").update(state="delivered", file_key="b.png", sha256="0" * 64),
    "I3 image's cost": lambda job: image(job, "delivered").update(cost_amount=5),
    "I3 image's time": lambda job: image(job, "delivered").update(gpu_us=5),
    "I3 job's time": lambda job: RenderJob.objects.filter(pk=job.pk).update(gpu_us=5),
    "I3 a line short": lambda job: unguarded(
        "billing_ledgerline", "DELETE FROM billing_ledgerline WHERE account = 'render_revenue'"
    ),
    "I3 charge": lambda job: unguarded(
        "billing_ledgertransaction", "UPDATE billing_ledgertransaction SET image_id = image_id + 1000"
    ),
    "I3 sum": lambda job: unguarded("billing_ledgerline", "UPDATE billing_ledgerline SET amount = amount + 1"),
    "I3 cost": lambda job: RenderJob.objects.filter(pk=job.pk).update(cost_amount=5),
    "I4 ended": lambda job: Hold.objects.update(ended_at=timezone.now(), remaining=0),
    "I4 nobody's": lambda job: Hold.objects.update(job_id=uuid.uuid4()),
    "I4 open": lambda job: RenderJob.objects.filter(pk=job.pk).update(state="cancelled"),
    "I4 settled": lambda job: Hold.objects.update(settled=Decimal("0.002")),
    "I4 amount": lambda job: Hold.objects.update(amount=9),
    "I4 spent": lambda job: BudgetPeriod.objects.update(spent=0),
    "I4 held": lambda job: BudgetPeriod.objects.update(held=0),
    "I4 exceeded": lambda job: BudgetPeriod.objects.update(most=Decimal("0.01")),
    "M7 usage": an_unknown_failure,
    "M9 held": lambda job: RenderJob.objects.filter(pk=job.pk).update(state="held"),
    "M9 open": lambda job: JobApproval.objects.create(
        job=job, budget=Budget.objects.get(scope="team"), asked_at=timezone.now()
    ),
    "M9 image": lambda job: image(job, "rendering").update(state="waiting", held=True),
    "M9 paused": lambda job: (
        RenderJob.objects.filter(pk=job.pk).update(paused_at=timezone.now()),
        image(job, "rendering").update(state="waiting"),
    ),
    "M9 notice": a_notice_of_another_budget,
    "P14 entry": lambda job: (seal_entries(), LogEntry.objects.filter(pk=Seal.objects.first().entry_id).delete()),
    "P14 reading": a_reading_without_its_entry,
    "M12 bytes": lambda job: StoredBytes.objects.update(size_bytes=-1),
    "M9 mail": lambda job: OutgoingMail.objects.create(key="a", to="a@example.com", subject="a", text="a", due_at=None),
    "M12 token": lambda job: Quota.objects.update(team=a_caller("team-b", "bob").team),
    "I6 attempt": lambda job: Attempt.objects.filter(ended_at=None).update(fence=99),
    "I7 ended claim": lambda job: Claim.objects.update(ended_at=timezone.now()),
    "I7 prompt's claim": lambda job: PromptExpansion.objects.update(claim=Claim.objects.first()),
    "I7 prompts": lambda job: PromptExpansion.objects.update(count=2),
    "H5": lambda job: PassProfile.objects.create(images=1, seen_at=timezone.now()),
    "I9 sequence": lambda job: RenderJob.objects.filter(pk=job.pk).update(event_sequence=99),
    "I9 arrow": lambda job: JobEvent.objects.filter(to_state="claimed", image_index=0).update(to_state="failed"),
    "I9 chain": lambda job: JobEvent.objects.filter(to_state="rendering", image_index=0).update(from_state="waiting"),
    "I9 job's state": lambda job: RenderJob.objects.filter(pk=job.pk).update(state="queued"),
    "I10 two": lambda job: Attempt.objects.filter(ended_at=None).update(
        outcome="delivered", image=image(job, "delivered").get(), fence=99
    ),
    "I19": an_old_object_of_nobody,
    "P15 unseen": lambda job: RenderJob.objects.filter(pk=job.pk).update(request={**job.request, "safety": "blur"}),
    "P4 hash": lambda job: Asset.objects.update(sha256=""),
    "P4 retired": lambda job: Asset.objects.update(state="retired", is_default=False, size_bytes=2),
    "R8 card": lambda job: in_sql(*frozen_removal_sql("billing_rateprice", connection.vendor, inserts=True)),
    "R8": lambda job: unguarded("billing_ledgerline", "SELECT 1"),
    "I7": lambda job: RenderImage.objects.filter(job=job, state="rendering").update(state="waiting"),
    "I9 gap": lambda job: JobEvent.objects.filter(job=job, sequence=2).delete(),
    "I9 state": lambda job: RenderImage.objects.filter(job=job, state="rendering").update(state="claimed"),
    "I10": lambda job: Attempt.objects.filter(image__job=job).update(outcome="lost"),
    "P4 default": lambda job: Asset.objects.update(state="retired"),
    "I2 missing": lambda job: default_storage.delete("a.png"),
    "I2 input": lambda job: InputFile.objects.create(
        team=job.team, sha256="0" * 64, file_key="nowhere", size_bytes=1, width=1, height=1, created_at=timezone.now()
    ),
    "I2 team file": lambda job: a_team_file(job),
    "D7 another team's": lambda job: a_team_file(job, file_key=f"{job.team_id}0/files/a.png", state="arriving"),
    "D7 public": lambda job: a_team_file(job, file_key="public/files/a.png", state="arriving"),
    "D7 delivered": lambda job: (
        image(job, "delivered").update(file_key=f"{job.team_id}/files/a.png"),
        a_team_file(job, state="arriving"),
    ),
    "D7 leaving": lambda job: a_team_file(job, state="leaving", state_at=timezone.now() - timedelta(days=2)),
    "D8 left": lambda job: DirectoryImport.objects.create(
        team=job.team, directory="/x", created_at=timezone.now()
    ).left.create(path="a.png", what="picture", why="broken"),
    "D8 fetched": lambda job: ZooImport.objects.create(
        entry="x", state="ended", created_at=timezone.now(), asset=Asset.objects.get(upload__isnull=False)
    ),
    "D8 nobody fetches": lambda job: ZooImport.objects.create(entry="x", state="running", created_at=timezone.now()),
    "D8 nobody's": lambda job: DirectoryImport.objects.create(
        team=job.team, directory="/x", created_at=timezone.now(), state="running"
    ),
    "I2 attachment": lambda job: ImageAttachment.objects.create(
        image=image(job, "delivered").get(),
        position=0,
        role="mask",
        file_key="nowhere",
        sha256="0" * 64,
        size_bytes=1,
        width=1,
        height=1,
    ),
    "P4 pinned": lambda job: Asset.objects.update(state="quarantined"),
    "I2 other bytes": lambda job: (default_storage.delete("a.png"), default_storage.save("a.png", ContentFile(b"x"))),
    "P2 bytes": lambda job: Upload.objects.update(received_bytes=9),
    "P2 settled": lambda job: Asset.objects.filter(upload__isnull=False).update(state="quarantined"),
    "P2 object": lambda job: storages["assets"].delete(UploadPart.objects.get().key),
    "J12 time": lambda job: RenderJob.objects.filter(schedule__isnull=False).update(scheduled_for=timezone.now()),
    "J20 gap": lambda job: TemplateVersion.objects.update(number=2),
    "C3 open": lambda job: ScriptCall.objects.update(ended_at=timezone.now()),
    "C3 option": lambda job: OptionProfile.objects.update(values={"nope": 1}),
    "C6 texts": lambda job: RenderJob.objects.filter(pk=job.pk).update(lock={**job.lock, "own": [{}]}),
    "C6 lines": lambda job: Wildcard.objects.create(name="colours", text="red\n\nblue"),
    "C3 request": lambda job: default_storage.delete(ScriptCall.objects.get().body_key),
    "C9 token": lambda job: EasService.objects.update(team=a_caller("team-b", "bob").team),
    "C9 queues": lambda job: EasQueue.objects.filter(kind="sink").delete(),
    "C9 edition": lambda job: EasService.objects.update(mounts={}),
    "C9 setting": lambda job: EasService.objects.update(hidden_tabs={"a": 1}),
    "C9 document": lambda job: EasService.objects.update(document="{"),
    "C9 script": lambda job: ScriptCall.objects.update(service=an_eas_service("theirs", team="rivals")),
    "C9 index": lambda job: EasQueue.objects.update(last_index=0),
    "C9 result": lambda job: EasFrame.objects.filter(queue__kind="input").update(answer_to=9),
    "C9 request": lambda job: EasFrame.objects.filter(queue__kind="sink").update(taken_until=timezone.now()),
    "C9 answered": lambda job: EasFrame.objects.filter(answer_to=1).update(answer_to=2),
    "C9 group": lambda job: with_another_consumer(group="other"),
    "C9 window": beyond_its_window,
    "P2 picture": lambda job: Asset.objects.update(preview_key="previews/nowhere.webp"),
    "C9 job": lambda job: RenderJob.objects.update(service=an_eas_service("theirs", team="team-b")),
    "J6 replicas": lambda job: EasService.objects.update(replicas=2),
    "J6 stopped": lambda job: EasService.objects.update(enabled=False),
    "J6 gap": lambda job: DeploymentSpan.objects.filter(ended_at=None).update(started_at=timezone.now()),
    "J6 no successor": lambda job: DeploymentSpan.objects.filter(ended_at=None).delete(),
    "J6 clock": lambda job: unguarded(
        "billing_deploymentday", "UPDATE billing_deploymentday SET billed_us = billed_us + 1"
    ),
    "J6 unsettled": lambda job: unguarded("billing_deploymentday", "DELETE FROM billing_deploymentday"),
    "I4 instances": lambda job: BudgetPeriod.deployments.through.objects.all().delete(),
    "R8 span": lambda job: in_sql(*frozen_removal_sql("billing_deploymentspan", connection.vendor, inserts=False)),
    "P4 file": lambda job: Asset.objects.update(size_bytes=2),
}


def test_each_breakage_is_found_and_each_check_finds_one(delivered_job, tmp_path):
    """A check that no breakage above can wake would be silent for ever."""
    checks = (*ROW_CHECKS, *OBJECT_CHECKS)
    assert len(set(checks)) == len(checks)
    woken, unfound = set(), {}
    shutil.copytree(tmp_path, kept := tmp_path / "kept")
    for name, broken in BREAKAGES.items():
        with suppress(Undone), transaction.atomic():
            broken(delivered_job)
            found = {check.__name__: list(check()) for check in checks}
            woken |= {check for check, lines in found.items() if lines}
            if not any(line.startswith(name.split()[0]) for lines in found.values() for line in lines):
                unfound[name] = found
            raise Undone
        for folder in kept.iterdir():  # what is stored does not come back with the rows
            shutil.rmtree(tmp_path / folder.name)
            shutil.copytree(folder, tmp_path / folder.name)
    assert unfound == {} and woken == {check.__name__ for check in checks}


def test_a_young_object_without_a_row_is_no_violation(delivered_job):
    default_storage.save("lost/b.png", ContentFile(b"x"))
    assert list(violations()) == []


def test_several_jobs_in_all_states_have_no_violation(delivered_job):
    a_job(n_iter=3)
    job_cancel(job=a_job(n_iter=2))
    job_cancel(job=delivered_job)
    assert list(violations()) == []


def test_costs_that_are_no_binary_fractions_add_up(delivered_job):
    job_cancel(job=delivered_job)
    a_job(n_iter=30)
    while (batch := begun_or_none()) is not None:
        for position, _ in enumerate(batch.images):
            key = f"{batch.claim_id}-{position}.png"
            deliver(batch, position, key=key, gpu_us=1_234_567 + 7919 * batch.images[position].image_id)
    assert list(violations(objects=False)) == []


def begun_or_none() -> ClaimedBatch | None:
    return begun() if RenderImage.objects.filter(state="waiting").exists() else None


@pytest.mark.django_db(transaction=True)
def test_the_check_sees_one_moment_and_keeps_nobody_from_writing(delivered_job):
    with one_moment():
        before = JobEvent.objects.count()
        writer = threading.Thread(target=in_another_connection, args=(lambda: job_cancel(job=delivered_job),))
        writer.start()
        writer.join(PATIENCE_SECONDS)
        assert not writer.is_alive() and JobEvent.objects.count() == before
    assert JobEvent.objects.count() > before and list(violations()) == []


def in_another_connection(act: Callable[[], object]) -> None:
    try:
        act()
    finally:
        connection.close()


def test_check_invariants_is_silent_or_prints_one_line_per_violation(delivered_job, capsys):
    call_command("check_invariants")
    assert capsys.readouterr().out == ""
    default_storage.delete("a.png")
    call_command("check_invariants", "--skip-storage")
    with pytest.raises(SystemExit, match="1"):
        call_command("check_invariants")
    assert capsys.readouterr().out.count("\n") == 1
