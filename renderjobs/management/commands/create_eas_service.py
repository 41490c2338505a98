"""`manage.py create_eas_service NAME --team T`: makes an EAS service and prints its token, alone."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from accounts.models import Team
from common.errors import PlatformError
from renderjobs.compat.eas.services import service_create
from renderjobs.models import EasEdition


class Command(BaseCommand):
    help = __doc__

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("name")
        parser.add_argument("--team", required=True)
        parser.add_argument("--edition", choices=EasEdition.values, default=EasEdition.API.value)
        parser.add_argument(
            "--mount",
            action="append",
            metavar="PATH=FOLDER",
            help="A mount path and the folder of the team's stored files behind it; may be repeated.",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        team = Team.objects.filter(name=options["team"]).first()
        if team is None:
            raise CommandError(f"There is no team {options['team']!r}.")
        mounts = dict(mount.partition("=")[::2] for mount in options["mount"]) if options["mount"] else None
        try:
            _, text = service_create(name=options["name"], team=team, edition=options["edition"], mounts=mounts)
        except PlatformError as error:
            raise CommandError(error.message) from error
        self.stdout.write(text)
