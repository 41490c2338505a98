"""The calls of `/api/v1`. A view checks scope, reads or calls one service, and shows the result."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import UTC, datetime, time
from typing import Any
from urllib.parse import urlencode

from django.db.models import QuerySet
from django.db.models.functions import Now
from django.http import StreamingHttpResponse
from django.utils import timezone
from django.utils.dateparse import parse_date, parse_datetime
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from accounts.authentication import Caller
from accounts.models import Scope
from audit.reading import reading_note
from audit.recording import record
from billing.deployments import unsettled
from billing.exports import csv_lines, report_lines
from billing.reports import DIMENSIONS, Period, is_dimension, unallocated, usage_rows
from common.errors import ConflictError, FieldError, InvalidRequestError
from common.schema import problems
from renderjobs.api import serializers as wire
from renderjobs.approvals import job_approve, job_decline
from renderjobs.choices import JobState
from renderjobs.files import base_of, file_url
from renderjobs.grids import grid_ensure, grid_size
from renderjobs.models import IdempotencyRecord, RenderJob
from renderjobs.models.jobs import Source
from renderjobs.pausing import job_pause, job_resume
from renderjobs.selectors import events_of, images_of, job_get, job_progress, jobs_of, jobs_progress, with_tag
from renderjobs.submission import job_cancel, job_estimate, job_submit

UNKNOWN = problems(401, 403, 404)
PAGE_SIZE, MAX_PAGE_SIZE = 100, 1000
MAX_KEY_LENGTH = 255


class JobsView(APIView):
    @extend_schema(
        operation_id="jobs_submit",
        request=wire.NewJobSchema,
        parameters=[OpenApiParameter("Idempotency-Key", str, OpenApiParameter.HEADER)],
        responses={
            201: wire.JobSchema,
            **problems(402, schema=wire.BudgetProblemSchema),
            **problems(429, schema=wire.QuotaProblemSchema, description="With Retry-After where it is known."),
            **problems(400, 401, 403, 409, 413, 415, 422, 503),
        },
    )
    def post(self, request: Request) -> Response:
        """Accept a job. The same Idempotency-Key and body get the same answer for seven days."""
        caller = caller_with(request, Scope.JOBS_WRITE)
        key = idempotency_key(request)
        fields = wire.job_body(request.data)
        try:
            submitted = job_submit(caller=caller, source=Source.API, body=request.data, idempotency_key=key, **fields)
        except InvalidRequestError as error:
            raise wire.as_written(error, request.data) from error
        if key:
            status, answer = answer_kept(request, key)
        else:
            status, answer = 201, shown(request, job_get(caller, submitted.job.pk))
        replayed = {"Idempotency-Replayed": "true"} if submitted.replayed else {}
        return Response(answer, status=status, headers={"Location": answer["links"]["self"], **replayed})

    @extend_schema(
        operation_id="jobs_list",
        parameters=[
            OpenApiParameter("state", str, enum=JobState.values),
            OpenApiParameter("project", str),
            OpenApiParameter("tag", str, description="key=value or key:value"),
            OpenApiParameter("limit", int),
            OpenApiParameter("before", str, description="The id of the last job of the page before."),
        ],
        responses={200: wire.page_of("JobPage", wire.JobSchema), **problems(422), **UNKNOWN},
    )
    def get(self, request: Request) -> Response:
        """The team's jobs, newest first."""
        caller = caller_with(request, Scope.JOBS_READ)
        limit = page_size(request)
        jobs = list(filtered(jobs_of(caller).annotate(now=Now()), request)[: limit + 1])
        progress = jobs_progress(jobs[:limit])
        rows = [wire.job_json(job, progress[job.pk], base=base_of(request)) for job in jobs[:limit]]
        following = next_page(request, before=rows[-1]["id"]) if len(jobs) > limit else None
        return Response({"results": rows, "next": following})


class EstimateView(APIView):
    @extend_schema(
        operation_id="jobs_estimate",
        request=wire.NewJobSchema,
        responses={200: wire.EstimateSchema, **problems(400, 409, 413, 415, 422, 503), **UNKNOWN},
    )
    def post(self, request: Request) -> Response:
        """What a job would cost and what its budgets have left: the checks of a submission, and nothing is stored."""
        caller = caller_with(request, Scope.JOBS_WRITE)
        fields = wire.job_body(request.data)
        wanted = {name: fields[name] for name in ("request", "lane", "project", "tags")}
        try:
            estimate, budgets = job_estimate(caller=caller, **wanted)
        except InvalidRequestError as error:
            raise wire.as_written(error, request.data) from error
        return Response(wire.estimate_json(estimate, budgets))


