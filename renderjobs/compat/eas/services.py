"""service_create, service_import and the rest of a service's life: it comes with its account, its token and, if it is asynchronous,
its queues; it is stopped and started, and its document says how it is set."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from typing import Any

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction
from django.db.models import Count

from accounts.authentication import Caller
from accounts.models import ApiToken, Team
from accounts.services import member_ensure, token_issue, token_revoke
from common.errors import ConflictError, FieldError, InvalidRequestError
from fleet.models import Pool
from renderjobs.compat.eas import documents, flags
from renderjobs.compat.eas.access import token_text
from renderjobs.compat.eas.paths import mounts_checked
from renderjobs.compat.eas.wakeups import announce
from renderjobs.models import EasEdition, EasQueue, EasService, QueueKind
from renderjobs.selectors import service_of


@transaction.atomic
def service_create(
    *,
    name: str,
    team: Team,
    edition: str = EasEdition.API.value,
    mounts: Mapping[str, str] | None = None,
    **limits: object,
) -> tuple[EasService, str]:
    """Make a service and return it with its token's text, which can never be read again.

    Args:
        limits: Any other field of :class:`EasService`.
    Raises:
        InvalidRequestError: A value cannot be used; nothing is stored.
        ConflictError: There is a service of this name.
    """
    if EasService.objects.filter(name=name).exists():
        raise ConflictError(f"There is a service named {name!r} already.", field="name")
    service = EasService(name=name, team=team, edition=edition, **limits)
    if mounts is not None:
        service.mounts = dict(mounts)
    service.mounts = mounts_checked(service.mounts)
    _check(service)
    service.user = member_ensure(team_name=team.name, user_name=f"eas-{name}"[:150], service_account=True).user
    text = _give_token(service)
    try:
        with transaction.atomic():
            service.save()
    except IntegrityError as error:  # two were made at once
        raise ConflictError(f"There is a service named {name!r} already.", field="name") from error
    if service.is_asynchronous:
        queues_ensure(service)
    return service, text


def service_import(*, text: str, team: Team, name: str = "") -> tuple[EasService, str]:
    """Make a service from a document of PAI-EAS, which is kept for ``service_document``.

    Args:
        name: In place of the document's.
    Raises:
        InvalidRequestError: The document cannot be used; every error names the key. Nothing is stored.
        ConflictError: There is a service of this name.
    """
    document = documents.document_parsed(text)
    found = documents.settings_of(document, known_mounts=settings.EAS_MOUNTS)
    found["name"] = name or found["name"]
    try:
        found["pool"] = _pool(found["pool"])
        return service_create(**found, team=team, document=json.dumps(document))
    except InvalidRequestError as error:
        raise InvalidRequestError([_of_key(item) for item in error.errors]) from error


def _pool(name: str | None) -> Pool | None:
    pool = Pool.objects.filter(name=name).first() if name else None
    if name and pool is None:
        raise InvalidRequestError([FieldError("pool", f"There is no pool {name[:80]!r}.")])
    return pool


def _of_key(error: FieldError) -> FieldError:
    """A field's error by the document's name of it."""
    setting = documents.SETTINGS.get(error.field)
    return FieldError(setting.key, f"{setting.key}: {error.message}", error.value) if setting else error


def service_document(service: EasService) -> documents.Document:
    """The document that makes such a service: the one it was made from, with the settings of today."""
    values = {name: getattr(service, name) for name in documents.SETTINGS}
    values["pool"] = service.pool.name if service.pool else None
    return documents.document_with(document_kept(service), values, known_mounts=settings.EAS_MOUNTS)


def document_kept(service: EasService) -> documents.Document | None:
    """As it was imported."""
    found: dict[str, Any] | None = json.loads(service.document) if service.document else None
    return found


def flags_shown(caller: Caller) -> dict[str, Any]:
    """Of the run command of the caller's service, as A1111's ``cmd-flags`` names them; without those that mean nothing here."""
    service = service_of(caller)
    if service is None:
        return {}
    given = flags.flags_of(service_document(service)["containers"][0]["script"])
    return {flag.name[2:].replace("-", "_"): _shown(flag) for flag in given if flag.name in flags.ARITIES}


def _shown(flag: flags.Flag) -> Any:
    if flag.name == flags.HIDE_TABS:
        return list(flag.values)
    if not flag.values:
        return True
    value = flag.values[0]
    return int(value) if value.isdecimal() and len(value) < 10 else value


def service_stop(*, service: EasService) -> None:
    """Calls are answered with 404 from now on; what waits in its queues stays. Stopping twice is stopping."""
    _enable(service, False)


def service_start(*, service: EasService) -> None:
    _enable(service, True)


@transaction.atomic
def _enable(service: EasService, on: bool) -> None:
    service.enabled = on
    service.save(update_fields=["enabled"])  # by which its instances are billed, or are not
    for queue_id in service.queues.order_by("pk").values_list("pk", flat=True):
        announce(queue_id)


@transaction.atomic
def service_token_renew(*, service: EasService) -> str:
    """A new token; the old one ends now."""
    locked = EasService.objects.select_for_update(of=("self",)).select_related("user", "team").get(pk=service.pk)
    old = locked.token
    text = _give_token(locked)
    locked.save(update_fields=["token", "token_nonce"])
    token_revoke(token=old)
    return text


def queues_ensure(service: EasService) -> None:
    for kind in QueueKind.values:
        EasQueue.objects.get_or_create(service=service, kind=kind)


def queue_lengths(service: EasService) -> dict[str, int]:
    """Frames by queue."""
    counted = service.queues.annotate(length=Count("frames")).order_by("pk")
    return dict(counted.values_list("kind", "length"))


def _give_token(service: EasService) -> str:
    service.token_nonce = secrets.token_hex(32)
    text = token_text(service.token_nonce)
    service.token = _token(service, text)
    return text


def _token(service: EasService, text: str) -> ApiToken:
    token, _ = token_issue(user=service.user, team=service.team, name=f"service {service.name}"[:120], text=text)
    return token


def _check(service: EasService) -> None:
    try:
        service.clean_fields(exclude=["user", "token", "token_nonce", "team"])
        service.clean()
    except ValidationError as error:
        raise InvalidRequestError(
            [FieldError(field, " ".join(messages)) for field, messages in error.message_dict.items()]
        ) from error
