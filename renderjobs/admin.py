"""Jobs, templates and schedules in the admin. Jobs are read and cancelled here, never written."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Callable
from typing import Any
from zoneinfo import ZoneInfo, available_timezones

from django import forms
from django.contrib import admin, messages
from django.db.models import F, Model, OuterRef, QuerySet, Subquery
from django.db.models.functions import Now
from django.forms.fields import InvalidJSONInput
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString, mark_safe
from django_celery_beat.models import ClockedSchedule, CrontabSchedule, IntervalSchedule, PeriodicTask, SolarSchedule
from unfold.decorators import action, display
from unfold.widgets import (
    UnfoldAdminDecimalFieldWidget,
    UnfoldAdminIntegerFieldWidget,
    UnfoldAdminSelectWidget,
    UnfoldAdminTextareaWidget,
    UnfoldBooleanSwitchWidget,
)

from accounts.admin import TeamAdmin, TeamFilter, is_superuser, teams_as
from accounts.authentication import Caller
from accounts.models import Role
from audit.reading import reading_note
from billing.deployments import share_of
from common.errors import InvalidRequestError, PlatformError
from common.exporting import ListExport
from renderjobs import directory_imports_admin, files_admin, safety_admin  # noqa: F401  they register their pages
from renderjobs.api.serializers import seconds
from renderjobs.approvals import job_approve, job_decline
from renderjobs.choices import ImageState, JobKind, JobState
from renderjobs.compat.eas import admin as eas_admin  # noqa: F401  registers its page
from renderjobs.expansion import recipe_from
from renderjobs.files import base_of, file_url
from renderjobs.gallery_pages import LOOKED, GalleryPages
from renderjobs.models import (
    BatchSchedule,
    BatchTemplate,
    JobEvent,
    RenderImage,
    RenderJob,
    ScheduledRun,
    TemplateVersion,
)
from renderjobs.models.jobs import Source
from renderjobs.pausing import job_pause, job_resume
from renderjobs.prompt_admin import prompt_chosen
from renderjobs.saved_batches import template_check, template_save, template_submit
from renderjobs.schedules import (
    CRON_FIELDS,
    cron_of,
    next_runs,
    schedule_remove,
    schedule_sync,
    template_remove,
    zone_of,
)
from renderjobs.selectors import images_of, job_progress
from renderjobs.submission import job_cancel, job_repeat

IMAGES_PER_PAGE = 48
EVENTS_SHOWN = 50
RUNS_SHOWN = 20
RUN_ROW = '<tr><td>{}</td><td>{}</td><td>{}</td><td class="rk-figure">{}</td></tr>'
JOB_COLOURS = {
    JobState.HELD: "warning",
    JobState.QUEUED: "info",
    JobState.RUNNING: "primary",
    JobState.SUCCEEDED: "success",
    JobState.PARTLY_SUCCEEDED: "warning",
    JobState.FAILED: "danger",
    JobState.CANCELLED: "warning",
}

for beat_model in (ClockedSchedule, CrontabSchedule, IntervalSchedule, PeriodicTask, SolarSchedule):
    admin.site.unregister(beat_model)  # schedules are edited as ours; beat's rows only follow them


class WorkAdmin(TeamAdmin):
    """What everybody in a team sees of the team's work."""

    readers = (Role.LEAD, Role.MEMBER, Role.VIEWER)