class JobView(APIView):
    @extend_schema(operation_id="jobs_get", responses={200: wire.JobSchema, **UNKNOWN})
    def get(self, request: Request, job_id: str) -> Response:
        """One job with its progress and cost."""
        return Response(shown(request, job_get(caller_with(request, Scope.JOBS_READ), job_id)))


class JobCancelView(APIView):
    @extend_schema(operation_id="jobs_cancel", request=None, responses={200: wire.JobSchema, **UNKNOWN})
    def post(self, request: Request, job_id: str) -> Response:
        """Take back what is not delivered; delivered images stay and are charged. Cancelling twice changes nothing."""
        caller = caller_with(request, Scope.JOBS_CANCEL)
        job_cancel(job=job_get(caller, job_id))
        return Response(shown(request, job_get(caller, job_id)))


class JobPauseView(APIView):
    @extend_schema(operation_id="jobs_pause", request=None, responses={200: wire.JobSchema, **problems(409), **UNKNOWN})
    def post(self, request: Request, job_id: str) -> Response:
        """Begin no more images of the job; what is on a worker ends and is charged. Pausing twice changes nothing."""
        caller = caller_with(request, Scope.JOBS_WRITE)
        job_pause(job=job_get(caller, job_id))
        return Response(shown(request, job_get(caller, job_id)))


class JobResumeView(APIView):
    @extend_schema(
        operation_id="jobs_resume", request=None, responses={200: wire.JobSchema, **problems(409), **UNKNOWN}
    )
    def post(self, request: Request, job_id: str) -> Response:
        """Let a paused job go on, at the place in the queue that it had."""
        caller = caller_with(request, Scope.JOBS_WRITE)
        job_resume(job=job_get(caller, job_id))
        return Response(shown(request, job_get(caller, job_id)))


class JobDecisionView(APIView):
    """What the two calls about a held job have in common."""

    def decided(self, request: Request, job_id: str, decide: Callable[..., None]) -> Response:
        caller = caller_with(request, Scope.JOBS_WRITE)
        decide(job=job_get(caller, job_id), user=caller.user, note=wire.note_of(request.data))
        return Response(shown(request, job_get(caller, job_id)))


class JobApproveView(JobDecisionView):
    @extend_schema(
        operation_id="jobs_approve",
        request=wire.DecisionSchema,
        responses={200: wire.JobSchema, **problems(400, 409, 413, 415, 422), **UNKNOWN},
    )
    def post(self, request: Request, job_id: str) -> Response:
        """Let a held job into the queue. For the team's leads; for a budget of all teams, who runs the platform."""
        return self.decided(request, job_id, job_approve)


class JobDeclineView(JobDecisionView):
    @extend_schema(
        operation_id="jobs_decline",
        request=wire.DecisionSchema,
        responses={200: wire.JobSchema, **problems(400, 409, 413, 415, 422), **UNKNOWN},
    )
    def post(self, request: Request, job_id: str) -> Response:
        """Refuse a held job: it is cancelled, and what was held for it is free again."""
        return self.decided(request, job_id, job_decline)


class JobImagesView(APIView):
    @extend_schema(
        operation_id="jobs_images",
        parameters=[
            OpenApiParameter("limit", int),
            OpenApiParameter("after", int, description="Index of the last image."),
        ],
        responses={200: wire.page_of("ImagePage", wire.ImageSchema), **problems(422), **UNKNOWN},
    )
    def get(self, request: Request, job_id: str) -> Response:
        """The job's images by index, each readable as soon as it is delivered."""
        job = job_get(caller_with(request, Scope.JOBS_READ), job_id)
        limit, after = page_size(request), whole_number(request, "after", -1, minimum=-1, maximum=2**31 - 1)
        images = list(images_of(job, after=after).prefetch_related("attachments")[: limit + 1])
        note_reading(request, job)
        rows = [wire.image_json(image, job, base=base_of(request)) for image in images[:limit]]
        following = next_page(request, after=rows[-1]["index"]) if len(images) > limit else None
        return Response({"results": rows, "next": following})


