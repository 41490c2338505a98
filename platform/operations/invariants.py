"""What must be true of database and storage at any moment, after any fault (engineering.md, section 2.1). Reads only.

One generator per invariant; each yields one sentence per violation. The database finds the rows that are wrong, so a sound
installation costs a few statements and one pass over the events; objects are read one by one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from decimal import Decimal
from typing import Any

from auditlog.models import LogEntry
from django.core.exceptions import ValidationError
from django.core.files.storage import default_storage, storages
from django.db import connection, transaction
from django.db.models import (
    BigIntegerField,
    Case,
    CharField,
    Count,
    DecimalField,
    Exists,
    F,
    Max,
    OuterRef,
    Q,
    QuerySet,
    Subquery,
    Sum,
    Value,
    When,
)
from django.db.models.functions import Cast, Coalesce, Concat, Round
from django.utils import timezone
from django_otp.plugins.otp_totp.models import TOTPDevice

from accounts.models import ApiToken, RecoveryCode
from accounts.services import networks_read
from assets.hashing import sha256_of
from assets.intake import UNDERWAY
from assets.models import Asset, AssetState, Upload, UploadPart, Wildcard
from assets.zoo_models import ZooImport, ZooState
from audit.models import Reading
from audit.sealing import broken_seals
from billing.deployments import wrong_days
from billing.models import (
    Account,
    BudgetNotice,
    BudgetPeriod,
    DeploymentSpan,
    Hold,
    LedgerLine,
    LedgerTransaction,
    OutgoingMail,
    Quota,
    TransactionKind,
    UsageRecord,
)
from common.database import ValueOfKey
from common.errors import InvalidRequestError
from fleet.models import PassProfile
from gpuworker.contract.safety import VERDICT_OF_MODE
from renderjobs.choices import (
    IMAGE_ARROWS,
    IMAGE_HELD,
    IMAGE_TERMINAL,
    JOB_ARROWS,
    JOB_OPEN,
    JOB_TERMINAL,
    AttemptOutcome,
    ExpansionState,
    ImageState,
    JobKind,
    JobState,
    RunOutcome,
)
from renderjobs.compat.sdapi.profile import default_options
from renderjobs.models import (
    Attempt,
    BatchTemplate,
    Claim,
    DirectoryImport,
    EasConsumer,
    EasDelivery,
    EasEdition,
    EasFrame,
    EasQueue,
    EasService,
    FileState,
    ImageAttachment,
    ImageReview,
    ImportState,
    InputFile,
    JobApproval,
    JobEvent,
    OptionProfile,
    PromptExpansion,
    QueueKind,
    RenderImage,
    RenderJob,
    ScheduledRun,
    ScriptCall,
    TeamFile,
)
from renderjobs.outputs import PUBLIC_FILES
from renderjobs.stored_files import bytes_astray

ORPHAN_AGE = timedelta(hours=24)
APPEND_ONLY_TABLES = (
    "billing_ledgertransaction",
    "billing_ledgerline",
    "billing_ratecard",
    "billing_rateprice",
    "billing_deploymentday",
    "billing_deploymentspan",
    "audit_seal",
)
MONEY_PLACES = 6
GUARDED_TABLES = {
    "sqlite": "SELECT tbl_name FROM sqlite_master WHERE type = 'trigger' "
    "AND (sql LIKE '%BEFORE UPDATE%' OR sql LIKE '%BEFORE DELETE%') GROUP BY tbl_name HAVING COUNT(*) = 2",
    # Of tgtype: 8 is DELETE, 16 is UPDATE. A disabled trigger guards nothing.
    "postgresql": "SELECT relname FROM pg_trigger JOIN pg_class ON pg_class.oid = tgrelid "
    "WHERE NOT tgisinternal AND tgenabled <> 'D' AND tgtype & 24 = 24",
}
"""Tables whose triggers refuse both UPDATE and DELETE."""


def violations(*, objects: bool = True) -> Iterator[str]:
    """Every violation. ``objects`` False leaves the storage unread."""
    with one_moment():
        found = [line for check in ROW_CHECKS for line in check()]
    yield from found
    if objects:
        for check in OBJECT_CHECKS:
            yield from check()


@contextmanager
def one_moment() -> Iterator[None]:
    """All statements inside see one state of the database; work goes on meanwhile.

    Inside a caller's transaction, that one decides.
    """
    if connection.in_atomic_block:
        yield
    elif connection.vendor == "sqlite":
        # Django's own transactions take the write lock at once, and nobody could write until the check ends.
        with connection.cursor() as cursor:
            cursor.execute("BEGIN DEFERRED")
            try:
                yield
            finally:
                cursor.execute("ROLLBACK")
    else:
        with transaction.atomic():
            with connection.cursor() as cursor:
                cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            yield


def i1_counters_of_a_job_are_its_images() -> Iterator[str]:
    for job in jobs_counted().exclude(
        n_delivered=F("images_delivered"),
        n_failed=F("images_failed"),
        n_cancelled=F("images_cancelled"),
        n_all=F("images_total"),
    ):
        said = (job.images_delivered, job.images_failed, job.images_cancelled, job.images_total)
        has = (job.n_delivered, job.n_failed, job.n_cancelled, job.n_all)
        yield f"I1 job {job.pk} counts {said} delivered, failed, cancelled, total images; it has {has}."


def i1_a_job_is_open_exactly_while_an_image_is() -> Iterator[str]:
    jobs = jobs_counted().annotate(n_ended=F("n_delivered") + F("n_failed") + F("n_cancelled"))
    closed_too_early = Q(state__in=JOB_TERMINAL) & ~Q(n_ended=F("n_all"))
    left_open = Q(state__in=JOB_OPEN, n_ended=F("n_all"))
    for job in jobs.filter(closed_too_early | left_open):
        yield f"I1 job {job.pk} is {job.state} with {job.n_ended} of {job.n_all} images ended."


def i2_no_two_images_share_a_file() -> Iterator[str]:
    keys = RenderImage.objects.exclude(file_key="").order_by().values("file_key")
    for row in keys.annotate(n=Count("pk")).filter(n__gt=1):
        yield f"I2 {row['n']} images have the one object {row['file_key']}."


def i3_delivered_images_and_charges_are_one_to_one() -> Iterator[str]:
    charges = LedgerTransaction.objects.filter(kind=TransactionKind.CHARGE)
    delivered = RenderImage.objects.filter(state=ImageState.DELIVERED)
    for pk in pks(delivered.exclude(Exists(charges.filter(image_id=OuterRef("pk"))))):
        yield f"I3 image {pk} is delivered and not charged."
    uncovered = charges.exclude(Exists(delivered.filter(pk=OuterRef("image_id"))))
    for image_id in uncovered.values_list("image_id", flat=True):
        yield f"I3 image {image_id} is charged and not delivered."
    for row in charges.order_by().values("image_id").annotate(n=Count("pk")).filter(n__gt=1):
        yield f"I3 image {row['image_id']} is charged {row['n']} times."


def i3_ledger_transactions_sum_to_zero() -> Iterator[str]:
    summed = LedgerTransaction.objects.annotate(total=Round(Sum("lines__amount"), MONEY_PLACES), n=Count("lines"))
    # A charge beyond its hold has a third line.
    for entry in summed.exclude(total=0, n__gte=2):
        yield f"I3 ledger transaction {entry.pk} has {entry.n} lines with the sum {entry.total}."


def i3_a_reversal_takes_back_its_charge() -> Iterator[str]:
    paid = LedgerLine.objects.filter(
        account=Account.TEAM_SPEND, transaction__image_id=OuterRef("transaction__image_id")
    )
    charge = paid.filter(transaction__kind=TransactionKind.CHARGE).values("amount")[:1]
    taken = LedgerLine.objects.filter(account=Account.TEAM_SPEND, transaction__kind=TransactionKind.REVERSAL)
    lines = taken.annotate(total=Round(F("amount") + Subquery(charge), MONEY_PLACES))
    for entry_id in lines.filter(Q(total=None) | ~Q(total=0)).values_list("transaction", flat=True):
        yield f"I3 ledger transaction {entry_id} takes back what no charge of its image booked."


def i3_images_say_what_the_ledger_says() -> Iterator[str]:
    lines = LedgerLine.objects.filter(account=Account.TEAM_SPEND, transaction__image_id=OuterRef("pk"))
    charge, reversal = (
        lines.filter(transaction__kind=kind) for kind in (TransactionKind.CHARGE, TransactionKind.REVERSAL)
    )
    back = Coalesce(
        Subquery(reversal.values("amount")[:1]), Value(0), output_field=LedgerLine._meta.get_field("amount")
    )
    images = RenderImage.objects.filter(state=ImageState.DELIVERED).annotate(
        booked=Round(Subquery(charge.values("amount")[:1]) + back, MONEY_PLACES),
        booked_us=Subquery(charge.values("transaction__gpu_us")[:1]),
    )
    # Of an image without a charge the check above speaks.
    for image in images.filter(booked__isnull=False).exclude(booked=F("cost_amount"), booked_us=F("gpu_us")):
        said, booked = f"{image.cost_amount} and {image.gpu_us} µs", f"{image.booked} and {image.booked_us} µs"
        yield f"I3 image {image.pk} says it cost {said}; the ledger says {booked}."


def i3_sums_of_a_job_are_its_images() -> Iterator[str]:
    images = RenderImage.objects.filter(job=OuterRef("pk"), state=ImageState.DELIVERED).order_by().values("job")
    lines = of_pictures(LedgerLine.objects.filter(transaction__job_id=OuterRef("pk")))
    booked = lines.values("transaction__job_id").annotate(total=Sum("amount")).values("total")
    jobs = RenderJob.objects.annotate(
        spent=money(images.annotate(total=Sum("cost_amount")).values("total")),
        booked=money(booked),
        spent_us=Coalesce(Subquery(images.annotate(total=Sum("gpu_us")).values("total")), 0),
        said=Round("cost_amount", MONEY_PLACES),
    )
    for job in jobs.exclude(said=F("booked"), spent=F("booked"), spent_us=F("gpu_us")):
        said, has = f"{job.cost_amount} and {job.gpu_us} µs", f"{job.spent} and {job.spent_us} µs"
        yield f"I3 job {job.pk} says it cost {said}; its images cost {has}, the ledger says {job.booked}."


def i4_a_hold_is_open_exactly_while_its_job_is() -> Iterator[str]:
    mine = RenderJob.objects.filter(pk=OuterRef("job_id"))
    for pk in pks(Hold.objects.exclude(Exists(mine))):
        yield f"I4 hold {pk} is for no job."
    open_job = mine.filter(state__in=JOB_OPEN)
    for pk in pks(Hold.objects.filter(ended_at=None).exclude(Exists(open_job))):
        yield f"I4 hold {pk} holds money for a job that has ended."
    for pk in pks(Hold.objects.filter(Exists(open_job), ended_at__isnull=False)):
        yield f"I4 hold {pk} is released and its job is open."


def i4_a_hold_settles_what_its_job_was_charged() -> Iterator[str]:
    booked = of_pictures(LedgerLine.objects.filter(transaction__job_id=OuterRef("job_id")))
    holds = Hold.objects.annotate(
        booked=money(booked.values("transaction__job_id").annotate(total=Sum("amount")).values("total")),
        parts=Round(F("settled") + F("remaining") + F("released"), MONEY_PLACES),
        whole=Round("amount", MONEY_PLACES),
        said=Round("settled", MONEY_PLACES),
    )
    for hold in holds.exclude(booked=F("said"), parts=F("whole")):
        yield (
            f"I4 hold {hold.pk} of {hold.amount} has {hold.settled} settled, {hold.remaining} held, {hold.released} "
            f"released; the ledger has {hold.booked}."
        )


def i4_a_budgets_account_is_the_sum_of_its_holds_and_deployments() -> Iterator[str]:
    through = Hold.periods.through.objects.filter(budgetperiod=OuterRef("pk")).order_by().values("budgetperiod")
    deployed = BudgetPeriod.deployments.through.objects.filter(
        budgetperiod=OuterRef("pk"), ledgertransaction__lines__account=Account.TEAM_SPEND
    ).order_by()
    by_account = deployed.values("budgetperiod").annotate(total=Sum("ledgertransaction__lines__amount"))
    settled = money(through.annotate(total=Sum("hold__settled")).values("total"))
    accounts = BudgetPeriod.objects.annotate(
        n_held=money(through.annotate(total=Sum("hold__remaining")).values("total")),
        n_spent=Round(settled + money(by_account.values("total")), MONEY_PLACES),
        said_held=Round("held", MONEY_PLACES),
        said_spent=Round("spent", MONEY_PLACES),
    )
    for account in accounts.exclude(n_held=F("said_held"), n_spent=F("said_spent")):
        said, has = f"{account.spent} spent, {account.held} held", f"{account.n_spent} and {account.n_held}"
        yield f"I4 account {account.pk} of budget {account.budget_id} says {said}; its holds and deployments have {has}."


def i4_no_budget_is_exceeded() -> Iterator[str]:
    total = Round(F("spent") + F("held"), MONEY_PLACES)
    for account in BudgetPeriod.objects.annotate(total=total).filter(total__gt=F("most")):
        yield f"I4 account {account.pk} of budget {account.budget_id} has {account.total} of {account.most}."


def m9_a_notice_is_of_its_own_budget() -> Iterator[str]:
    for pk in pks(BudgetNotice.objects.exclude(threshold__budget=F("period__budget"))):
        yield f"M9 budget notice {pk} names a threshold of another budget."


def m9_a_held_job_waits_for_an_approval() -> Iterator[str]:
    asked = JobApproval.objects.filter(job=OuterRef("pk"), approved=None)
    for pk in pks(RenderJob.objects.filter(state=JobState.HELD).exclude(Exists(asked))):
        yield f"M9 job {pk} is held and nobody is asked about it."
    for pk in pks(JobApproval.objects.filter(approved=None, job__state__in=[JobState.QUEUED, JobState.RUNNING])):
        yield f"M9 approval {pk} is open and its job goes on."
    waiting = RenderImage.objects.filter(state=ImageState.WAITING, job__state__in=JOB_OPEN)
    stopped = Q(job__state=JobState.HELD) | Q(job__paused_at__isnull=False)
    for pk in pks(waiting.filter(held=True).exclude(stopped)):
        yield f"M9 image {pk} is held and its job is not, so it is never claimed."
    for pk in pks(waiting.filter(stopped, held=False)):
        yield f"M9 image {pk} can be claimed, and its job is held or paused."


def m12_a_quota_of_a_token_names_the_tokens_own_team_and_user() -> Iterator[str]:
    own = (Q(team=None) | Q(team=F("token__team"))) & (Q(user=None) | Q(user=F("token__user")))
    for pk in pks(Quota.objects.filter(token__isnull=False).exclude(own)):
        yield f"M12 quota {pk} names a token of another team or user, so it counts nothing."


def m12_stored_bytes_are_those_of_the_files() -> Iterator[str]:
    for (team, user, token), size in sorted(bytes_astray().items()):
        whose = f"team {team}" + (f", user {user}" if user else "") + (f", token {token}" if token else "")
        yield f"M12 the count of stored bytes of {whose} is {-size} away from its files; recount_stored_bytes puts it right."


def m9_a_mail_is_sent_or_due() -> Iterator[str]:
    """Or it was given up after many tries; without any it was lost."""
    for pk in pks(OutgoingMail.objects.filter(due_at=None, sent_at=None, tries=0)):
        yield f"M9 mail {pk} was never sent and is not due."


def m7_a_failed_attempt_on_the_ledger_is_in_the_usage() -> Iterator[str]:
    uncharged = UsageRecord.objects.filter(attempt_id=OuterRef("attempt_id"), gpu_us=OuterRef("gpu_us"), charged=False)
    failed = LedgerTransaction.objects.filter(kind=TransactionKind.OVERHEAD, attempt_id__isnull=False)
    for pk in pks(failed.exclude(Exists(uncharged))):
        yield f"M7 ledger transaction {pk} is of an attempt that no usage record says was wasted."


def r8_the_database_refuses_to_change_the_ledger() -> Iterator[str]:
    with connection.cursor() as cursor:
        cursor.execute(GUARDED_TABLES[connection.vendor])
        guarded = {row[0] for row in cursor.fetchall()}
    for table in APPEND_ONLY_TABLES:
        if table not in guarded:
            yield f"R8 table {table} has no append-only trigger."


def i6_a_held_image_has_one_running_attempt() -> Iterator[str]:
    held = RenderImage.objects.filter(state__in=IMAGE_HELD)
    current = Attempt.objects.filter(
        image=OuterRef("pk"), fence=OuterRef("fence"), claim=OuterRef("claim"), ended_at=None
    )
    for pk in pks(held.exclude(Exists(current))):
        yield f"I6 image {pk} is held without a running attempt of its fence and claim."


def i7_a_held_image_has_one_open_claim() -> Iterator[str]:
    held = RenderImage.objects.filter(state__in=IMAGE_HELD)
    for pk in pks(held.filter(Q(claim=None) | Q(claim__ended_at__isnull=False))):
        yield f"I7 image {pk} is held without an open claim."
    idle = Claim.objects.filter(ended_at=None).exclude(Exists(held.filter(claim=OuterRef("pk"))))
    for pk in pks(idle):
        yield f"I7 claim {pk} is open and holds nothing."


def i7_a_prompt_is_written_under_a_claim_of_its_own() -> Iterator[str]:
    images = RenderImage.objects.filter(claim=OuterRef("claim"))
    for expansion in PromptExpansion.objects.filter(Exists(images)):
        yield f"I7 prompt {expansion.pk} and pictures are under one claim, {expansion.claim_id}."


def i7_written_prompts_are_as_many_as_were_asked_for() -> Iterator[str]:
    # Counted here: databases count the items of a list each in their own way.
    rows = PromptExpansion.objects.values_list("pk", "state", "count", "prompts")
    for pk, state, count, prompts in rows.iterator():
        if len(prompts) != (count if state == ExpansionState.WRITTEN else 0):
            yield f"I7 prompt {pk} is {state} and has {len(prompts)} texts; {count} were asked for."


def h5_a_profile_says_something() -> Iterator[str]:
    for profile in PassProfile.objects.filter(passes=0, too_large_at=None):
        yield f"H5 profile {profile.pk} ({profile}) is of no pass that fitted and of none that did not."


def i9_sequences_of_events_have_no_gaps() -> Iterator[str]:
    numbers = RenderJob.objects.annotate(n=Count("events"), last=Coalesce(Max("events__sequence"), 0))
    for job in numbers.exclude(n=F("event_sequence"), last=F("event_sequence")):
        yield f"I9 job {job.pk} is at event {job.event_sequence} with {job.n} events up to {job.last}."


def i9_events_tell_every_move() -> Iterator[str]:
    """Walks jobs, images and events side by side, each in the order of the job, so that memory holds one job at a time."""
    jobs = RenderJob.objects.order_by("pk").values_list("pk", "state")
    images = Groups(RenderImage.objects.order_by("job_id", "index").values_list("job_id", "index", "state"))
    events = Groups(
        JobEvent.objects.order_by("job_id", "sequence").values_list(
            "job_id", "sequence", "image_index", "from_state", "to_state"
        )
    )
    for job_id, job_state in jobs.iterator():
        ends: dict[int | None, str] = {}
        for sequence, index, from_state, to_state in events.of(job_id):
            yield from wrong_move(f"event {sequence} of job {job_id}", index, ends.get(index), from_state, to_state)
            ends[index] = to_state
        if ends.get(None) != job_state:
            yield f"I9 job {job_id} is {job_state}; its events end at {ends.get(None)}."
        for index, state in images.of(job_id):
            if ends.get(index, ImageState.WAITING) != state:
                yield f"I9 image {index} of job {job_id} is {state}; its events end at {ends.get(index)}."


def wrong_move(event: str, index: int | None, before: str | None, from_state: str, to_state: str) -> Iterator[str]:
    """``index`` None is the job itself; ``before`` None is the time before its first event."""
    arrows, first = (JOB_ARROWS, "") if index is None else (IMAGE_ARROWS, ImageState.WAITING)
    if from_state != (first if before is None else before):
        yield f"I9 {event} leaves {from_state!r}, not where it was."
    elif from_state and to_state not in arrows.get(from_state, ()):
        yield f"I9 {event}: {from_state} → {to_state} is no arrow."


def i10_attempts_end_with_their_images() -> Iterator[str]:
    running = Attempt.objects.filter(ended_at=None)
    for pk in pks(running.exclude(image__state__in=IMAGE_HELD)):
        yield f"I10 attempt {pk} runs although its image is not held."
    delivered = Count("tries", filter=Q(tries__outcome=AttemptOutcome.DELIVERED))
    images = RenderImage.objects.filter(state__in=IMAGE_TERMINAL).annotate(n=delivered)
    for image in images.exclude(state=ImageState.DELIVERED, n=1).exclude(~Q(state=ImageState.DELIVERED), n=0):
        yield f"I10 image {image.pk} is {image.state} with {image.n} delivered attempts."


def p4_the_default_checkpoint_is_usable() -> Iterator[str]:
    for asset in Asset.objects.filter(is_default=True).exclude(state=AssetState.APPROVED):
        yield f"P4 the default {asset.kind} {asset.name} is {asset.state}."
    for pk in pks(RenderJob.objects.filter(state__in=JOB_OPEN, checkpoint__sha256="")):
        yield f"P4 job {pk} is open and its checkpoint has no hash."


def p2_parts_of_an_upload_follow_one_another() -> Iterator[str]:
    """The sum and the end of the parts are the same number exactly when there is neither gap nor overlap."""
    counted = Upload.objects.annotate(
        n_bytes=Coalesce(Sum("parts__size_bytes"), 0),
        end=Coalesce(Max(F("parts__offset") + F("parts__size_bytes"), output_field=BigIntegerField()), 0),
    )
    for upload in counted.exclude(n_bytes=F("received_bytes"), end=F("received_bytes")):
        yield f"P2 upload {upload.pk} counts {upload.received_bytes} bytes; its parts have {upload.n_bytes}."
    for upload in Upload.objects.exclude(asset__state__in=UNDERWAY):
        yield f"P2 upload {upload.pk} is kept although its asset is settled."


def p2_parts_of_an_upload_have_their_objects() -> Iterator[str]:
    storage = storages["assets"]
    for pk, key in UploadPart.objects.values_list("pk", "key"):
        if not storage.exists(key):
            yield f"P2 the object of part {pk} is missing: {key}."


def j12_a_scheduled_run_is_the_job_of_its_time() -> Iterator[str]:
    same = Q(job__schedule=F("schedule"), job__scheduled_for=F("planned_for"), outcome=RunOutcome.SUBMITTED)
    for pk in pks(ScheduledRun.objects.filter(job__isnull=False).exclude(same)):
        yield f"J12 scheduled run {pk} names a job of another schedule or time, or names one although it was not submitted."


def j20_versions_of_a_template_are_counted_from_one() -> Iterator[str]:
    counted = BatchTemplate.objects.annotate(n=Count("versions"), newest_number=Coalesce(Max("versions__number"), 0))
    for template in counted.exclude(Q(n__gt=0) & Q(n=F("newest_number"))):
        yield f"J20 template {template.pk} has {template.n} versions; the newest is number {template.newest_number}."


def c3_an_ended_script_has_no_open_job() -> Iterator[str]:
    open_jobs = RenderJob.objects.filter(state__in=JOB_OPEN, script_call__ended_at__isnull=False)
    for pk in pks(open_jobs):
        yield f"C3 job {pk} is open although the script that asked for it has ended."


def c3_kept_options_are_known() -> Iterator[str]:
    known = default_options().keys()
    for pk, values in OptionProfile.objects.values_list("pk", "values"):
        if unknown := values.keys() - known:
            yield f"C3 option profile {pk} holds {', '.join(sorted(unknown))}, which no call knows."


def c6_images_with_texts_of_their_own_have_one_each() -> Iterator[str]:
    jobs = RenderJob.objects.filter(lock__has_key="own").values_list("pk", "images_total", "lock")
    for job_id, images, lock in jobs.iterator(chunk_size=100):
        if len(lock["own"]) != images:
            yield f"C6 job {job_id} has {images} images and texts for {len(lock['own'])}."


def c6_wildcards_have_lines() -> Iterator[str]:
    empty = Q(text="") | Q(text__startswith="\n") | Q(text__endswith="\n") | Q(text__contains="\n\n")
    for pk, name in Wildcard.objects.filter(empty).values_list("pk", "name"):
        yield f"C6 wildcard {pk} ({name}) has an empty line."


def d7_a_file_lies_in_its_own_teams_area() -> Iterator[str]:
    """And no job's picture has the same key, for deleting the one would take the other."""
    own = Q(team=None, file_key__startswith=f"{PUBLIC_FILES}/") | Q(
        team__isnull=False, file_key__startswith=Concat(Cast("team_id", CharField()), Value("/files/"))
    )
    for pk in pks(TeamFile.objects.exclude(own)):
        yield f"D7 team file {pk} lies outside of its team's area."
    delivered = RenderImage.objects.filter(file_key=OuterRef("file_key"))
    attached = ImageAttachment.objects.filter(file_key=OuterRef("file_key"))
    for pk in pks(TeamFile.objects.filter(Exists(delivered) | Exists(attached))):
        yield f"D7 team file {pk} is a file that a job delivered, too."