@admin.register(RenderJob)
class JobPage(GalleryPages, ListExport, WorkAdmin):
    export_columns = (
        "id", "state", "kind", "source", "team__name", "project__name", "user__username", "pool__name", "checkpoint__name",
        "lane", "priority", "task_id", "images_total", "images_delivered", "images_failed", "images_cancelled", "gpu_us",
        "cost_amount", "currency", "error_code", "error_message", "created_at", "started_at", "finished_at",
    )  # fmt: skip
    may_add = may_change = may_delete = False
    list_display = (
        "short_id", "state_label", "team", "user", "progress", "delivered", "cost", "checkpoint", "created_at",
    )  # fmt: skip
    list_filter = (TeamFilter, "state", "lane", "source", "created_at")
    list_select_related = ("team", "user", "checkpoint")
    search_fields = ("id", "task_id", "user__username", "service__name")
    actions = ("cancel", "pause", "resume", "render_again", "approve", "decline")
    change_form_outer_before_template = "renderjobs/job_pictures.html"
    change_form_outer_after_template = "renderjobs/job_events.html"
    fields = readonly_fields = (
        "state", "progress", "delivered", "cost", "instances", "gpu_seconds", "error",
        "team", "project", "user", "source", "service", "schedule", "lane", "priority", "task_id", "tags",
        "checkpoint", "pool", "created_at", "started_at", "finished_at", "paused_at", "request_text",
    )  # fmt: skip

    class Media:
        js = ("common/live.js",)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        return super().get_queryset(request).annotate(now=Now())

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        job = self.get_object(request, object_id)
        details = job_details(request, job) if job else {}
        if job and self.may_visit(request):
            _note_reading(request, job)
        return super().change_view(request, object_id, form_url, {**details, **(extra_context or {})})

    def get_urls(self) -> list[URLPattern]:
        image = path(
            "<uuid:job_id>/images/<int:index>/", self.admin_site.admin_view(self.image), name="renderjobs_image"
        )
        return [image, *self.gallery_urls(), *super().get_urls()]

    def image(self, request: HttpRequest, job_id: uuid.UUID, index: int) -> HttpResponse:
        job = self.get_object(request, str(job_id)) if self.may_visit(request) else None
        image = job and RenderImage.objects.filter(job=job, index=index).first()
        if job is None or image is None:
            raise Http404
        _note_reading(request, job)
        context = {
            **self.admin_site.each_context(request),
            "title": f"Image {index} of {self.short_id(job)}",
            "opts": self.opts,
            "original": job,
            **image_details(request, job, image),
        }
        return render(request, "renderjobs/job_image.html", context)

    def has_cancel_permission(self, request: HttpRequest) -> bool:
        return is_superuser(request) or bool(teams_as(request, Role.LEAD, Role.MEMBER))

    def has_decide_permission(self, request: HttpRequest) -> bool:
        return self.may_write(request)

    @action(description="Cancel", permissions=["cancel"])
    def cancel(self, request: HttpRequest, queryset: QuerySet[RenderJob]) -> None:
        cause = f"cancelled in the admin by {request.user.get_username()}"
        self._each_own(request, queryset, lambda job: job_cancel(job=job, cause=cause), "is cancelled")

    @action(description="Pause: begin no more of its images", permissions=["cancel"])
    def pause(self, request: HttpRequest, queryset: QuerySet[RenderJob]) -> None:
        self._each_own(request, queryset, lambda job: job_pause(job=job), "is paused")

    @action(description="Resume", permissions=["cancel"])
    def resume(self, request: HttpRequest, queryset: QuerySet[RenderJob]) -> None:
        self._each_own(request, queryset, lambda job: job_resume(job=job), "goes on")

    @action(description="Render again, as a new job", permissions=["cancel"])
    def render_again(self, request: HttpRequest, queryset: QuerySet[RenderJob]) -> None:
        def again(job: RenderJob) -> None:
            job_repeat(job=job, user=request.user, source=Source.ADMIN)  # type: ignore[arg-type]

        self._each_own(request, queryset, again, "is submitted again")

    def _each_own(
        self, request: HttpRequest, jobs: QuerySet[RenderJob], change: Callable[[RenderJob], Any], outcome: str
    ) -> None:
        """A lead's choice among the team's jobs; a member's among the own."""
        for job in jobs:
            name = self.short_id(job)
            own = job.user_id == request.user.pk and job.team_id in teams_as(request, Role.MEMBER)
            if not (own or self.may_write(request, job)):
                self.message_user(request, f"{name} is not yours.", messages.ERROR)
                continue
            try:
                change(job)
            except PlatformError as error:
                self.message_user(request, f"{name}: {error.message}", messages.ERROR)
            else:
                self.log_change(request, job, outcome)
                self.message_user(request, f"{name} {outcome}.", messages.SUCCESS)

    @action(description="Approve held jobs", permissions=["decide"])
    def approve(self, request: HttpRequest, queryset: QuerySet[RenderJob]) -> None:
        self._decide(request, queryset, job_approve, "approved")

    @action(description="Decline held jobs", permissions=["decide"])
    def decline(self, request: HttpRequest, queryset: QuerySet[RenderJob]) -> None:
        self._decide(request, queryset, job_decline, "declined")

    def _decide(self, request: HttpRequest, jobs: QuerySet[RenderJob], decide: Callable[..., None], what: str) -> None:
        for job in jobs:
            try:
                decide(job=job, user=request.user)
            except PlatformError as error:
                self.message_user(request, f"{self.short_id(job)}: {error.message}", messages.ERROR)
            else:
                self.log_change(request, job, what)
                self.message_user(request, f"{self.short_id(job)} is {what}.", messages.SUCCESS)

    @display(description="Job", ordering="id")
    def short_id(self, job: RenderJob) -> str:
        return str(job.pk)[-8:]

    @display(description="State", ordering="state", label=JOB_COLOURS)
    def state_label(self, job: RenderJob) -> tuple[str, str]:
        return job.state, job.get_state_display()

    @display(description="Progress")
    def progress(self, job: RenderJob) -> SafeString:
        percent = 100 * job.images_ended // job.images_total
        live = mark_safe("" if job.finished_at else " data-live-until-ended")  # noqa: S308 one of two constants
        bar = '<progress id="progress-{}" max="100" value="{}" title="{} %" data-live{}></progress>'
        return format_html(bar, job.pk, percent, percent, live)

    @display(description="Delivered", ordering="images_delivered")
    def delivered(self, job: RenderJob) -> str:
        return f"{job.images_delivered} / {job.images_total}" + (", paused" if job.paused_at else "")

    @display(description="Cost", ordering="cost_amount")
    def cost(self, job: RenderJob) -> str:
        return f"{job.cost_amount:.6f} {job.currency}"

    @display(description="Share of deployed instances")
    def instances(self, job: RenderJob) -> str:
        shares = share_of(job.pk) if job.service_id else {}
        return ", ".join(f"{amount:.6f} {currency}" for currency, amount in shares.items())

    @display(description="GPU seconds")
    def gpu_seconds(self, job: RenderJob) -> str:
        return f"{seconds(job.gpu_us):.3f}"

    @display(description="Error")
    def error(self, job: RenderJob) -> str:
        return f"{job.error_message} ({job.error_code})" if job.error_code else ""

    @display(description="Request")
    def request_text(self, job: RenderJob) -> SafeString:
        return _as_json(job.request)


