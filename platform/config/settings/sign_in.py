"""How people sign in: password, throttling, second factor, where the admin is. Programs have tokens."""

from __future__ import annotations

from datetime import timedelta

from config import env
from config.settings.base import ALLOWED_HOSTS, PRODUCTION

AUTHENTICATION_BACKENDS = ["accounts.backends.PasswordBackend"]
LOGIN_URL = "admin:login"

ADMIN_PATH = env.path("ADMIN_PATH", "admin/")
"""Where the admin is below the root of every host that has it."""
ADMIN_HOSTS = [host.lower() for host in env.words("ADMIN_HOSTS")]
"""Names that have the admin; empty: all of them. Under any other name its addresses do not exist."""
ALLOWED_HOSTS += [host for host in ADMIN_HOSTS if host not in ALLOWED_HOSTS]

REQUIRE_SECOND_FACTOR = env.boolean("REQUIRE_SECOND_FACTOR", default=PRODUCTION)
"""Whoever has none yet sets it up at the next sign-in. Off, each person decides."""
SECOND_FACTOR_SECONDS = 600
"""Between the right password and the code."""

AXES_HANDLER = "accounts.throttling.LoginThrottle"
AXES_LOCKOUT_CALLABLE = "accounts.throttling.locked_out"
AXES_LOCKOUT_PARAMETERS = [["username", "ip_address"], "username", "ip_address"]
AXES_FAILURE_LIMIT = 100
"""Percent of the limits in ``accounts/throttling.py``."""
AXES_COOLOFF_TIME = timedelta(minutes=env.integer("LOCKOUT_MINUTES", 15, minimum=1, maximum=1440))
"""After the last try that counted. Tries during a lock do not make it longer."""
AXES_RESET_COOL_OFF_ON_FAILURE_DURING_LOCKOUT = False
AXES_RESET_ON_SUCCESS = True
AXES_DISABLE_ACCESS_LOG = True  # the audit log has sign-ins
AXES_ENABLE_ADMIN = False
AXES_VERBOSE = False