def d7_files_on_their_way_arrive_or_leave() -> Iterator[str]:
    long_ago = timezone.now() - ORPHAN_AGE
    stuck = TeamFile.objects.exclude(state=FileState.STORED).filter(state_at__lt=long_ago)
    for pk, state in stuck.values_list("pk", "state"):
        yield f"D7 team file {pk} is {state} for more than {ORPHAN_AGE}; is the chore 'tidy' running?"


def d8_counts_of_an_import_are_its_files() -> Iterator[str]:
    """Of those left no more are kept by name than were counted."""
    runs = DirectoryImport.objects.annotate(n_left=Count("left"))
    for run in runs.filter(Q(n_left__gt=F("files_left")) | Q(files_known__gt=F("files_done"))):
        yield f"D8 import {run.pk} counts {run.files_done} done, {run.files_left} left; it has {run.n_left} left by name."
    for pk in pks(runs.filter(state=ImportState.RUNNING, touched_at=None)):
        yield f"D8 import {pk} runs and no worker has it."


def d8_a_fetched_model_is_here() -> Iterator[str]:
    """A model may have been here before under the same name and hash; then that one stands for it."""
    usable = Q(asset=None) | Q(asset__state__in=(AssetState.APPROVED, AssetState.RETIRED))
    for pk in pks(ZooImport.objects.filter(state=ZooState.ENDED).exclude(usable)):
        yield f"D8 zoo import {pk} has ended and its model is not approved."
    for pk in pks(ZooImport.objects.filter(state=ZooState.RUNNING, touched_at=None)):
        yield f"D8 zoo import {pk} runs and no worker has it."


