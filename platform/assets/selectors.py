"""Name or hash → asset. A name outside the caller's access behaves as unknown."""

from __future__ import annotations

import re

from django.db.models import Q

from accounts.authentication import Caller
from assets.models import Asset, AssetKind, AssetQuerySet

EXTENSION = re.compile(r"\.(safetensors|ckpt|pt|pth|bin)$", re.IGNORECASE)


def assets_of(caller: Caller, kind: str) -> AssetQuerySet:
    """What the caller may use of one kind, newest upload of each name first. Every read of this module begins here.

    A service may limit what its calls see: what lies outside that is as unknown as another team's.
    """
    visible = Asset.objects.visible_to(user=caller.user, team=caller.team)
    for service in caller.services:
        visible = visible.in_part(service.part_of(kind))
    return visible.filter(kind=kind).order_by("name", "-approved_at", "-pk")


def newest_of(caller: Caller, kind: str) -> list[Asset]:
    """One asset per name, by name."""
    newest: dict[str, Asset] = {}
    for asset in assets_of(caller, kind):
        newest.setdefault(asset.name, asset)
    return list(newest.values())


def same_bytes(rows: AssetQuerySet) -> dict[int, list[str]]:
    """Of some assets those that have the very bytes of another one, by key, with the names of the others among all of ``rows``."""
    by_bytes: dict[tuple[str, str], dict[int, str]] = {}
    for pk, kind, name, sha256 in (
        rows.exclude(sha256="").order_by("name", "pk").values_list("pk", "kind", "name", "sha256")
    ):
        by_bytes.setdefault((kind, sha256), {})[pk] = name
    return {
        pk: sorted(set(names.values()) - {names[pk]})
        for names in by_bytes.values()
        if len(set(names.values())) > 1
        for pk in names
    }


def asset_find(caller: Caller, kind: str, name: str) -> Asset | None:
    """By stem, file name, title with hash, alias, short hash or sha-256; the newest upload wins."""
    wanted = name.strip()
    if not wanted:
        return None
    stem, _, shown_hash = wanted.removesuffix("]").rpartition(" [")
    by_title = Q(name=EXTENSION.sub("", stem)) & (Q(short_hash=shown_hash) | Q(listed_hash=shown_hash))
    by_name = Q(name=wanted) | Q(name=EXTENSION.sub("", wanted)) | Q(sha256=wanted) | Q(original_sha256=wanted)
    by_name |= Q(short_hash=wanted) | Q(alias=wanted)
    found = assets_of(caller, kind).filter(by_name | by_title if stem else by_name)
    return found.order_by("-approved_at", "-pk").first()


def asset_find_loosely(caller: Caller, kind: str, name: str) -> Asset | None:
    """``asset_find``, else the shortest title that holds the text.

    Source: ``get_closet_checkpoint_match``, A1111 1.10.1 ``modules/sd_models.py``.
    """
    exact = asset_find(caller, kind, name)
    if exact is not None:
        return exact
    wanted = [name, re.sub(r"\s*\[.*\]$", "", name)]
    for text in wanted:
        holding = [asset for asset in newest_of(caller, kind) if text and text in asset.title]
        if holding:
            return min(holding, key=lambda asset: len(asset.title))
    return None


def control_find(caller: Caller, name: str) -> Asset | None:
    """A ControlNet by ``asset_find``, else without regard to case, else the shortest name that holds the text.

    Source: ``find_closest_lora_model_name``, sd-webui-controlnet 1.1.455 ``scripts/controlnet.py``.
    """
    exact = asset_find(caller, AssetKind.CONTROLNET, name)
    wanted = name.lower()
    if exact is not None or not wanted:
        return exact
    holding = [asset for asset in newest_of(caller, AssetKind.CONTROLNET) if wanted in asset.name.lower()]
    return min(holding, key=lambda asset: len(asset.name), default=None)


def checkpoints_of(caller: Caller) -> AssetQuerySet:
    return assets_of(caller, AssetKind.CHECKPOINT)


def checkpoint_find(caller: Caller, name: str) -> Asset | None:
    return asset_find(caller, AssetKind.CHECKPOINT, name)


def checkpoint_default(caller: Caller) -> Asset | None:
    """The installation's default, or the first the caller may use when the default is not among those."""
    return checkpoints_of(caller).order_by("-is_default", "name", "-approved_at", "-pk").first()
