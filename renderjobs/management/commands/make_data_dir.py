"""`manage.py make_data_dir FOLDER`: makes the tree of a data directory, for files that are fetched by hand and then imported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from renderjobs.data_directory import tree_make


class Command(BaseCommand):
    help = __doc__

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("directory", type=Path, help="Made where it is missing; what lies in it stays.")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            tree_make(options["directory"])
        except OSError as error:
            raise CommandError(f"{options['directory']} cannot be made: {error.strerror}.") from error
