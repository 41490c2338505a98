"""`manage.py run_eas_requests`: runs what is queued for EAS services, until a signal comes."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

from django.core.management.base import BaseCommand

from renderjobs.compat.eas.workers import RequestWorkers


class Command(BaseCommand):
    help = __doc__
    requires_system_checks: list[str] = []

    def handle(self, *args: Any, **options: Any) -> None:
        asyncio.run(self.run_until_signal())

    async def run_until_signal(self) -> None:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        await RequestWorkers().run(stop)