def c3_scripts_have_their_requests() -> Iterator[str]:
    for pk, key in ScriptCall.objects.values_list("pk", "body_key"):
        if not default_storage.exists(key):
            yield f"C3 the request of script call {pk} is missing: {key}."


def i2_a_delivered_images_object_has_its_hash() -> Iterator[str]:
    rows = RenderImage.objects.filter(state=ImageState.DELIVERED).values_list("pk", "file_key", "sha256")
    for pk, key, sha256 in rows.iterator():
        found = object_hash(key)
        if found != sha256:
            yield f"I2 the object of image {pk} is {'missing' if found is None else 'not what was delivered'}: {key}."


def i2_inputs_and_attachments_have_their_objects() -> Iterator[str]:
    kept = (
        (InputFile.objects.all(), "input"),
        (ImageAttachment.objects.all(), "attachment"),
        (TeamFile.objects.filter(state=FileState.STORED), "team file"),
    )
    for rows, what in kept:
        for pk, key, sha256 in rows.values_list("pk", "file_key", "sha256").iterator():
            found = object_hash(key)
            if found != sha256:
                yield f"I2 the object of {what} {pk} is {'missing' if found is None else 'not what was stored'}: {key}."


def p15_a_picture_that_must_be_looked_at_was() -> Iterator[str]:
    demanding = RenderJob.objects.alias(mode=ValueOfKey("request", "safety")).filter(mode__in=VERDICT_OF_MODE)
    unseen = RenderImage.objects.filter(state=ImageState.DELIVERED, safety_verdict="")
    for image in unseen.filter(job__in=demanding.filter(kind__in=(JobKind.TXT2IMG, JobKind.IMG2IMG))):
        yield f"P15 image {image.pk} is delivered, and the safety filter has not looked at it."