class JobEventsView(APIView):
    @extend_schema(
        operation_id="jobs_events",
        parameters=[
            OpenApiParameter("limit", int),
            OpenApiParameter("after", int, description="Sequence of the last event."),
        ],
        responses={200: wire.page_of("EventPage", wire.EventSchema), **problems(422), **UNKNOWN},
    )
    def get(self, request: Request, job_id: str) -> Response:
        """Every move of the job's and its images' states, by sequence."""
        job = job_get(caller_with(request, Scope.JOBS_READ), job_id)
        limit, after = page_size(request), whole_number(request, "after", 0, minimum=0, maximum=2**31 - 1)
        events = list(events_of(job, after=after)[: limit + 1])
        rows = [wire.event_json(event) for event in events[:limit]]
        following = next_page(request, after=rows[-1]["sequence"]) if len(events) > limit else None
        return Response({"results": rows, "next": following})


class JobGridView(APIView):
    @extend_schema(operation_id="jobs_grid", responses={200: wire.GridSchema, **problems(409), **UNKNOWN})
    def get(self, request: Request, job_id: str) -> Response:
        """The contact sheet of an ended job, laid out as A1111 lays out its grids."""
        job = job_get(caller_with(request, Scope.JOBS_READ), job_id)
        if job.finished_at is None or not job.images_delivered:
            raise ConflictError("The contact sheet is made when the job has ended with at least one delivered image.")
        note_reading(request, job)
        (width, height), url = grid_size(job), file_url(grid_ensure(job), base=base_of(request))
        return Response({"url": url, "images": job.images_delivered, "width": width, "height": height})


USAGE_PARAMETERS = [
    OpenApiParameter("group_by", str, description=f"Comma-separated: {', '.join(DIMENSIONS)}, tag:KEY."),
    OpenApiParameter("from", str, description="First day, or moment; default: this month's first."),
    OpenApiParameter("to", str, description="First day after the period, or moment; default: now."),
]


class UsageView(APIView):
    @extend_schema(
        operation_id="usage",
        parameters=[
            *USAGE_PARAMETERS,
            OpenApiParameter("limit", int, description="Rows of a page; 1000 unless told."),
            OpenApiParameter("after", int, description="How many rows came before."),
        ],
        responses={200: wire.UsageSchema, **problems(422), **UNKNOWN},
    )
    def get(self, request: Request) -> Response:
        """What the team has used, and what of the unallocated costs is placed beside it: the numbers of the reports."""
        dimensions, period = usage_wanted(request)
        limit = page_size(request, MAX_PAGE_SIZE)
        after = whole_number(request, "after", 0, minimum=0, maximum=2**31 - 1)
        rows = list(usage_rows(dimensions, period, offset=after, limit=limit + 1))
        following = next_page(request, after=after + limit) if len(rows) > limit else None
        return Response(
            {
                "results": [wire.usage_json(row) for row in rows[:limit]],
                "unallocated": [wire.usage_json(row) for row in unallocated(period)],
                "deployments": [wire.usage_json(row) for row in unsettled(period)],
                "next": following,
            }
        )


class UsageFileView(APIView):
    @extend_schema(
        operation_id="usage_csv",
        parameters=USAGE_PARAMETERS,
        responses={(200, "text/csv"): str, **problems(422), **UNKNOWN},
    )
    def get(self, request: Request) -> StreamingHttpResponse:
        """The same report as one CSV file, whatever its length."""
        dimensions, period = usage_wanted(request)
        record(request.user, "took the usage away as csv", question=request.query_params.urlencode()[:500])
        pieces = csv_lines(dimensions, report_lines(dimensions, period))
        headers = {"Content-Disposition": 'attachment; filename="usage.csv"'}
        return StreamingHttpResponse(pieces, content_type="text/csv; charset=utf-8", headers=headers)


