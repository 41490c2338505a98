"""Saved batches: what a template holds, its versions, and a job made of one. When they run by themselves is in ``schedules``."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from django.db import transaction
from django.db.models import Max

from accounts.authentication import Caller
from accounts.models import User
from common.errors import FieldError, InvalidRequestError
from renderjobs.api.serializers import render_request
from renderjobs.models import BatchSchedule, BatchTemplate, TemplateVersion
from renderjobs.submission import Submitted, job_submit

OPTIONS = "override_settings"
"""A request's options: those that are given change, the others stay."""


def template_check(*, kind: str, request: Any, locked: Any) -> None:
    """Raises: InvalidRequestError: The request could not be rendered, or a field is locked that it does not have."""
    render_request(kind, request)
    if not isinstance(locked, list) or not all(isinstance(name, str) for name in locked):
        raise InvalidRequestError([FieldError("locked", "locked must be a list of field names.", locked)])
    absent = [name for name in locked if name not in request]
    if absent:
        message = f"Field {absent[0]!r} is locked, but the request does not say what it is."
        raise InvalidRequestError([FieldError("locked", message, absent[0])])


@transaction.atomic
def template_save(
    *, template: BatchTemplate, user: User, kind: str, request: Mapping[str, Any], locked: list[str]
) -> TemplateVersion:
    """Store the template, and what it holds as a new version where that has changed.

    Whoever saves is whom runs act for from now on: else a lead could borrow the access of the one who wrote the version before.

    Raises:
        InvalidRequestError: See ``template_check``.
    """
    template_check(kind=kind, request=request, locked=locked)
    template.save()
    BatchTemplate.objects.select_for_update().get(pk=template.pk)
    newest = template.newest
    values = {"kind": kind, "request": dict(request), "locked": sorted(set(locked)), "created_by": user}
    if newest and all(getattr(newest, name) == value for name, value in values.items()):
        return newest
    number = (template.versions.aggregate(most=Max("number"))["most"] or 0) + 1
    return TemplateVersion.objects.create(template=template, number=number, **values)


def template_submit(
    *,
    caller: Caller,
    version: TemplateVersion,
    source: str,
    changes: Mapping[str, Any] | None = None,
    schedule: BatchSchedule | None = None,
    scheduled_for: datetime | None = None,
    **more: Any,
) -> Submitted:
    """A job of the template's request with some of its fields changed.

    Args:
        more: What else ``job_submit`` takes.
    Raises:
        InvalidRequestError: A locked field is to be changed, or the request cannot be rendered.
        PlatformError: As ``job_submit``.
    """
    template = version.template
    request, uploads = render_request(version.kind, changed(version, changes or {}))
    return job_submit(
        caller=caller,
        request=request,
        uploads=uploads,
        source=source,
        project=template.project.name if template.project else "",
        template_version=version,
        schedule=schedule,
        scheduled_for=scheduled_for,
        **{"lane": template.lane, **more},
    )


def changed(version: TemplateVersion, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Raises: InvalidRequestError: Naming every locked field among the changes."""
    locked = [name for name in version.locked if name in changes and changes[name] != version.request.get(name)]
    if locked:
        raise InvalidRequestError(
            [
                FieldError(f"request.{name}", f"{name} is locked by template {version}.", changes[name])
                for name in locked
            ]
        )
    merged = {**version.request, **changes}
    if isinstance(changes.get(OPTIONS), Mapping):
        merged[OPTIONS] = {**(version.request.get(OPTIONS) or {}), **changes[OPTIONS]}
    return merged