def _note_reading(request: HttpRequest, job: RenderJob) -> None:
    if job.images_delivered:
        reading_note(reader=request.user, obj=job, owner_id=job.user_id, what=LOOKED)  # type: ignore[arg-type]


def _as_json(request: dict[str, Any]) -> SafeString:
    return format_html('<pre class="rk-json">{}</pre>', json.dumps(request, indent=2, ensure_ascii=False))


def job_details(request: HttpRequest, job: RenderJob) -> dict[str, Any]:
    """One page of the job's pictures and its newest events, for the templates above and below the fields."""
    after = request.GET.get("after", "")
    start = int(after) if after.isdecimal() and len(after) < 9 else -1
    images = list(images_of(job, after=start)[: IMAGES_PER_PAGE + 1])
    shown, base = images[:IMAGES_PER_PAGE], base_of(request)
    return {
        "job_images": [_thumbnail(image, base) for image in shown],
        "job_images_next": shown[-1].index if len(images) > IMAGES_PER_PAGE else None,
        "job_images_first": start >= 0,
        "job_events": list(JobEvent.objects.filter(job=job).order_by("-sequence")[:EVENTS_SHOWN]),
        "job_progress": job_progress(job),
        "job": job,
    }


def image_details(request: HttpRequest, job: RenderJob, image: RenderImage) -> dict[str, Any]:
    """What the page of one image shows: the picture, its recipe, what it cost and who tried to render it."""
    base = base_of(request)
    tries = image.tries.order_by("pk").values(
        "outcome", "error_message", "gpu_us", worker=F("claim__worker__name")
    )  # fmt: skip
    recipe = {**recipe_from(job.lock, image.index).to_json(), "seed": image.seed, "subseed": image.subseed}
    return {
        **_thumbnail(image, base),
        "job": job,
        "job_address": reverse("admin:renderjobs_renderjob_change", args=[job.pk]),
        "short_id": str(job.pk)[-8:],
        "before": reverse("admin:renderjobs_image", args=[job.pk, image.index - 1]) if image.index else "",
        "following": reverse("admin:renderjobs_image", args=[job.pk, image.index + 1])
        if image.index + 1 < job.images_total
        else "",
        "attachments": [
            {"name": one.role, "url": file_url(one.file_key, base=base)} for one in image.attachments.all()
        ],
        "tries": [{**one, "gpu_seconds": seconds(one["gpu_us"])} for one in tries],
        "recipe": json.dumps(recipe, indent=2, ensure_ascii=False),
    }


