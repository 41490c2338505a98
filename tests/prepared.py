"""What databases and running platforms of the tests begin with, made once and copied: migrations take many seconds."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

from filelock import FileLock

ROOT = Path(__file__).resolve().parents[1]
MINIATURE = ROOT / "miniature" / "renderkiln-miniature.safetensors"
SET_UP = (
    ("migrate", "--verbosity", "0"),
    ("bootstrap",),
    ("import_asset", str(MINIATURE), "--kind", "checkpoint", "--public"),
)


@cache
def migrated_database() -> Path:
    """An SQLite file with every table and no row of a user's. It is kept until a migration or a pinned package changes."""
    sources = sorted(
        [*ROOT.glob("*/migrations/*.py"), *ROOT.glob("platform/*/migrations/*.py"), ROOT / "requirements.txt"]
    )
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:16]
    folder = ROOT / "var" / f"migrated-{digest}"
    folder.parent.mkdir(exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            made = folder.with_suffix(".making")
            shutil.rmtree(made, ignore_errors=True)  # of somebody who was killed over it
            _manage(made, SET_UP[0])
            made.rename(folder)
    return folder / "db.sqlite3"


def platform_copy(data_dir: Path) -> None:
    """Fill a folder of ``tmp_path_factory`` with a database on SQLite and local storage: a pool, a rate card, the miniature."""
    basetemp = data_dir.parent
    shared = basetemp.parent if "PYTEST_XDIST_WORKER" in os.environ else basetemp
    prepared = shared / "prepared"
    with FileLock(f"{prepared}.lock"):
        if not prepared.exists():
            made = shared / "preparing"
            shutil.rmtree(made, ignore_errors=True)
            made.mkdir()
            shutil.copy(migrated_database(), made)
            for command in SET_UP:
                _manage(made, command)
            made.rename(prepared)
    shutil.copytree(prepared, data_dir, dirs_exist_ok=True)


def _manage(data_dir: Path, command: tuple[str, ...]) -> None:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment = {**inherited, "DATA_DIR": str(data_dir), "DJANGO_SETTINGS_MODULE": "tests.settings"}
    environment.pop("DATABASE_URL", None)
    arguments = [sys.executable, str(ROOT / "manage.py"), *command]
    subprocess.run(arguments, cwd=ROOT, env=environment, check=True, capture_output=True)
