"""Ends of sessions. A session holds a hash of its user's password, rights and epoch (``User._get_session_auth_hash``).

A new password or another mark of the account (staff, superuser, finance) changes that hash by itself. What it cannot see raises the
epoch here: another role in a team, a team that was left, a deactivation, an administrator's order.
"""

from __future__ import annotations

from typing import Any

from django.db.models import F
from django.db.models.signals import post_delete, pre_save

from accounts.models import Membership, User
from accounts.signals import account_event


def sessions_end(*, user: User) -> None:
    """Every session of the user; the caller's own goes on only if the caller renews its hash."""
    User.objects.filter(pk=user.pk).update(session_epoch=F("session_epoch") + 1)
    account_event.send(sender=User, user=user, did="sessions were ended")


def connect() -> None:
    pre_save.connect(_role_changes, sender=Membership, dispatch_uid="sessions role")
    post_delete.connect(_team_is_left, sender=Membership, dispatch_uid="sessions team")
    pre_save.connect(_deactivated, sender=User, dispatch_uid="sessions user")


def _role_changes(sender: Any, instance: Membership, **_: Any) -> None:
    before = Membership.objects.filter(pk=instance.pk).values_list("role", "user_id").first() if instance.pk else None
    if before and before != (instance.role, instance.user_id):
        for user in User.objects.filter(pk__in={before[1], instance.user_id}):
            sessions_end(user=user)


def _team_is_left(sender: Any, instance: Membership, **_: Any) -> None:
    for user in User.objects.filter(pk=instance.user_id):  # none when the user goes as well
        sessions_end(user=user)


def _deactivated(sender: Any, instance: User, update_fields: Any = None, **_: Any) -> None:
    """Django keeps the inactive out; this keeps their old sessions from living again with the account."""
    writes = update_fields is None or "is_active" in update_fields
    if writes and not instance.is_active and User.objects.filter(pk=instance.pk, is_active=True).exists():
        sessions_end(user=instance)
        instance.session_epoch += 1  # the row is about to be written as this instance has it
