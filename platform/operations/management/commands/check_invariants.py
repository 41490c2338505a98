"""`manage.py check_invariants`: prints nothing and exits 0, or one line per violation and exits 1."""

from __future__ import annotations

import sys
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from operations.invariants import violations


class Command(BaseCommand):
    help = __doc__

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--skip-storage", action="store_true", help="Read the database only.")

    def handle(self, *args: Any, **options: Any) -> None:
        found = False
        for line in violations(objects=not options["skip_storage"]):
            found = True
            self.stdout.write(line)
        if found:
            sys.exit(1)
