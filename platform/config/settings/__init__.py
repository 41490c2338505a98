"""The settings, one subject per file. `DJANGO_SETTINGS_MODULE=config.settings`."""

from config.settings.admin import *  # noqa: F403
from config.settings.audit import *  # noqa: F403
from config.settings.base import *  # noqa: F403
from config.settings.celery import *  # noqa: F403
from config.settings.content_security import *  # noqa: F403
from config.settings.fetching import *  # noqa: F403
from config.settings.logging import *  # noqa: F403
from config.settings.mail import *  # noqa: F403
from config.settings.rendering import *  # noqa: F403
from config.settings.rest import *  # noqa: F403
from config.settings.sign_in import *  # noqa: F403
from config.settings.storages import *  # noqa: F403
