"""Imports run one way: left never imports right, the web side never loads torch, the engine knows nothing of Django."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ORDER = ["common", "accounts", "audit", "fleet", "assets", "billing", "renderjobs", "operations"]
"""Each may import those before it; assets and billing do not know each other."""
STRANGERS = {("assets", "billing"), ("billing", "assets")}
HEAVY = {"torch", "diffusers", "transformers", "safetensors"}
CHILDREN = {"unpickling.py"}
"""Scripts that the web side starts as processes and never imports."""
FOLDERS = {name: ROOT / "platform" / name for name in ORDER} | {"renderjobs": ROOT / "renderjobs"}


def imports_of(folder: Path) -> Iterator[tuple[Path, str]]:
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from ((path, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                yield path, node.module


@pytest.mark.parametrize("app", ORDER)
def test_an_app_imports_only_what_stands_left_of_it(app):
    later = set(ORDER[ORDER.index(app) + 1 :])
    for path, module in imports_of(FOLDERS[app]):
        head = module.split(".")[0]
        assert head not in later and (app, head) not in STRANGERS, f"{path} imports {module}"


@pytest.mark.parametrize("app", ORDER)
def test_the_web_side_knows_of_the_worker_only_the_contract(app):
    for path, module in imports_of(FOLDERS[app]):
        head = module.split(".")[0]
        assert head not in HEAVY or path.name in CHILDREN, f"{path} imports {module}"
        assert module.rpartition(".")[2] + ".py" not in CHILDREN, f"{path} imports {module}"
        assert head != "gpuworker" or module.startswith("gpuworker.contract"), f"{path} imports {module}"


@pytest.mark.parametrize("package", ["engine", "contract"])
def test_engine_and_contract_know_nothing_of_django_or_of_us(package):
    ours = {*ORDER, "config", "django", "celery", "rest_framework"}
    allowed = ("gpuworker.contract", "gpuworker.renderer", f"gpuworker.{package}")
    for path, module in imports_of(ROOT / "gpuworker" / package):
        head = module.split(".")[0]
        assert head not in ours, f"{path} imports {module}"
        assert head != "gpuworker" or module.startswith(allowed), f"{path} imports {module}"


def loaded_after(statement: str) -> set[str]:
    """Top-level modules in a fresh process after ``statement``."""
    code = f"{statement}\nimport sys; print(*{{name.split('.')[0] for name in sys.modules}})"
    paths = os.pathsep.join([str(ROOT / "platform"), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": paths, "DJANGO_SETTINGS_MODULE": "tests.settings"}
    return set(subprocess.check_output([sys.executable, "-c", code], env=environment, text=True, cwd=ROOT).split())


def test_the_web_process_does_not_load_torch():
    assert not loaded_after("import config.asgi; from django.urls import resolve; resolve('/healthz')") & HEAVY


def test_h12_the_workers_parent_process_does_not_load_torch():
    assert not loaded_after("import gpuworker.celery") & {"torch", "diffusers"}


def test_h12_the_delivery_process_does_not_load_torch():
    assert not loaded_after("import gpuworker.celery, gpuworker.delivering, gpuworker.output") & {"torch", "diffusers"}


def test_importing_gpuworker_costs_nothing():
    assert not loaded_after("import gpuworker") & {"django", "celery", "torch"}
