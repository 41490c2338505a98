"""What tests change: a data directory that goes away, cheap password hashes. Real database and broker stay real.

Not in ``config/settings``: importing a module of that package reads the environment first, and DATA_DIR must be set before.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.pop("DATA_DIR", None)  # the starting process's own; each of those that share the tests needs another
if "DATA_DIR" not in os.environ:
    os.environ["DATA_DIR"] = tempfile.mkdtemp(prefix="renderkiln-tests-")
    atexit.register(shutil.rmtree, os.environ["DATA_DIR"], ignore_errors=True)

from config.settings import *  # noqa: E402, F403
from config.settings import DATA_DIR, DATABASES, RENDERER  # noqa: E402

PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
RENDERER = os.environ.get("TEST_RENDERER", RENDERER)
if DATABASES["default"]["ENGINE"].endswith("sqlite3"):
    # A file, as in the product: threads of one test share it, which SQLite's in-memory form does not allow.
    DATABASES["default"]["TEST"] = {"NAME": str(DATA_DIR / "test.sqlite3")}
