"""service_create and service_token_renew: a service comes with its account, its token and, if it is asynchronous, its queues."""

from __future__ import annotations

import secrets
from collections.abc import Mapping

from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import Count

from accounts.models import ApiToken, Team
from accounts.services import member_ensure, token_issue, token_revoke
from common.errors import ConflictError, FieldError, InvalidRequestError
from renderjobs.compat.eas.access import token_text
from renderjobs.compat.eas.paths import mounts_checked
from renderjobs.models import EasEdition, EasQueue, EasService, QueueKind


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
    if edition in (EasEdition.API, EasEdition.CLUSTER) and not service.mounts:
        message = f"Edition {edition!r} keeps its pictures by path; name at least one mount path."
        raise InvalidRequestError([FieldError("mounts", message)])
    _check(service)
    service.user = member_ensure(team_name=team.name, user_name=f"eas-{name}"[:150], service_account=True).user
    text = _give_token(service)
    service.save()
    if service.is_asynchronous:
        queues_ensure(service)
    return service, text


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
    except ValidationError as error:
        raise InvalidRequestError(
            [FieldError(field, " ".join(messages)) for field, messages in error.message_dict.items()]
        ) from error