def _thumbnail(image: RenderImage, base: str) -> dict[str, Any]:
    return {
        "image": image,
        "url": file_url(image.file_key, base=base) if image.state == ImageState.DELIVERED else None,
        "gpu_seconds": seconds(image.gpu_us),
    }


class RequestField(forms.JSONField):
    """Django's own lets Python's RecursionError through."""

    def to_python(self, value: Any) -> Any:
        try:
            return super().to_python(value)
        except RecursionError as error:
            raise forms.ValidationError("The JSON is nested too deeply.") from error

    def bound_data(self, data: Any, initial: Any) -> Any:
        try:
            return super().bound_data(data, initial)
        except RecursionError:
            return InvalidJSONInput(data)


class TemplateForm(forms.ModelForm):
    kind = forms.ChoiceField(choices=JobKind.choices, widget=UnfoldAdminSelectWidget)
    request = RequestField(
        widget=UnfoldAdminTextareaWidget(attrs={"rows": 14}), help_text="A job's request, in A1111's field names."
    )
    locked = RequestField(
        required=False,
        initial=list,
        widget=UnfoldAdminTextareaWidget(attrs={"rows": 2}),
        help_text='Fields that whoever submits the template cannot change, such as ["steps", "sd_model_checkpoint"].',
    )

    class Meta:
        model = BatchTemplate
        fields = ("team", "project", "name", "lane")

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if self.instance.pk and (newest := self.instance.newest):
            for name in {"kind", "request", "locked"} & set(self.fields):
                self.fields[name].initial = getattr(newest, name)

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or self.cleaned_data
        cleaned["locked"] = cleaned.get("locked") or []
        if "kind" in cleaned and "request" in cleaned:
            try:
                template_check(kind=cleaned["kind"], request=cleaned["request"], locked=cleaned["locked"])
            except InvalidRequestError as error:
                for item in error.errors:
                    self.add_error("locked" if item.field == "locked" else "request", item.message)
        team, project = cleaned.get("team"), cleaned.get("project")
        if team and project and project.team_id != team.pk:
            self.add_error("project", f"{project} is not a project of {team}.")
        return cleaned


