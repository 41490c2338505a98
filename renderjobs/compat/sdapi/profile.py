"""`/options`: every option of A1111 1.10.1 with its default, the caller's checkpoint in place. Read-only in this version."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from accounts.authentication import Caller
from assets.selectors import checkpoint_default


@cache
def default_options() -> dict[str, Any]:
    """The 1.10.1 defaults as its API types them (non-zero integers come back as floats)."""
    return json.loads((Path(__file__).parent / "data" / "options.json").read_text())


def options_of(caller: Caller) -> dict[str, Any]:
    checkpoint = checkpoint_default(caller)
    title, sha256 = (checkpoint.title, checkpoint.sha256) if checkpoint else (None, None)
    return {**default_options(), "sd_model_checkpoint": title, "sd_checkpoint_hash": sha256}