def p4_a_jobs_lock_names_only_files_that_are_there() -> Iterator[str]:
    """Of open jobs: what they pinned can still be loaded."""
    usable = (AssetState.APPROVED, AssetState.RETIRED)
    for job_id, name in (
        RenderJob.objects.filter(state__in=JOB_OPEN, assets__isnull=False)
        .exclude(assets__state__in=usable)
        .values_list("pk", "assets__name")
    ):
        yield f"P4 job {job_id} pinned {name}, which cannot be used any more."


def i19_no_old_object_lies_without_a_row() -> Iterator[str]:
    known = set(RenderImage.objects.exclude(file_key="").values_list("file_key", flat=True))
    known |= set(ImageAttachment.objects.values_list("file_key", flat=True))
    known |= set(InputFile.objects.values_list("file_key", flat=True))
    known |= set(TeamFile.objects.values_list("file_key", flat=True))
    known |= set(ScriptCall.objects.values_list("body_key", flat=True))
    known |= {
        key for keys in ScriptCall.objects.exclude(saved_keys=[]).values_list("saved_keys", flat=True) for key in keys
    }
    known |= set(RenderJob.objects.exclude(grid_key="").values_list("grid_key", flat=True))
    for key in walk(""):
        if key not in known and timezone.now() - default_storage.get_modified_time(key) > ORPHAN_AGE:
            yield f"I19 object {key} belongs to no row and is older than {ORPHAN_AGE}."


