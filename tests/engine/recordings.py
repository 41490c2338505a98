"""The recorded answers of A1111 that lie beside the project: where they are, and a recorded case as recipes. No test lives here."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gpuworker.contract import CheckpointFile, Recipe
from gpuworker.contract.samplers import resolve_sampler

REFERENCE = Path(__file__).resolve().parents[3] / "shared" / "reference"
A1111 = REFERENCE / "a1111"
CHECKPOINTS = REFERENCE / "tiny-sd15"

needs_recordings = pytest.mark.skipif(not A1111.is_dir(), reason="The recordings of A1111 are not beside the project.")

SETTINGS = {
    "CLIP_stop_at_last_layers": "clip_skip",
    "emphasis": "emphasis",
    "eta_noise_seed_delta": "ensd",
    "eta_ancestral": "eta",
    "s_churn": "s_churn",
    "s_tmin": "s_tmin",
    "s_tmax": "s_tmax",
    "s_noise": "s_noise",
}
"""A1111's settings that are fields of a recipe."""


def internals(name: str) -> Any:
    return json.loads((A1111 / "internals" / name).read_text())


def numbers(name: str) -> Any:
    return np.load(A1111 / "internals" / name)


def checkpoint_file(stem: str = "tiny-sd15") -> CheckpointFile:
    path = CHECKPOINTS / f"{stem}.safetensors"
    return CheckpointFile(hashlib.sha256(path.read_bytes()).hexdigest(), path, path.with_suffix(".yaml"))


def recipes_of(case: str, checkpoint: CheckpointFile) -> list[Recipe]:
    """One recipe per picture, with the seeds and prompts A1111 resolved."""
    request = json.loads((A1111 / "cases" / case / "request.json").read_text())
    body = request.get("body", request)
    info = json.loads(json.loads((A1111 / "cases" / case / "response.json").read_text())["info"])
    settings = dict(body.get("override_settings", {}))
    settings.pop("sd_model_checkpoint", None)
    resolved = resolve_sampler(body.get("sampler_name") or "Euler", body.get("scheduler"))
    given = {
        field: body[field] for field in ("eta", "s_churn", "s_tmin", "s_tmax", "s_noise", "tiling") if field in body
    }
    seed_resize = {field: body[field] for field in ("seed_resize_from_w", "seed_resize_from_h") if field in body}
    common: dict[str, Any] = {
        "sampler": resolved.sampler.name,
        "schedule": resolved.schedule.label,
        "steps": body.get("steps", 50),
        "cfg_scale": float(body.get("cfg_scale", 7.0)),
        "width": body.get("width", 512),
        "height": body.get("height", 512),
        "subseed_strength": body.get("subseed_strength", 0.0),
        "checkpoint_sha256": checkpoint.sha256,
        "checkpoint_name": checkpoint.path.stem,
        **seed_resize,
        **given,
        **{SETTINGS[key]: value for key, value in settings.items()},
    }
    prompts = zip(
        info["all_prompts"], info["all_negative_prompts"], info["all_seeds"], info["all_subseeds"], strict=True
    )
    return [
        Recipe(prompt=prompt, negative_prompt=negative, seed=seed, subseed=subseed, **common)
        for prompt, negative, seed, subseed in prompts
    ]


def pictures_of(case: str) -> list[np.ndarray]:
    """The recorded pictures without a grid."""
    response = json.loads((A1111 / "cases" / case / "response.json").read_text())
    first = json.loads(response["info"])["index_of_first_image"]
    paths = sorted((A1111 / "cases" / case).glob("image_*.png"), key=lambda path: int(path.stem.split("_")[1]))
    return [np.asarray(Image.open(path).convert("RGB"), dtype=np.int16) for path in paths[first:]]
