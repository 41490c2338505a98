"""`manage.py import_data_dir FOLDER --team T`: takes in the models and pictures of a data directory of A1111 or PAI-EAS."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils.text import slugify

from accounts.models import Team
from renderjobs.compat.eas.paths import folder_of
from renderjobs.data_directory import directory_import

DEFAULT_FOLDER = "data"


class Command(BaseCommand):
    help = __doc__

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("directory", type=Path, help="The folder that holds models, embeddings and outputs.")
        parser.add_argument("--team", required=True, help="Whose the pictures are, and the models unless --public.")
        parser.add_argument("--public", action="store_true", help="The models are for everybody.")
        parser.add_argument(
            "--folder", default=DEFAULT_FOLDER, help="Of the team's files, for the pictures; a mount path works too."
        )

    def handle(self, *args: Any, **options: Any) -> None:
        root: Path = options["directory"]
        if not root.is_dir():
            raise CommandError(f"There is no folder {root}.")
        team = Team.objects.filter(name=slugify(options["team"])).first()
        if team is None:
            raise CommandError(f"There is no team {options['team']!r}.")
        try:
            _, folder = folder_of(options["folder"], settings.EAS_MOUNTS)
            if not folder or len(folder) > 40:
                raise ValueError("--folder is a path of 1 to 40 characters.")
        except ValueError as error:
            raise CommandError(str(error).replace("save_dir", "--folder")) from error
        done = left = 0
        for one in directory_import(root=root.resolve(), team=team, folder=folder, public=options["public"]):
            done, left = done + one.done, left + (not one.done)
            self.stdout.write(f"{one.what} {ascii(one.path)[1:-1]}{f': {one.note}' if one.note else ''}")
        self.stdout.write(f"{done} taken in, {left} left")
        if left:
            raise CommandError(f"{left} files were not taken in; the lines above say why.")
