"""`manage.py usage_report --month 2026-11`: cost by team, project, member, model, job or image, and what is on nobody's bill."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils.text import slugify

from accounts.models import Team
from billing.exports import columns, csv_lines, report_lines
from billing.reports import DIMENSIONS, Period, is_dimension

DEFAULT = "team,project,member,model"


class Command(BaseCommand):
    help = __doc__

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--month", required=True, help="YYYY-MM, in UTC.")
        parser.add_argument("--team")
        parser.add_argument("--by", default=DEFAULT, help=f"Comma-separated: {', '.join(DIMENSIONS)}, tag:KEY.")
        parser.add_argument("--format", choices=("table", "csv", "json"), default="table")

    def handle(self, *args: Any, **options: Any) -> None:
        start, end = month_bounds(options["month"])
        team_ids = None
        if options["team"]:
            team_ids = list(Team.objects.filter(name=slugify(options["team"])).values_list("pk", flat=True))
            if not team_ids:
                raise CommandError(f"There is no team {options['team']!r}.")
        dimensions = tuple(dict.fromkeys(options["by"].split(",")))
        if wrong := [name for name in dimensions if not is_dimension(name)]:
            raise CommandError(f"--by is {wrong[0]!r}; accepted are {', '.join(DIMENSIONS)}, tag:KEY.")
        lines = report_lines(dimensions, Period(start=start, end=end, team_ids=team_ids))
        getattr(self, f"as_{options['format']}")(dimensions, lines)

    def as_json(self, dimensions: Any, lines: Any) -> None:
        self.stdout.write(json.dumps(list(lines), indent=2))

    def as_csv(self, dimensions: Any, lines: Any) -> None:
        for piece in csv_lines(dimensions, lines):
            self.stdout.write(piece, ending="")

    def as_table(self, dimensions: Any, lines: Any) -> None:
        names, rows = columns(dimensions), list(lines)
        widths = {name: max(len(name), *(len(row[name]) for row in rows), 0) for name in names}
        for row in [{name: name for name in names}, *rows]:
            self.stdout.write("  ".join(row[name].ljust(widths[name]) for name in names).rstrip())


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
