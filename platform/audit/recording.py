"""What is recorded beside the changes of rows: who acted and from where, sign-ins, actions of the admin, files taken away.

A token's user becomes the request's when the API recognises it, so one way leads to the actor for the admin and for the APIs.
"""

from __future__ import annotations

from typing import Any

from auditlog.models import LogEntry
from django.contrib.admin.models import LogEntry as AdminAction
from django.contrib.auth.signals import user_logged_in, user_logged_out, user_login_failed
from django.db.models import Model
from django.db.models.signals import post_save, pre_save
from django.http import HttpRequest
from import_export.signals import post_export, post_import

from accounts.models import User
from accounts.signals import account_event
from accounts.throttling import was_looked_at
from audit.acting import acting

LONGEST_NAME = 150


def record(obj: Model, what: str, **details: Any) -> None:
    """Write that something was done to ``obj`` which changed no column of it, or none that is watched."""
    LogEntry.objects.log_create(
        obj, force_log=True, action=LogEntry.Action.ACCESS, additional_data={"did": what, **details}
    )


def connect() -> None:
    pre_save.connect(_name_the_actor, sender=LogEntry, dispatch_uid="audit actor")
    post_save.connect(_action_of_the_admin, sender=AdminAction, dispatch_uid="audit admin")
    user_logged_in.connect(_signed_in, dispatch_uid="audit in")
    user_logged_out.connect(_signed_out, dispatch_uid="audit out")
    post_export.connect(_list_exported, dispatch_uid="audit export")
    post_import.connect(_list_imported, dispatch_uid="audit import")
    user_login_failed.connect(_refused, dispatch_uid="audit refused")
    account_event.connect(_of_an_account, dispatch_uid="audit account")


def _name_the_actor(sender: Any, instance: LogEntry, **_: Any) -> None:
    """The name too: it stays when the account goes."""
    request = acting.get()
    if request is None or instance.pk is not None:
        return
    user = getattr(request, "user", None)
    if user is not None and user.is_authenticated:
        instance.actor_id = user.pk
        instance.additional_data = {"by": user.get_username(), **(instance.additional_data or {})}
    instance.remote_addr = request.META.get("REMOTE_ADDR") or None


def _action_of_the_admin(sender: Any, instance: AdminAction, **_: Any) -> None:
    """An action's own words. What a form changed is recorded with its values already."""
    target = None if instance.change_message.startswith("[") else instance.get_edited_object()
    if target is not None:
        record(target, instance.change_message)


def _signed_in(sender: Any, request: HttpRequest | None, user: User, **_: Any) -> None:
    if request is not None:
        record(user, "signed in", by=user.get_username())


def _signed_out(sender: Any, request: HttpRequest | None, user: User | None, **_: Any) -> None:
    if user is not None:
        record(user, "signed out", by=user.get_username())


def _of_an_account(sender: Any, user: User, did: str, **_: Any) -> None:
    record(user, did)


def _list_exported(sender: Any, model: type[Model], **_: Any) -> None:
    _about_list(f"took the list of {model._meta.verbose_name_plural} away")


def _list_imported(sender: Any, model: type[Model], **_: Any) -> None:
    """Each row's change has an entry of its own."""
    _about_list(f"imported a file on the page of {model._meta.verbose_name_plural}")


def _about_list(what: str) -> None:
    request = acting.get()
    if request is not None and isinstance(request.user, User):
        record(request.user, what, question=request.GET.urlencode()[:500])


def _refused(sender: Any, credentials: dict[str, Any], request: HttpRequest | None = None, **_: Any) -> None:
    """Of a name that nobody has there is nothing to write to, and the web server's log has the request. Tries during a lock
    are not looked at, and would only fill the log."""
    if request is not None and not was_looked_at(request):
        return
    name = str(credentials.get("username", ""))[:LONGEST_NAME]
    user = User.objects.filter(username=name).first() if request is not None and "\x00" not in name else None
    if user is not None:
        record(user, "was refused at sign-in")
