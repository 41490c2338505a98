"""The lists of this door: checkpoints the caller may use, samplers, schedulers, and what this version has none of."""

from __future__ import annotations

from typing import Any

from accounts.authentication import Caller
from assets.selectors import checkpoints_of
from gpuworker.contract.samplers import SAMPLERS, SCHEDULES

UPSCALERS = ("None", "Lanczos", "Nearest")
LATENT_MODES = (
    "Latent",
    "Latent (antialiased)",
    "Latent (bicubic)",
    "Latent (bicubic antialiased)",
    "Latent (nearest)",
    "Latent (nearest-exact)",
)


def sd_models(caller: Caller) -> list[dict[str, Any]]:
    """The newest upload of each name; ``filename`` is a name, never a path of ours."""
    newest: dict[str, dict[str, Any]] = {}
    for asset in checkpoints_of(caller):
        row = {
            "title": asset.title,
            "model_name": asset.name,
            "hash": asset.short_hash,
            "sha256": asset.sha256,
            "filename": asset.filename,
            "config": f"{asset.name}.yaml" if asset.config_key else None,
        }
        newest.setdefault(asset.name, row)
    return list(newest.values())


def samplers() -> list[dict[str, Any]]:
    return [
        {"name": sampler.name, "aliases": list(sampler.aliases), "options": dict(sampler.options)}
        for sampler in SAMPLERS
        if sampler.implemented
    ]


def schedulers() -> list[dict[str, Any]]:
    return [
        {
            "name": schedule.name,
            "label": schedule.label,
            "aliases": list(schedule.aliases) if schedule.aliases else None,
            "default_rho": schedule.default_rho,
            "need_inner_model": schedule.need_inner_model,
        }
        for schedule in SCHEDULES
    ]


def upscalers() -> list[dict[str, Any]]:
    return [
        {"name": name, "model_name": None, "model_path": None, "model_url": None, "scale": 4.0} for name in UPSCALERS
    ]


def latent_upscale_modes() -> list[dict[str, str]]:
    return [{"name": name} for name in LATENT_MODES]
