"""`manage.py demo` shows a stranger what the platform is for."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.operations.test_launcher import free_port

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.timeout(180)
def test_the_demo_renders_four_images_one_grid_and_a_bill(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
    settings = {"DATA_DIR": str(tmp_path), "PORT": str(free_port()), "DJANGO_SETTINGS_MODULE": "config.settings"}
    demo = subprocess.run(
        [sys.executable, "manage.py", "demo"],
        cwd=ROOT,
        env={**environment, **settings, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert demo.returncode == 0, demo.stdout + demo.stderr
    last = demo.stdout.splitlines()[-1]
    path, amount, currency = re.fullmatch(r"demo: 4 images, 1 grid, (\S+), (\d+\.\d{6}) (\w{3})", last).groups()
    assert Image.open(path).size == (128, 128) and float(amount) > 0 and currency == "USD"
    assert len(list((tmp_path / "pictures").glob("0*.png"))) == 4
