"""`manage.py serve`: the whole platform on this machine, until a signal comes."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError

from common.errors import PlatformError
from operations.launcher import Launcher, address


class Command(BaseCommand):
    help = __doc__
    requires_system_checks: list[str] = []

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            Launcher(on_ready=self.say_ready).run()
        except PlatformError as error:
            raise CommandError(error.message) from error

    def say_ready(self) -> None:
        self.stdout.write(f"ready {address()}")
        self.stdout.flush()
