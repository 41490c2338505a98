"""The tree keeps the rules that make it start: `platform/` is a source root, not a package."""

from __future__ import annotations

import ast
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PLATFORM = ROOT / "platform"


def test_platform_is_no_package_and_holds_no_modules():
    assert not (PLATFORM / "__init__.py").exists()
    assert not list(PLATFORM.glob("*.py"))


def test_no_folder_in_platform_shadows_a_module_of_the_standard_library():
    folders = {path.name for path in PLATFORM.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert not folders & set(sys.stdlib_module_names)


def test_no_folder_in_platform_shadows_an_installed_package():
    folders = {path.name for path in PLATFORM.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert not folders & set(packages_distributions())


def test_every_module_says_first_what_lives_there():
    silent = {"__init__.py", "apps.py"}
    for root in ("platform", "renderjobs", "gpuworker", "miniature", "benchmarks"):
        for path in (ROOT / root).rglob("*.py"):
            if path.name in silent or "migrations" in path.parts:
                continue
            assert ast.get_docstring(ast.parse(path.read_text())), path
