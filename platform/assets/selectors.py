"""Name or hash → asset. A name outside the caller's access behaves as unknown."""

from __future__ import annotations

from django.db.models import Q

from accounts.authentication import Caller
from assets.models import Asset, AssetKind, AssetQuerySet


def checkpoints_of(caller: Caller) -> AssetQuerySet:
    """The checkpoints the caller may use, newest upload of each name first."""
    visible = Asset.objects.visible_to(user=caller.user, team=caller.team)
    return visible.filter(kind=AssetKind.CHECKPOINT).order_by("name", "-approved_at", "-pk")


def checkpoint_find(caller: Caller, name: str) -> Asset | None:
    """By any alias A1111 knows: stem, file name, title with hash, short hash or sha-256; the newest upload wins."""
    wanted = name.strip()
    title_stem, _, title_hash = wanted.removesuffix("]").rpartition(" [")
    by_title = Q(name=title_stem.removesuffix(".safetensors"), short_hash=title_hash) if title_stem else Q(pk__in=[])
    by_name = Q(name=wanted) | Q(name=wanted.removesuffix(".safetensors")) | Q(sha256=wanted) | Q(short_hash=wanted)
    return checkpoints_of(caller).filter(by_name | by_title).order_by("-approved_at", "-pk").first()


def checkpoint_default(caller: Caller) -> Asset | None:
    """The installation's default, or the first the caller may use when the default is not among those."""
    return checkpoints_of(caller).order_by("-is_default", "name", "-approved_at").first()
