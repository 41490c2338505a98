"""`/options`: every option of A1111 1.10.1, with what the caller has set over the defaults; nobody else's calls see it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from django.db import transaction

from accounts.authentication import Caller
from assets.models import Asset
from assets.selectors import checkpoint_default, checkpoint_find
from common.errors import InvalidRequestError
from renderjobs.compat.sdapi import wire
from renderjobs.compat.sdapi.control_units import OPTIONS as CONTROLNET_OPTIONS
from renderjobs.compat.sdapi.errors import HandlerError, WireError
from renderjobs.compat.sdapi.translate import to_request
from renderjobs.models import OptionProfile
from renderjobs.selectors import service_of

CHECKPOINT = "sd_model_checkpoint"


@cache
def default_options() -> dict[str, Any]:
    """The 1.10.1 defaults as its API types them (non-zero integers come back as floats)."""
    return json.loads((Path(__file__).parent / "data" / "options.json").read_text())


def installed_options(caller: Caller) -> dict[str, Any]:
    """The defaults, with the checkpoint that requests get which name none, and the tabs that the caller's service hides."""
    checkpoint, service = checkpoint_default(caller), service_of(caller)
    title, sha256 = (checkpoint.title, checkpoint.sha256) if checkpoint else (None, None)
    hidden = {"hidden_tabs": service.hidden_tabs} if service else {}
    return {**default_options(), **hidden, "sd_model_checkpoint": title, "sd_checkpoint_hash": sha256}


def profile_of(caller: Caller) -> dict[str, Any]:
    """What the caller has set."""
    found = OptionProfile.objects.filter(team=caller.team, user=caller.user).values_list("values", flat=True).first()
    return found or {}


def options_of(caller: Caller) -> dict[str, Any]:
    """As the caller reads them back."""
    profile, checkpoint = _usable_profile(caller)
    options = {**installed_options(caller), **profile}
    return {**options, "sd_checkpoint_hash": checkpoint.sha256} if checkpoint else options


def chosen_checkpoint(caller: Caller) -> Asset | None:
    """What requests get that name none."""
    return _usable_profile(caller)[1] or checkpoint_default(caller)


def with_profile(caller: Caller, values: Mapping[str, Any]) -> dict[str, Any]:
    """A request's values with the caller's options below its own ``override_settings``."""
    profile, _ = _usable_profile(caller)
    return {**values, "override_settings": {**profile, **(values["override_settings"] or {})}}


def _usable_profile(caller: Caller) -> tuple[dict[str, Any], Asset | None]:
    """What the caller has set, and the checkpoint among it. One that is gone since is passed over, as A1111 does."""
    profile = profile_of(caller)
    if CHECKPOINT not in profile:
        return profile, None
    chosen = checkpoint_find(caller, str(profile[CHECKPOINT]))
    if chosen is None:
        profile = {name: value for name, value in profile.items() if name != CHECKPOINT}
    return profile, chosen


def overrides_keep(caller: Caller, values: Mapping[str, Any]) -> None:
    """Keep the options of a call that asks not to restore them afterwards; the call itself has been accepted with them."""
    if values["override_settings"] and not values["override_settings_restore_afterwards"]:
        options_set(caller, values["override_settings"])


def options_set(caller: Caller, given: Mapping[str, Any]) -> list[str]:
    """Keep options for the caller's further calls; all of them or none.

    Returns:
        Those that were passed over because no call could be made with such a value.
    Raises:
        HandlerError: An option or checkpoint is unknown (500), or a value asks for what this version has not (501).
    """
    installed = {**installed_options(caller), **CONTROLNET_OPTIONS}
    kept: dict[str, Any] = {}
    passed_over = []
    for name, value in given.items():
        if name not in installed:
            raise HandlerError(500, repr(name), error="KeyError")
        if name == CHECKPOINT and value is not None:
            value = _checkpoint_title(caller, str(value))
        elif name == "sd_checkpoint_hash":
            continue  # follows the checkpoint
        if value is None or _is_usable(name, value, installed):
            kept[name] = value
        else:
            passed_over.append(name)
    _store(caller, kept, installed)
    return passed_over


@transaction.atomic
def _store(caller: Caller, kept: Mapping[str, Any], installed: Mapping[str, Any]) -> None:
    profile, _ = OptionProfile.objects.select_for_update().get_or_create(team=caller.team, user=caller.user)
    merged = {**profile.values, **kept}
    profile.values = {name: value for name, value in merged.items() if value is not None and value != installed[name]}
    profile.save(update_fields=["values", "updated_at"])


def _is_usable(name: str, value: Any, installed: Mapping[str, Any]) -> bool:
    """Whether calls can be made with it.

    QUIRK(A1111 1.10): a value of a wrong type is no error here; A1111 keeps it and fails later.

    Raises:
        HandlerError: It asks for what this version has not.
    """
    values = wire.parsed({"override_settings": {name: value}}, {**wire.TXT2IMG, **wire.OURS})
    try:
        to_request(values, options=installed).build()
    except WireError as error:
        raise HandlerError(
            501, f"Option {name!r} with the value {value!r} is not supported by this version."
        ) from error
    except InvalidRequestError:
        return False
    return True


def _checkpoint_title(caller: Caller, name: str) -> str:
    """Raises: HandlerError: There is no such checkpoint, as A1111 answers an option of that value."""
    found = checkpoint_find(caller, name)
    if found is None:
        raise HandlerError(500, f"model '{name}' not found", error="RuntimeError")
    return found.title