def p4_usable_assets_have_their_file() -> Iterator[str]:
    """Retired ones too: the jobs that pinned them still need it."""
    storage = storages["assets"]
    for asset in Asset.objects.filter(state__in=[AssetState.APPROVED, AssetState.RETIRED]):
        if not storage.exists(asset.file_key) or storage.size(asset.file_key) != asset.size_bytes:
            yield f"P4 the file of asset {asset.pk} ({asset.name}) is missing or has another size."


def p2_cards_have_their_pictures() -> Iterator[str]:
    storage = storages["assets"]
    for pk, key in Asset.objects.exclude(preview_key="").values_list("pk", "preview_key"):
        if not storage.exists(key):
            yield f"P2 the picture of asset {pk} is missing: {key}."


def c9_a_services_token_is_its_teams() -> Iterator[str]:
    """Whoever holds the token acts for the team that pays."""
    same = Q(token__team=F("team"), token__user=F("user"))
    for name in EasService.objects.exclude(same).values_list("name", flat=True):
        yield f"C9 service {name} has the token of another team or account."


def c9_an_asynchronous_service_has_both_queues() -> Iterator[str]:
    counted = EasService.objects.filter(edition=EasEdition.API).annotate(n=Count("queues"))
    for service in counted.exclude(n=len(QueueKind.values)):
        yield f"C9 service {service.name} has {service.n} of its {len(QueueKind.values)} queues."


