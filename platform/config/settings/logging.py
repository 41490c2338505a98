"""One line per record on stderr; the launcher keeps each process's stream in a file of its own."""

from __future__ import annotations

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "{asctime} {levelname} {name}: {message}", "style": "{"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["stderr"], "level": "INFO"},
    "loggers": {
        "django.server": {"level": "WARNING"},
        # Every poll of a client would be a line.
        "uvicorn.access": {"level": "WARNING"},
        "django_celery_beat": {"level": "WARNING"},
        "celery.beat": {"level": "WARNING"},
        # Who signs in is in the audit log; refusals are warnings.
        "axes": {"level": "WARNING"},
    },
}
