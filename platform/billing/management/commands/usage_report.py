"""`manage.py usage_report --month 2026-11`: cost by team, project, member, model, job or image, and what is on nobody's bill."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils.text import slugify

from accounts.models import Team
from billing.exports import columns, csv_lines, json_lines, report_lines
from billing.periods import month_bounds
from billing.reports import DIMENSIONS, Period, is_dimension
from common.errors import InvalidRequestError

DEFAULT = "team,project,member,model"


class Command(BaseCommand):
    help = __doc__

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--month", required=True, help="YYYY-MM, in UTC.")
        parser.add_argument("--team")
        parser.add_argument("--by", default=DEFAULT, help=f"Comma-separated: {', '.join(DIMENSIONS)}, tag:KEY.")
        parser.add_argument("--format", choices=("table", "csv", "json"), default="table")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            start, end = month_bounds(options["month"])
        except InvalidRequestError as error:
            raise CommandError(f"--{error.errors[0].message}") from error
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
        for piece in json_lines(lines):
            self.stdout.write(piece, ending="")

    def as_csv(self, dimensions: Any, lines: Any) -> None:
        for piece in csv_lines(dimensions, lines):
            self.stdout.write(piece, ending="")

    def as_table(self, dimensions: Any, lines: Any) -> None:
        names, rows = columns(dimensions), list(lines)
        widths = {name: max(len(name), *(len(row[name]) for row in rows), 0) for name in names}
        for row in [{name: name for name in names}, *rows]:
            self.stdout.write("  ".join(row[name].ljust(widths[name]) for name in names).rstrip())
