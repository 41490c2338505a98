"""`manage.py create_service_account NAME --team T`: makes a service account in the team and prints its token, alone."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import transaction

from accounts.services import member_ensure, token_issue
from common.errors import PlatformError


class Command(BaseCommand):
    help = __doc__

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("name")
        parser.add_argument("--team", required=True)

    @transaction.atomic
    def handle(self, *args: Any, **options: Any) -> None:
        name = options["name"]
        try:
            membership = member_ensure(team_name=options["team"], user_name=name, service_account=True)
        except PlatformError as error:
            raise CommandError(error.message) from error
        if not membership.user.is_service_account:
            raise CommandError(f"{name!r} is a person's name already; a service needs a name of its own.")
        _, text = token_issue(user=membership.user, team=membership.team, name=f"service {name}"[:120])
        self.stdout.write(text)
