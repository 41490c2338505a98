"""B4: a job of 16 images through the whole running platform, against the bare engine loop on the same recipes."""

from __future__ import annotations

import hashlib
import io
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests
from django.conf import settings

from benchmarks.pairs import Ratio, measured

ROOT = Path(__file__).resolve().parents[1]
CHECKPOINT = ROOT / "miniature" / "renderkiln-miniature.safetensors"
POLL_SECONDS = 0.1
"""Faster polling would take the cores from the worker on a machine that has two."""
REQUEST = {
    "prompt": "a red circle on a blue background",
    "seed": 7,
    "n_iter": 4,
    "batch_size": 4,
    "steps": 20,
    "sampler_name": "Euler a",
    "width": 128,
    "height": 128,
}


def against_bare_engine() -> Ratio:
    with running_platform() as (address, token):
        pictures: dict[str, list[str]] = {}
        session = requests.Session()
        session.headers["Authorization"] = f"Bearer {token}"

        def through_the_platform() -> None:
            job = session.post(f"{address}/api/v1/jobs", json={"kind": "txt2img", "request": REQUEST}).json()
            while job["state"] in ("queued", "running"):
                time.sleep(POLL_SECONDS)
                job = session.get(f"{address}/api/v1/jobs/{job['id']}").json()
            assert job["state"] == "succeeded", job
            images = session.get(f"{address}/api/v1/jobs/{job['id']}/images").json()["results"]
            pictures.setdefault("urls", [image["url"] for image in images])

        engine = BareEngine()
        ratio = measured(
            name="B4",
            meaning="rate of a 16-image job through the platform ÷ rate of the bare engine loop",
            goal="≥ 0.90",
            above=engine.render_all,
            below=through_the_platform,
            notes={"request": REQUEST},
        )
        stored = [pixel_hash(session.get(url).content) for url in pictures["urls"]]
        assert stored == engine.hashes, "The two sides did not make the same pictures."
        return ratio


class BareEngine:
    """The engine's loop alone: the platform's micro-batches, no database, no encoding, no storage."""

    def __init__(self) -> None:
        from gpuworker.contract import Weights, WeightsFile
        from gpuworker.engine import DiffusersRenderer

        self.sha256 = hashlib.sha256(CHECKPOINT.read_bytes()).hexdigest()
        self.checkpoint = Weights(name=CHECKPOINT.stem, sha256=self.sha256)
        self.files = {self.sha256: WeightsFile(CHECKPOINT)}
        self.renderer = DiffusersRenderer(device="auto", dtype="auto")
        self.hashes: list[str] = []

    def recipes(self) -> list[Any]:
        from gpuworker.contract import Recipe

        names = {"sampler_name": "sampler"}
        asked = {
            names.get(key, key): value for key, value in REQUEST.items() if key not in ("seed", "n_iter", "batch_size")
        }
        return [
            Recipe(negative_prompt="", seed=7 + index, subseed=0, cfg_scale=7.0, checkpoint=self.checkpoint, **asked)
            for index in range(REQUEST["n_iter"] * REQUEST["batch_size"])
        ]

    def render_all(self) -> None:
        from gpuworker.contract import Rendered, RenderSpec

        self.hashes = []
        recipes, size = self.recipes(), settings.MAX_MICROBATCH
        for start in range(0, len(recipes), size):
            spec = RenderSpec(tuple(recipes[start : start + size]), self.files)
            for outcome in self.renderer.render(spec, on_step=lambda *_: None, should_stop=lambda: False):
                assert isinstance(outcome, Rendered), outcome
                self.hashes.append(hashlib.sha256(outcome.picture.pixels).hexdigest())


def pixel_hash(png: bytes) -> str:
    from PIL import Image

    return hashlib.sha256(Image.open(io.BytesIO(png)).convert("RGB").tobytes()).hexdigest()


@contextmanager
def running_platform() -> Iterator[tuple[str, str]]:
    """A real `manage.py serve` with a data directory of its own; gives its address and a token."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    data_dir = Path(settings.DATA_DIR) / "platform"
    environment = {**os.environ, "DATA_DIR": str(data_dir), "PORT": str(port), "PYTHONUNBUFFERED": "1"}
    manage = [sys.executable, str(ROOT / "manage.py")]
    server = subprocess.Popen([*manage, "serve"], env=environment, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert server.stdout is not None
        for line in server.stdout:
            if line.startswith("ready "):
                break
        else:
            raise RuntimeError(f"The platform did not start; see {data_dir}/logs.")
        issue = [*manage, "issue_token", "--team", "bench", "--user", "bench"]
        token = subprocess.check_output(issue, env=environment, text=True, cwd=ROOT).strip()
        yield line.split()[1], token
    finally:
        server.terminate()
        server.wait(30)
