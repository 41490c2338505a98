"""Which pool a job goes to: the first in which everything it has pinned may run."""

from __future__ import annotations

from collections.abc import Iterable

from assets.models import Asset
from common.errors import FieldError, InvalidRequestError
from fleet.models import Pool

FIELD_OF_KIND = {"checkpoint": "sd_model_checkpoint", "vae": "sd_vae"}
"""By what callers know it; other kinds are named in prompts and units, of which there may be several."""


def pool_for(assets: Iterable[Asset], pools: list[Pool]) -> Pool:
    """The first of the pools that takes all of the assets.

    Raises:
        InvalidRequestError: There is none. Naming every asset that fits none of the pools, or else all that are restricted.
    """
    bounds = bounds_of(assets)
    for pool in pools:
        if all(pool.pk in ids for _, ids in bounds):
            return pool
    candidates = {pool.pk for pool in pools}
    homeless = [asset for asset, ids in bounds if not ids & candidates]
    where = ", ".join(pool.name for pool in pools)
    if homeless:
        sentences = [
            (asset, f"{asset.get_kind_display()} {asset.name!r} may not run in {where}.") for asset in homeless
        ]
    else:
        names = ", ".join(repr(asset.name) for asset, _ in bounds)
        sentences = [(asset, f"No pool of {where} may run all of {names} together.") for asset, _ in bounds[:1]]
    raise InvalidRequestError(
        [FieldError(FIELD_OF_KIND.get(asset.kind, "prompt"), sentence, asset.name) for asset, sentence in sentences]
    )


def bounds_of(assets: Iterable[Asset]) -> list[tuple[Asset, set[int]]]:
    """The restricted ones with the pools they may run in; one query, however many there are."""
    by_key = {asset.pk: asset for asset in assets}
    allowed: dict[int, set[int]] = {}
    rows = Asset.pools.through.objects.filter(asset__in=by_key).values_list("asset_id", "pool_id") if by_key else ()
    for asset_id, pool_id in rows:
        allowed.setdefault(asset_id, set()).add(pool_id)
    return [(by_key[asset_id], ids) for asset_id, ids in sorted(allowed.items())]