class SubmitForm(forms.Form):
    """The template's request, field by field; what is locked is shown and cannot be changed."""

    def __init__(self, version: TemplateVersion, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.version = version
        for name, value in version.request.items():
            self.fields[name] = _field_for(value)
            self.fields[name].initial = value
            self.fields[name].disabled = name in version.locked

    def changes(self) -> dict[str, Any]:
        request = self.version.request
        return {name: value for name, value in self.cleaned_data.items() if value != request[name]}


def _field_for(value: Any) -> forms.Field:
    if isinstance(value, bool):
        return forms.BooleanField(required=False, widget=UnfoldBooleanSwitchWidget)
    if isinstance(value, int):
        return forms.IntegerField(widget=UnfoldAdminIntegerFieldWidget)
    if isinstance(value, float):
        return forms.FloatField(widget=UnfoldAdminDecimalFieldWidget)
    if isinstance(value, str):
        return forms.CharField(required=False, widget=UnfoldAdminTextareaWidget(attrs={"rows": 2}))
    return RequestField(required=False, widget=UnfoldAdminTextareaWidget(attrs={"rows": 3}))


@admin.register(BatchTemplate)
class TemplatePage(WorkAdmin):
    form = TemplateForm
    fields = ("team", "project", "name", "lane", "kind", "request", "locked")
    facts = ("team", "project", "name", "lane", "kind", "version", "request_text", "locked_fields")
    list_display = ("name", "team", "project", "version", "kind", "lane", "created_at")
    list_filter = (TeamFilter, "lane")
    list_select_related = ("team", "project__team")
    search_fields = ("name",)
    actions_detail = ("submit",)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        return super().get_queryset(request).with_newest()

    def get_fields(self, request: HttpRequest, obj: Model | None = None) -> tuple[str, ...]:
        """The request is the newest version's, so whoever only reads is shown it as a fact, not as a field."""
        return self.facts if obj and not self.has_change_permission(request, obj) else self.fields

    def get_readonly_fields(self, request: HttpRequest, obj: Model | None = None) -> tuple[str, ...]:
        return self.facts if obj and not self.has_change_permission(request, obj) else ()

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        given = {name: form.cleaned_data[name] for name in ("kind", "request", "locked")}
        template_save(template=obj, user=request.user, **given)  # type: ignore[arg-type]

    def delete_model(self, request: HttpRequest, obj: BatchTemplate) -> None:
        template_remove(obj)

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[BatchTemplate]) -> None:
        for template in queryset:
            template_remove(template)

    @display(description="Version")
    def version(self, template: BatchTemplate) -> int:
        return template.version  # type: ignore[attr-defined,no-any-return]

    @display(description="Kind")
    def kind(self, template: BatchTemplate) -> str:
        return template.kind  # type: ignore[attr-defined,no-any-return]

    @display(description="Request")
    def request_text(self, template: BatchTemplate) -> SafeString:
        return _as_json(template.newest.request if template.newest else {})

    @display(description="Locked")
    def locked_fields(self, template: BatchTemplate) -> str:
        return ", ".join(template.newest.locked) if template.newest else ""

    def has_submit_permission(self, request: HttpRequest, object_id: int | str) -> bool:
        template = self.get_object(request, str(object_id))
        who = teams_as(request, Role.LEAD, Role.MEMBER)
        return is_superuser(request) or bool(template and template.team_id in who)

    @action(description="Submit a job", permissions=["submit"], url_path="submit")
    def submit(self, request: HttpRequest, object_id: int) -> HttpResponse:
        template = self.get_object(request, str(object_id))
        version = template and template.newest
        if version is None:
            raise Http404
        form = SubmitForm(version, request.POST or None)
        once = request.POST.get("once", "")[:64] or uuid.uuid4().hex
        if "prompt" in form.fields and not form.fields["prompt"].disabled:
            form.fields["prompt"].initial = prompt_chosen(request, template.team_id) or form.fields["prompt"].initial
        if request.method == "POST" and form.is_valid():
            try:
                job = self._submitted(request, template, form, once)
            except PlatformError as error:
                form.add_error(None, error.message)
            else:
                return redirect("admin:renderjobs_renderjob_change", job.pk)
        context = {
            **self.admin_site.each_context(request),
            "title": f"Submit {version}",
            "form": form,
            "once": once,
            "opts": self.opts,
        }
        return render(request, "renderjobs/submit_template.html", context)

    def _submitted(self, request: HttpRequest, template: BatchTemplate, form: SubmitForm, once: str) -> RenderJob:
        """One form with one content makes one job, however often it is sent."""
        caller, changes = Caller(user=request.user, team=template.team), form.changes()  # type: ignore[arg-type]
        said = json.dumps([once, form.version.pk, changes], sort_keys=True)
        task_id = f"form-{hashlib.sha256(said.encode()).hexdigest()[:32]}"
        submitted = template_submit(
            caller=caller, version=form.version, source=Source.ADMIN, changes=changes, task_id=task_id
        )
        what = "was submitted already" if submitted.replayed else "is submitted"
        self.message_user(request, f"The job {what}; this page shows how far it is.", messages.SUCCESS)
        return submitted.job


TIMING = (*CRON_FIELDS, "timezone", "window_from", "window_until")
"""What says when a schedule runs."""
CRON_HELP = {
    "minute": "Such as 0, 0,30 or */15.",
    "hour": "Such as 3, 8-17 or *. A time that daylight saving skips runs as much later; one that comes twice runs once.",
    "day_of_month": "Such as 1, 1,15 or *. Where a day of the week is given as well, both have to match.",
    "month_of_year": "Such as 1-6, jan,jul or *.",
    "day_of_week": "Such as mon-fri, 0,6 or *; 0 is Sunday.",
}


