"""`manage.py usage_report --month 2026-11`: cost per team, project, member and model."""

from __future__ import annotations

import csv
import json
from datetime import UTC, datetime
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils.text import slugify

from accounts.models import Team
from billing.reports import usage_by

DIMENSIONS = ("team", "project", "member", "model")
COLUMNS = (*DIMENSIONS, "images", "gpu_seconds", "amount", "currency")


class Command(BaseCommand):
    help = __doc__

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--month", required=True, help="YYYY-MM, in UTC.")
        parser.add_argument("--team")
        parser.add_argument("--format", choices=("table", "csv", "json"), default="table")

    def handle(self, *args: Any, **options: Any) -> None:
        start, end = month_bounds(options["month"])
        team_ids = None
        if options["team"]:
            team_ids = list(Team.objects.filter(name=slugify(options["team"])).values_list("pk", flat=True))
            if not team_ids:
                raise CommandError(f"There is no team {options['team']!r}.")
        rows = [printable(row) for row in usage_by(DIMENSIONS, start=start, end=end, team_ids=team_ids)]
        getattr(self, f"as_{options['format']}")(rows)

    def as_json(self, rows: list[dict[str, str]]) -> None:
        self.stdout.write(json.dumps(rows, indent=2))

    def as_csv(self, rows: list[dict[str, str]]) -> None:
        writer = csv.DictWriter(self.stdout, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)

    def as_table(self, rows: list[dict[str, str]]) -> None:
        widths = {name: max(len(name), *(len(str(row[name])) for row in rows), 0) for name in COLUMNS}
        for row in [{name: name for name in COLUMNS}, *rows]:
            self.stdout.write("  ".join(str(row[name]).ljust(widths[name]) for name in COLUMNS).rstrip())


def printable(row: dict[str, Any]) -> dict[str, Any]:
    """A report row with GPU time in seconds and empty text for no project."""
    # Six places as everywhere: SQLite adds in floating point and hands out more digits than the book has.
    values = {**row, "gpu_seconds": f"{row['gpu_us'] / 1e6:.6f}", "amount": f"{row['amount']:.6f}"}
    return {name: "" if values[name] is None else values[name] for name in COLUMNS}


def month_bounds(text: str) -> tuple[datetime, datetime]:
    """The month's first moment and the next month's, UTC.

    Raises:
        CommandError: Not a month.
    """
    try:
        start = datetime.strptime(text, "%Y-%m").replace(tzinfo=UTC)
    except ValueError as error:
        raise CommandError(f"--month is {text!r}; accepted is YYYY-MM.") from error
    return start, (
        start.replace(year=start.year + 1, month=1) if start.month == 12 else start.replace(month=start.month + 1)
    )
