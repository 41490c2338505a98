"""`manage.py recount_stored_bytes`: count the files of the teams anew, where the counter of their quotas is off."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand

from operations.invariants import one_moment
from renderjobs.stored_files import bytes_astray, bytes_recount


class Command(BaseCommand):
    help = "Put the counter of stored bytes right. It moves with the files by itself; only a mixed upgrade can leave it behind."

    def handle(self, *args: Any, **options: Any) -> None:
        with one_moment():
            astray = bytes_astray()
        bytes_recount(astray)
        for (team, user, token), size in sorted(astray.items()):
            self.stdout.write(f"team {team}, user {user or 'none'}, token {token or 'none'}: {size:+d} bytes")