def c9_a_service_is_as_its_edition_demands() -> Iterator[str]:
    for service in EasService.objects.order_by("pk"):
        try:
            # Foreign keys are the database's business.
            service.clean_fields(exclude=("team", "user", "token", "token_nonce", "pool"))
            service.clean()
            json.loads(service.document or "{}")
        except (ValidationError, ValueError) as error:
            yield f"C9 service {service.name} cannot be so: {error}"


def c9_a_script_came_through_a_service_of_its_team() -> Iterator[str]:
    """Or what it sees of the models would be another team's choice."""
    for pk in pks(ScriptCall.objects.filter(service__isnull=False).exclude(service__team=F("team"))):
        yield f"C9 script {pk} came through a service of another team."


def c9_no_index_is_beyond_its_queue() -> Iterator[str]:
    """Or it would be given out a second time."""
    for queue in EasQueue.objects.annotate(newest=Max("frames__index")).filter(newest__gt=F("last_index")):
        yield f"C9 queue {queue.pk} gave out {queue.last_index} indexes and holds frame {queue.newest}."


def c9_a_frame_is_a_request_or_a_result() -> Iterator[str]:
    result = Q(answer_to__isnull=False) & ~Q(queue__kind=QueueKind.SINK)
    request = Q(taken_until__isnull=False) & ~Q(queue__kind=QueueKind.INPUT)
    for pk in pks(EasFrame.objects.filter(result | request)):
        yield f"C9 frame {pk} is a result among requests, or a request among results."


