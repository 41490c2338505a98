"""What people decide about approved assets. How an upload becomes one is in ``intake``."""

from __future__ import annotations

from django.db import transaction

from assets.models import Asset, AssetState
from common.errors import ConflictError


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


def _lock_kind(kind: str) -> None:
    """One decision at a time per kind, so that two cannot both see no default and both set one."""
    list(Asset.objects.select_for_update().filter(kind=kind, state=AssetState.APPROVED).order_by("pk").values("pk"))
