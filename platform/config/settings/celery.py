"""Celery carries wake-ups and short chores. The database is the queue, so nothing here has to be durable."""

from __future__ import annotations

from config import env
from config.settings.base import DATA_DIR

_redis = env.url("REDIS_URL", f"unix://{DATA_DIR}/redis.sock", schemes=("redis", "rediss", "unix"))
REDIS_URL = env.text("REDIS_URL", f"unix://{DATA_DIR}/redis.sock")
# Kombu spells a unix socket differently from redis-py.
CELERY_BROKER_URL = REDIS_URL.replace("unix://", "redis+socket://", 1)
CELERY_RESULT_BACKEND = None
CELERY_TASK_IGNORE_RESULT = True
CELERY_ACCEPT_CONTENT = ["json"]
CELERY_TASK_SERIALIZER = "json"
CELERY_TASK_DEFAULT_QUEUE = "chores"
CELERY_TIMEZONE = "UTC"
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_BROKER_TRANSPORT_OPTIONS = {
    "socket_timeout": 10,
    "socket_connect_timeout": 5,
    # Publishing gives up after a second: the poll of the workers finds the work all the same.
    "max_retries": 2,
    "interval_start": 0.1,
    "interval_max": 0.5,
}
CELERY_TASK_PUBLISH_RETRY_POLICY = {"max_retries": 2, "interval_start": 0.1, "interval_max": 0.5}
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_BEAT_SCHEDULER = "django_celery_beat.schedulers:DatabaseScheduler"
CELERY_BEAT_MAX_LOOP_INTERVAL = 5
CELERY_BEAT_SCHEDULE = {
    "expire leases": {"task": "renderjobs.expire_leases", "schedule": 5.0, "options": {"expires": 5}},
    "advance scripts": {"task": "renderjobs.advance_scripts", "schedule": 5.0, "options": {"expires": 5}},
    "settle schedules": {"task": "renderjobs.settle_schedules", "schedule": 60.0, "options": {"expires": 60}},
    "resume intakes": {"task": "assets.resume", "schedule": 300.0, "options": {"expires": 300}},
    "go on with the zoo": {"task": "assets.resume_zoo", "schedule": 60.0, "options": {"expires": 60}},
    "tidy imports and files": {"task": "renderjobs.tidy", "schedule": 60.0, "options": {"expires": 60}},
    "seal the audit log": {"task": "audit.seal", "schedule": 60.0, "options": {"expires": 60}},
    "forget sessions": {"task": "accounts.forget_sessions", "schedule": 86_400.0, "options": {"expires": 86_400}},
    "settle idle time": {"task": "billing.settle_idle", "schedule": 3600.0, "options": {"expires": 3600}},
    "settle deployments": {"task": "billing.settle_deployments", "schedule": 3600.0, "options": {"expires": 3600}},
    "send mails": {"task": "billing.send_mails", "schedule": 30.0, "options": {"expires": 30}},
    "wake pools": {"task": "renderjobs.wake_pools", "schedule": 5.0, "options": {"expires": 5}},
}