def c9_an_answered_request_is_gone() -> Iterator[str]:
    open_ones = EasFrame.objects.filter(
        queue__kind=QueueKind.INPUT, queue__service=OuterRef("queue__service"), index=OuterRef("answer_to")
    )
    for pk in pks(EasFrame.objects.filter(Exists(open_ones), answer_to__isnull=False)):
        yield f"C9 frame {pk} answers a request that still waits."


def c9_a_frame_is_with_a_consumer_of_its_queue_and_group() -> Iterator[str]:
    held = EasDelivery.objects.filter(consumer__isnull=False)
    for pk in pks(held.exclude(consumer__queue=F("frame__queue"), consumer__group=F("group"))):
        yield f"C9 delivery {pk} is with a consumer of another queue or group."


def c9_no_consumer_has_more_than_its_window() -> Iterator[str]:
    """Of one connection: the one before may have been sent other frames."""
    mine = Count("handed_out", filter=Q(handed_out__connection=F("connection"), handed_out__committed=False))
    for consumer in EasConsumer.objects.filter(auto_commit=False).annotate(n=mine).filter(n__gt=F("window")):
        yield f"C9 consumer {consumer} has {consumer.n} frames in a window of {consumer.window}."


def c9_a_job_came_through_a_service_of_its_team() -> Iterator[str]:
    for model, what in ((RenderJob, "job"), (ScriptCall, "script call")):
        for pk in pks(model.objects.filter(service__isnull=False).exclude(service__team=F("team"))):
            yield f"C9 {what} {pk} came through a service of another team."


def j6_the_log_says_what_is_deployed() -> Iterator[str]:
    """Or instances are billed that are not there, or the other way round."""
    state = {name: OuterRef(name) for name in ("team", "edition")}
    logged = DeploymentSpan.objects.filter(service_id=OuterRef("pk"), ended_at=None, **state)
    deployed = Case(When(enabled=True, then=F("replicas")), default=Value(0))
    services = EasService.objects.annotate(
        deployed=deployed, logged=Subquery(logged.values("replicas")), at=Subquery(logged.values("pool"))
    )
    # A service of no pool is where any job goes; which that was when it changed last, the log knows.
    same = Q(logged=F("deployed")) & (Q(pool=None) | Q(pool=F("at")))
    for name in services.exclude(pk__in=services.filter(same).values("pk")).values_list("name", flat=True):
        yield f"J6 the log does not say what is deployed for service {name}."
    running = DeploymentSpan.objects.filter(ended_at=None, replicas__gt=0)
    for name in running.exclude(service_id__in=EasService.objects.values("pk")).values_list("service", flat=True):
        yield f"J6 by the log instances are deployed for {name}, which is no service."


def j6_spans_of_a_service_follow_one_another() -> Iterator[str]:
    """With exactly one successor for each that ended, and one that is open, there is neither gap nor overlap."""
    following = DeploymentSpan.objects.filter(service_id=OuterRef("service_id"), started_at=OuterRef("ended_at"))
    for span in DeploymentSpan.objects.filter(ended_at__isnull=False).exclude(Exists(following)):
        yield f"J6 after span {span.pk} of {span.service}, which ended at {span.ended_at}, none follows."
    before = DeploymentSpan.objects.filter(service_id=OuterRef("service_id"), ended_at=OuterRef("started_at"))
    earlier = DeploymentSpan.objects.filter(service_id=OuterRef("service_id"), started_at__lt=OuterRef("started_at"))
    for span in DeploymentSpan.objects.filter(Exists(earlier)).exclude(Exists(before)):
        yield f"J6 span {span.pk} of {span.service} starts at {span.started_at}, where none ended."


def j6_settled_days_are_what_log_and_ledger_say() -> Iterator[str]:
    yield from (f"J6 {line}" for line in wrong_days())


def of_pictures(lines: QuerySet[LedgerLine]) -> QuerySet[LedgerLine]:
    """What is on a bill for pictures, without the instances they were made on."""
    bill = lines.filter(account=Account.TEAM_SPEND).order_by()
    return bill.exclude(transaction__kind=TransactionKind.DEPLOYMENT)


def jobs_counted() -> QuerySet[Any]:
    """Jobs with the numbers of their images: ``n_delivered``, ``n_failed``, ``n_cancelled``, ``n_all``."""
    ended = {f"n_{state}": Count("images", filter=Q(images__state=state)) for state in IMAGE_TERMINAL}
    return RenderJob.objects.annotate(n_all=Count("images"), **ended)


def money(total: QuerySet[Any]) -> Round:
    """A sum of another table, zero without rows. SQLite adds in floating point, so it is rounded to the ledger's places."""
    amount = DecimalField(max_digits=18, decimal_places=MONEY_PLACES)
    return Round(Coalesce(Subquery(total), Decimal(0), output_field=amount), MONEY_PLACES)


def pks(rows: QuerySet[Any]) -> QuerySet[Any]:
    return rows.values_list("pk", flat=True)


class Groups:
    """Rows that come sorted by their first column, handed out group by group to a walk in the same order."""

    def __init__(self, rows: QuerySet[Any]):
        self._rows = rows.iterator()
        self._next = next(self._rows, None)

    def of(self, key: Any) -> Iterator[tuple[Any, ...]]:
        """The other columns of the rows of ``key``."""
        while self._next is not None and self._next[0] == key:
            yield self._next[1:]
            self._next = next(self._rows, None)


def object_hash(key: str) -> str | None:
    """sha-256 of a stored picture; None when there is no such object, or it cannot be read."""
    try:
        with default_storage.open(key) as file:
            return sha256_of(file)
    except OSError:
        return None


