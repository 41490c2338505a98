"""What tests change: a data directory that goes away, cheap password hashes. Real database and broker stay real."""

from __future__ import annotations

import os
import tempfile

os.environ.setdefault("DATA_DIR", tempfile.mkdtemp(prefix="renderkiln-tests-"))

from config.settings import *  # noqa: E402, F403

PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
RENDERER = os.environ.get("TEST_RENDERER", RENDERER)  # noqa: F405
