"""`manage.py issue_token --team T --user U`: prints an API token, alone. Creates team and user when absent."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import transaction

from accounts.models import Scope
from accounts.services import member_ensure, token_issue
from common.errors import PlatformError


class Command(BaseCommand):
    help = __doc__

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--team", required=True)
        parser.add_argument("--user", required=True)
        parser.add_argument(
            "--scope", action="append", help=f"May be repeated: {', '.join(Scope.values)}. Default: all."
        )

        parser.add_argument(
            "--network",
            action="append",
            default=[],
            help="From where it may be used, such as 10.1.0.0/16; may be repeated.",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            with transaction.atomic():
                membership = member_ensure(team_name=options["team"], user_name=options["user"])
                _, text = token_issue(
                    user=membership.user,
                    team=membership.team,
                    name="command line",
                    scopes=options["scope"],
                    networks=options["network"],
                )
        except PlatformError as error:
            raise CommandError(error.message) from error
        self.stdout.write(text)