def walk(folder: str) -> Iterator[str]:
    """Keys of every stored picture."""
    try:
        folders, files = default_storage.listdir(folder)
    except FileNotFoundError:
        return
    for name in files:
        yield f"{folder}/{name}".lstrip("/")
    for name in folders:
        yield from walk(f"{folder}/{name}".lstrip("/"))


def p13_a_person_has_one_second_factor_and_codes_only_with_it() -> Iterator[str]:
    for row in TOTPDevice.objects.order_by().values("user").annotate(n=Count("pk")).filter(n__gt=1):
        yield f"P13 user {row['user']} has {row['n']} second factors."
    device = TOTPDevice.objects.filter(user=OuterRef("user"), confirmed=True)
    for user in RecoveryCode.objects.filter(~Exists(device)).order_by().values_list("user", flat=True).distinct():
        yield f"P13 user {user} has recovery codes without a second factor."


def p12_the_networks_of_a_token_are_some() -> Iterator[str]:
    for pk, networks in ApiToken.objects.exclude(networks=[]).values_list("pk", "networks"):
        try:
            networks_read(networks)
        except InvalidRequestError as error:
            yield f"P12 token {pk}: {error.errors[0].message}"


def u3_a_review_is_of_a_picture() -> Iterator[str]:
    for pk in pks(ImageReview.objects.exclude(image__state=ImageState.DELIVERED)):
        yield f"U3 image {pk} is reviewed and has no picture."


def p14_the_audit_log_is_what_was_sealed() -> Iterator[str]:
    yield from (f"P14 {line}" for line in broken_seals())


def p14_what_was_read_has_its_entry() -> Iterator[str]:
    missing = Reading.objects.filter(entry_id__isnull=False)
    for pk in pks(missing.filter(~Exists(LogEntry.objects.filter(pk=OuterRef("entry_id"))))):
        yield f"P14 the entry of reading {pk} is gone from the audit log."


ROW_CHECKS: tuple[Callable[[], Iterator[str]], ...] = (
    p14_the_audit_log_is_what_was_sealed,
    p13_a_person_has_one_second_factor_and_codes_only_with_it,
    p12_the_networks_of_a_token_are_some,
    p14_what_was_read_has_its_entry,
    u3_a_review_is_of_a_picture,
    i1_counters_of_a_job_are_its_images,
    i1_a_job_is_open_exactly_while_an_image_is,
    i2_no_two_images_share_a_file,
    i3_delivered_images_and_charges_are_one_to_one,
    i3_ledger_transactions_sum_to_zero,
    i3_a_reversal_takes_back_its_charge,
    i3_images_say_what_the_ledger_says,
    i3_sums_of_a_job_are_its_images,
    r8_the_database_refuses_to_change_the_ledger,
    i4_a_hold_is_open_exactly_while_its_job_is,
    i4_a_hold_settles_what_its_job_was_charged,
    i4_a_budgets_account_is_the_sum_of_its_holds_and_deployments,
    i4_no_budget_is_exceeded,
    m7_a_failed_attempt_on_the_ledger_is_in_the_usage,
    m9_a_notice_is_of_its_own_budget,
    m9_a_held_job_waits_for_an_approval,
    m12_a_quota_of_a_token_names_the_tokens_own_team_and_user,
    m12_stored_bytes_are_those_of_the_files,
    m9_a_mail_is_sent_or_due,
    i6_a_held_image_has_one_running_attempt,
    i7_a_held_image_has_one_open_claim,
    i7_a_prompt_is_written_under_a_claim_of_its_own,
    i7_written_prompts_are_as_many_as_were_asked_for,
    h5_a_profile_says_something,
    i9_sequences_of_events_have_no_gaps,
    i9_events_tell_every_move,
    i10_attempts_end_with_their_images,
    p4_the_default_checkpoint_is_usable,
    p4_a_jobs_lock_names_only_files_that_are_there,
    p2_parts_of_an_upload_follow_one_another,
    p15_a_picture_that_must_be_looked_at_was,
    j12_a_scheduled_run_is_the_job_of_its_time,
    j20_versions_of_a_template_are_counted_from_one,
    c3_an_ended_script_has_no_open_job,
    c3_kept_options_are_known,
    c6_images_with_texts_of_their_own_have_one_each,
    c6_wildcards_have_lines,
    c9_a_services_token_is_its_teams,
    c9_an_asynchronous_service_has_both_queues,
    c9_a_service_is_as_its_edition_demands,
    c9_a_script_came_through_a_service_of_its_team,
    c9_no_index_is_beyond_its_queue,
    c9_a_frame_is_a_request_or_a_result,
    c9_an_answered_request_is_gone,
    c9_a_frame_is_with_a_consumer_of_its_queue_and_group,
    c9_no_consumer_has_more_than_its_window,
    c9_a_job_came_through_a_service_of_its_team,
    j6_the_log_says_what_is_deployed,
    j6_spans_of_a_service_follow_one_another,
    j6_settled_days_are_what_log_and_ledger_say,
    d7_a_file_lies_in_its_own_teams_area,
    d7_files_on_their_way_arrive_or_leave,
    d8_counts_of_an_import_are_its_files,
    d8_a_fetched_model_is_here,
)
OBJECT_CHECKS: tuple[Callable[[], Iterator[str]], ...] = (
    i2_a_delivered_images_object_has_its_hash,
    i2_inputs_and_attachments_have_their_objects,
    i19_no_old_object_lies_without_a_row,
    p4_usable_assets_have_their_file,
    p2_parts_of_an_upload_have_their_objects,
    p2_cards_have_their_pictures,
    c3_scripts_have_their_requests,
)
