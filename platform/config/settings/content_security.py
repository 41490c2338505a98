"""What pages may load. Nothing from elsewhere, except pictures from the store that signs its own addresses."""

from __future__ import annotations

from config.settings.storages import PICTURE_ORIGINS

_OURS = {
    "default-src": "'none'",
    "script-src": "'self'",
    # Style attributes come from unfold's and Swagger UI's scripts; a style runs nothing.
    "style-src": "'self' 'unsafe-inline'",
    "img-src": " ".join(["'self'", "data:", *PICTURE_ORIGINS]),
    "font-src": "'self'",
    "connect-src": "'self'",
    "form-action": "'self'",
    "frame-ancestors": "'none'",
    "base-uri": "'none'",
}


def _policy(**changes: str) -> str:
    rules = {**_OURS, **{name.replace("_", "-"): value for name, value in changes.items()}}
    return "; ".join(f"{name} {value}" for name, value in rules.items())


PAGE_POLICY = _policy()
ADMIN_POLICY = _policy(script_src="'self' 'unsafe-eval'")
"""Alpine.js, of which unfold's pages are made, turns their attributes into functions."""