def usage_wanted(request: Request) -> tuple[list[str], Period]:
    """Raises: InvalidRequestError, ForbiddenError."""
    caller = caller_with(request, Scope.USAGE_READ)
    dimensions = [name for name in dict.fromkeys(request.query_params.get("group_by", "team").split(",")) if name]
    if wrong := [name for name in dimensions if not is_dimension(name)]:
        message = f"group_by is {wrong[0][:80]!r}; accepted are {', '.join(DIMENSIONS)}, tag:KEY."
        raise InvalidRequestError([FieldError("group_by", message)])
    now = timezone.now()
    month = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    start, end = moment(request, "from") or month, moment(request, "to") or now
    return dimensions, Period(start=start, end=end, team_ids=[caller.team.pk])


def note_reading(request: Request, job: RenderJob) -> None:
    if job.images_delivered:
        reading_note(reader=request.user, obj=job, owner_id=job.user_id, what="was given the pictures")


def caller_with(request: Request, scope: str) -> Caller:
    """Raises: ForbiddenError: The token lacks the scope."""
    caller: Caller = request.auth
    caller.require(scope)
    return caller


def shown(request: Request, job: RenderJob) -> dict[str, Any]:
    return wire.job_json(job, job_progress(job), base=base_of(request))


def answer_kept(request: Request, key: str) -> tuple[int, Any]:
    """Status and body of the one answer to this key.

    It is stored by whoever comes first: the call that made the job, or a repeat while that one still writes or after it died.
    """
    records = IdempotencyRecord.objects.filter(token=request.auth.token, key=key)
    record = records.get()
    if record.response is None:
        answer = shown(request, job_get(request.auth, record.job_id))
        records.filter(response__isnull=True).update(response=answer)
        record = records.get()
    return record.status, record.response


def idempotency_key(request: Request) -> str:
    key = request.headers.get("Idempotency-Key", "")
    if len(key) > MAX_KEY_LENGTH or not key.isprintable():
        message = f"Idempotency-Key must be at most {MAX_KEY_LENGTH} printable characters."
        raise InvalidRequestError([FieldError("Idempotency-Key", message)])
    return key


def filtered(jobs: QuerySet[RenderJob], request: Request) -> QuerySet[RenderJob]:
    """Raises: InvalidRequestError: A filter that cannot be understood, instead of one that is ignored."""
    query = request.query_params
    if state := query.get("state"):
        if state not in JobState.values:
            raise InvalidRequestError(
                [FieldError("state", f"state is {state!r}; accepted are {', '.join(JobState.values)}.")]
            )
        jobs = jobs.filter(state=state)
    if wrong := [name for name in ("project", "tag") if "\x00" in query.get(name, "")]:
        raise InvalidRequestError([FieldError(wrong[0], f"{wrong[0]} holds a NUL, which no name has.")])
    if project := query.get("project"):
        jobs = jobs.filter(project__name=project)
    if tag := query.get("tag"):
        key, separator, value = tag.partition("=" if "=" in tag else ":")
        if not separator:
            raise InvalidRequestError([FieldError("tag", f"tag is {tag!r}; accepted is key=value or key:value.")])
        jobs = with_tag(jobs, key, value)
    if before := query.get("before"):
        try:
            jobs = jobs.filter(pk__lt=uuid.UUID(before))
        except ValueError as error:
            raise InvalidRequestError([FieldError("before", "before must be the id of a job.")]) from error
    return jobs


def page_size(request: Request, default: int = PAGE_SIZE) -> int:
    return whole_number(request, "limit", default, minimum=1, maximum=MAX_PAGE_SIZE)


def whole_number(request: Request, name: str, default: int, *, minimum: int, maximum: int) -> int:
    text = request.query_params.get(name, str(default))
    try:
        number = int(text)
    except ValueError:
        number = minimum - 1
    if not minimum <= number <= maximum:
        message = f"{name} is {text[:40]!r}; accepted are {minimum} to {maximum}."
        raise InvalidRequestError([FieldError(name, message)])
    return number


def moment(request: Request, name: str) -> datetime | None:
    text = request.query_params.get(name)
    if text is None:
        return None
    try:
        day = parse_date(text)
        found = datetime.combine(day, time(0)) if day else parse_datetime(text)
        if found is not None:
            return found.astimezone(UTC) if found.tzinfo else found.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        pass
    raise InvalidRequestError([FieldError(name, f"{name} is {text[:40]!r}; accepted is a day or a moment, ISO 8601.")])


def next_page(request: Request, **cursor: Any) -> str:
    query = {**request.query_params.dict(), **cursor}
    return f"{base_of(request)}{request.path}?{urlencode(query)}"