class ScheduleForm(forms.ModelForm):
    timezone = forms.ChoiceField(choices=[], initial="UTC", widget=UnfoldAdminSelectWidget, label="Time zone")

    class Meta:
        model = BatchSchedule
        fields = ("template", *TIMING, "missed", "overlap", "ceiling", "enabled")

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if field := self.fields.get("timezone"):
            field.choices = [(name, name) for name in sorted(available_timezones())]
        for name, help_text in CRON_HELP.items():
            if field := self.fields.get(name):
                field.help_text = help_text

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or self.cleaned_data
        cron = {name: cleaned[name] for name in TIMING if name in cleaned}
        schedule = BatchSchedule(**cron)
        try:
            cron_of(schedule)
            zone_of(schedule.timezone)
            if not next_runs(schedule, 1):
                self.add_error(None, "These fields never meet within the window, so nothing would ever run.")
        except InvalidRequestError as error:
            for item in error.errors:
                self.add_error(item.field, item.message)
        return cleaned


@admin.register(BatchSchedule)
class SchedulePage(WorkAdmin):
    team_path = "template__team"
    form = ScheduleForm
    list_display = ("template", "team", "cron", "timezone", "enabled", "next_run", "last_run")
    list_filter = ("enabled",)
    list_select_related = ("template__team",)
    search_fields = ("template__name",)
    readonly_fields = ("next_five", "last_runs")

    def get_fields(self, request: HttpRequest, obj: Model | None = None) -> tuple[str, ...]:
        facts = ("next_five", "last_runs") if obj else ()
        return (*ScheduleForm.Meta.fields, *facts)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        last = ScheduledRun.objects.filter(schedule=OuterRef("pk")).order_by("-planned_for")
        return super().get_queryset(request).annotate(last_outcome=Subquery(last.values("outcome")[:1]))

    def save_model(self, request: HttpRequest, obj: BatchSchedule, form: Any, change: bool) -> None:
        super().save_model(request, obj, form, change)
        schedule_sync(obj, retimed=change and bool({*TIMING} & {*form.changed_data}))

    def delete_model(self, request: HttpRequest, obj: BatchSchedule) -> None:
        schedule_remove(obj)

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[BatchSchedule]) -> None:
        for schedule in queryset:
            schedule_remove(schedule)

    @display(description="Team", ordering="template__team__name")
    def team(self, schedule: BatchSchedule) -> str:
        return str(schedule.template.team)

    @display(description="Cron")
    def cron(self, schedule: BatchSchedule) -> str:
        return " ".join(getattr(schedule, name) for name in CRON_FIELDS)

    @display(description="Next run")
    def next_run(self, schedule: BatchSchedule) -> str:
        return next(iter(_shown_runs(schedule, 1)), "never") if schedule.enabled else "switched off"

    @display(description="Last run")
    def last_run(self, schedule: BatchSchedule) -> str:
        return schedule.last_outcome or "none yet"  # type: ignore[attr-defined,no-any-return]

    @display(description="Next five runs")
    def next_five(self, schedule: BatchSchedule) -> str:
        return "\n".join(_shown_runs(schedule, 5))

    @display(description="Last runs")
    def last_runs(self, schedule: BatchSchedule) -> SafeString:
        """With what they cost, so that a schedule that grew expensive is seen where it is planned."""
        runs = ScheduledRun.objects.filter(schedule=schedule).select_related("job")[:RUNS_SHOWN]
        zone = zone_of(schedule.timezone)
        rows = format_html_join("", RUN_ROW, (_run_cells(run, zone) for run in runs))
        return format_html('<table class="rk-table">{}</table>', rows or "None yet.")


def _shown_runs(schedule: BatchSchedule, count: int) -> list[str]:
    """In the schedule's own time zone, with its offset, so that a change to summer time can be seen."""
    try:
        runs = next_runs(schedule, count, after=timezone.now())
    except InvalidRequestError as error:
        return [error.message]
    return [f"{run:%a %Y-%m-%d %H:%M} (UTC{run:%z})" for run in runs]


def _run_cells(run: ScheduledRun, zone: ZoneInfo) -> tuple[Any, ...]:
    planned = f"{run.planned_for.astimezone(zone):%a %Y-%m-%d %H:%M}"
    if run.job is None:
        return planned, run.get_outcome_display(), run.reason, ""
    page = reverse("admin:renderjobs_renderjob_change", args=[run.job.pk])
    link = format_html('<a href="{}">{}</a>', page, run.job.get_state_display())
    return planned, run.get_outcome_display(), link, f"{run.job.cost_amount:.6f} {run.job.currency}"
