"""`manage.py create_service NAME --team T [--document FILE]`: makes an EAS service and prints its token, alone.

Creates the team when absent; when the service cannot be made, neither is the team.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import transaction

from accounts.models import Team
from accounts.services import team_ensure
from common.errors import InvalidRequestError, PlatformError
from renderjobs.compat.eas.services import service_create, service_import
from renderjobs.models import EasEdition


class Command(BaseCommand):
    help = __doc__

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("name", nargs="?", default="", help="With --document: in place of the document's.")
        parser.add_argument("--team", required=True)
        parser.add_argument(
            "--document", metavar="FILE", help="JSON as PAI-EAS's console takes it; it says all but the team."
        )
        parser.add_argument("--edition", choices=EasEdition.values)
        parser.add_argument(
            "--mount",
            action="append",
            metavar="PATH=FOLDER",
            help="A mount path and the folder of the team's stored files behind it; may be repeated.",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            with transaction.atomic():
                team = team_ensure(options["team"])
                text = self._imported(team, options) if options["document"] else self._created(team, options)
        except InvalidRequestError as error:
            raise CommandError("\n".join(item.message for item in error.errors)) from error
        except PlatformError as error:
            raise CommandError(error.message) from error
        self.stdout.write(text)

    def _created(self, team: Team, options: dict[str, Any]) -> str:
        if not options["name"]:
            raise CommandError("The service's name is missing.")
        mounts = dict(mount.partition("=")[::2] for mount in options["mount"]) if options["mount"] else None
        edition = options["edition"] or EasEdition.API.value
        return service_create(name=options["name"], team=team, edition=edition, mounts=mounts)[1]

    def _imported(self, team: Team, options: dict[str, Any]) -> str:
        if options["edition"] or options["mount"]:
            raise CommandError("The document says the edition and the mounts; leave --edition and --mount out.")
        try:
            document = Path(options["document"]).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise CommandError(f"{options['document']} cannot be read: {error}.") from error
        return service_import(text=document, team=team, name=options["name"])[1]
