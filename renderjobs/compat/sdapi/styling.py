"""The caller's styles put into a request's prompts, those of hires fix among them. What a style is, is ``assets.styles``'."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from accounts.authentication import Caller
from assets.styles import styled


def styles_apply(caller: Caller, names: Sequence[str], canonical: dict[str, Any]) -> None:
    """An empty hires prompt stays empty: it stands for the first pass' prompt, styles and all."""
    canonical["prompt"], canonical["negative_prompt"] = styled(caller, names, canonical)
    if hires := canonical.get("hires"):
        prompt, negative_prompt = styled(caller, names, hires)
        hires["prompt"] = hires["prompt"] and prompt
        hires["negative_prompt"] = hires["negative_prompt"] and negative_prompt
