"""What people decide and say about assets. How an upload becomes one is in ``intake``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.db import transaction

from assets.cards import Card, card_errors, card_of
from assets.intake import missing_of_card
from assets.models import Asset, AssetState
from assets.previews import preview_set
from audit.recording import record
from common.errors import ConflictError, InvalidRequestError


@transaction.atomic
def asset_make_default(*, asset: Asset) -> None:
    """Raises: ConflictError: The asset is not approved, so no request could use it."""
    _lock_kind(asset.kind)
    if not Asset.objects.filter(pk=asset.pk, state=AssetState.APPROVED).exists():
        raise ConflictError(f"{asset} is {asset.state}; only an approved asset can be the default.")
    Asset.objects.filter(kind=asset.kind, is_default=True).update(is_default=False)
    Asset.objects.filter(pk=asset.pk).update(is_default=True)


@transaction.atomic
def asset_retire(*, asset: Asset) -> None:
    """New requests no longer find it; jobs that pinned it keep it, so its file stays.

    Raises:
        ConflictError: It is not approved.
    """
    _lock_kind(asset.kind)
    changes = {"state": AssetState.RETIRED, "is_default": False}
    if not Asset.objects.filter(pk=asset.pk, state=AssetState.APPROVED).update(**changes):
        raise ConflictError(f"{asset} is {asset.state}; only an approved asset can be retired.")


@transaction.atomic
def asset_restore(*, asset: Asset) -> None:
    """Raises: ConflictError: It is not retired."""
    if not Asset.objects.filter(pk=asset.pk, state=AssetState.RETIRED).update(state=AssetState.APPROVED):
        raise ConflictError(f"{asset} is {asset.state}; only a retired asset can be restored.")


@transaction.atomic
def asset_describe(*, asset: Asset, said: Mapping[str, Any], preview: bytes | None = None) -> Asset:
    """Change its card.

    Args:
        said: Fields of the card; those that are not named stay.
        preview: As ``preview_made`` returns it; empty for none, None leaves it as it is.
    Raises:
        InvalidRequestError: A field cannot be kept as it stands; nothing is changed.
    """
    if errors := card_errors(said):
        raise InvalidRequestError(errors)
    current = Asset.objects.select_for_update().get(pk=asset.pk)
    card = card_of(**said)
    for name in said:
        setattr(current, name, getattr(card, name))
    current.save(update_fields=list(said))
    if preview is not None:
        preview_set(asset=current, made=preview)
        record(current, "has another picture" if preview else "has no picture any more")
    return current


def asset_complete(*, asset: Asset, card: Card, preview: bytes = b"") -> None:
    """Add what was found out later; what is known stays."""
    if changes := missing_of_card(asset, card):
        Asset.objects.filter(pk=asset.pk).update(**changes)
    if preview and not asset.preview_key:
        preview_set(asset=asset, made=preview)


def _lock_kind(kind: str) -> None:
    """One decision at a time per kind, so that two cannot both see no default and both set one."""
    list(Asset.objects.select_for_update().filter(kind=kind, state=AssetState.APPROVED).order_by("pk").values("pk"))
