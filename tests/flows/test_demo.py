"""`manage.py demo` shows a stranger what the platform is for."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.operations.test_launcher import pid_of, processes_of
from tests.prepared import migrated_database
from tests.services import PATIENCE_SECONDS, reserved_port, wait_until

ROOT = Path(__file__).resolve().parents[2]


def demo(data_dir: Path) -> subprocess.Popen[str]:
    inherited = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
    settings = {"DATA_DIR": str(data_dir), "PORT": str(reserved_port()), "DJANGO_SETTINGS_MODULE": "config.settings"}
    environment = {**inherited, **settings, "OMP_NUM_THREADS": "1"}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "manage.py", "demo"], cwd=ROOT, env=environment, **streams)


def test_the_demo_renders_four_images_one_grid_and_a_bill(tmp_path):
    process = demo(tmp_path)
    said, errors = process.communicate()
    assert process.returncode == 0, said + errors
    last = said.splitlines()[-1]
    path, amount, currency = re.fullmatch(r"demo: 4 images, 1 grid, (\S+), (\d+\.\d{6}) (\w{3})", last).groups()
    assert Image.open(path).size == (128, 128) and float(amount) > 0 and currency == "USD"
    assert len(list((tmp_path / "pictures").glob("0*.png"))) == 4
    wait_until(lambda: not processes_of(tmp_path), what="Every process being gone")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_a_demo_that_is_stopped_takes_its_platform_along(tmp_path, number):
    shutil.copy(migrated_database(), tmp_path)
    process = demo(tmp_path)
    wait_until(lambda: pid_of(tmp_path, "uvicorn"), what="Starting")
    process.send_signal(number)
    wait_until(lambda: not set(processes_of(tmp_path)) - {process.pid}, what="Every process being gone")
    assert process.wait(PATIENCE_SECONDS) != 0
