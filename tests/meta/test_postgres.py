"""The embedded form runs on SQLite, a team's installation on PostgreSQL: what touches rows must hold on both."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.services import postgres_server

ROOT = Path(__file__).resolve().parents[2]
ON_BOTH = [
    "tests/renderjobs",
    "tests/billing",
    "tests/accounts",
    "tests/audit",
    "tests/fleet",
    "tests/assets",
    "tests/operations",
    "tests/api",
    "tests/eas",
]
ABOUT_FILES = ["tests/assets/test_conversion.py", "tests/assets/test_folders.py", "tests/eas/test_documents.py"]
"""Slow, and hardly a row in them."""


@pytest.mark.timeout(3600)
def test_the_tests_of_rows_and_money_pass_on_postgresql():
    if os.environ.get("DATABASE_URL"):
        pytest.skip("the suite itself runs on a server database")
    with postgres_server() as server:
        folders = [folder for folder in ON_BOTH if (ROOT / folder).is_dir()]
        command = [
            sys.executable,
            "-m",
            "pytest",
            *folders,
            "-q",
            "-p",
            "no:cacheprovider",
            "-m",
            "not embedded and not slow",
        ]
        command += [f"--ignore={file}" for file in ABOUT_FILES]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        environment.pop("DATA_DIR", None)
        run = subprocess.run(
            command, cwd=ROOT, env={**environment, "DATABASE_URL": server.url}, capture_output=True, text=True
        )
    assert run.returncode == 0, (run.stdout + run.stderr)[-6000:]
    assert int(re.search(r"(\d+) passed", run.stdout)[1]) > 30
