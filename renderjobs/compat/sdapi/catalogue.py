"""The lists of this door: checkpoints the caller may use, samplers, schedulers, and what this version has none of."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

from accounts.authentication import Caller
from assets.models import Asset, AssetKind
from assets.selectors import checkpoints_of, newest_of
from assets.styles import styles_of
from gpuworker.contract.extras import CODEFORMER, GFPGAN
from gpuworker.contract.families import CONTEXT_WIDTHS
from gpuworker.contract.samplers import SAMPLERS, SCHEDULES
from renderjobs.pinning import ENCODERS

BUILT_IN_UPSCALERS = ("None", "Lanczos", "Nearest")
FACE_RESTORERS = (CODEFORMER, GFPGAN)
EMBEDDING_FACTS = {"step": None, "sd_checkpoint": None, "sd_checkpoint_name": None, "shape": 0, "vectors": 0}
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


def upscalers(caller: Caller) -> list[dict[str, Any]]:
    own = [asset.name for asset in newest_of(caller, AssetKind.UPSCALER)]
    names = [*BUILT_IN_UPSCALERS, *sorted(own, key=str.lower)]
    return [
        {
            "name": name,
            "model_name": name if name in own else None,
            "model_path": f"{name}.safetensors" if name in own else None,
            "model_url": None,
            "scale": 4.0,
        }
        for name in names
    ]


def loras(caller: Caller) -> list[dict[str, Any]]:
    return [
        {"name": asset.name, "alias": asset.alias or asset.name, "path": asset.filename, "metadata": asset.metadata}
        for asset in sorted(newest_of(caller, AssetKind.LORA), key=lambda asset: natural(asset.filename))
    ]


def natural(filename: str) -> list[int | str]:
    """A1111's order of files: numbers as such, and the extension takes part, so that ``ink2`` comes before ``ink``."""
    return [int(part) if part.isdecimal() else part.lower() for part in re.split(r"(\d+)", filename)]


def hypernetworks(caller: Caller) -> list[dict[str, Any]]:
    return [{"name": asset.name, "path": asset.filename} for asset in newest_of(caller, AssetKind.HYPERNETWORK)]


def sd_vae(caller: Caller) -> list[dict[str, Any]]:
    return [{"model_name": asset.filename, "filename": asset.filename} for asset in newest_of(caller, AssetKind.VAE)]


def embeddings(caller: Caller, checkpoint: Asset | None) -> dict[str, Any]:
    """Args: checkpoint: The caller's; those that do not fit it are skipped by requests that name no other."""
    listed: dict[str, dict[str, Any]] = {"loaded": {}, "skipped": {}}
    for asset in newest_of(caller, AssetKind.EMBEDDING):
        row = {**EMBEDDING_FACTS, **{name: asset.metadata[name] for name in EMBEDDING_FACTS if name in asset.metadata}}
        listed["loaded" if _fits(asset, checkpoint) else "skipped"][asset.name] = row
    return listed


def _fits(embedding: Asset, checkpoint: Asset | None) -> bool:
    """By the number of text encoders and, where a family has that width, by theirs."""
    if checkpoint is None:
        return True
    made_for = CONTEXT_WIDTHS.get(embedding.metadata.get("shape", 0), checkpoint.family)
    encoders = ENCODERS.get(checkpoint.family, 1)
    return made_for == checkpoint.family and embedding.metadata.get("encoders", 1) == encoders


def prompt_styles(caller: Caller) -> list[dict[str, Any]]:
    return list(styles_of(caller).order_by("pk").values("name", "prompt", "negative_prompt"))


def face_restorers() -> list[dict[str, Any]]:
    return [{"name": name, "cmd_dir": None} for name in FACE_RESTORERS]


def latent_upscale_modes() -> list[dict[str, str]]:
    return [{"name": name} for name in LATENT_MODES]


@cache
def cmd_flags() -> dict[str, Any]:
    """A1111's start flags as a client may read them: their defaults. Nothing of this machine is in it."""
    return json.loads((Path(__file__).parent / "data" / "cmd_flags.json").read_text())


def memory() -> dict[str, Any]:
    """What workers have is theirs; clients only look whether there is an answer."""
    return {"ram": {"error": "unavailable"}, "cuda": {"error": "unavailable"}}
