"""What a service costs, for its page: pictures and their generation time, deployed instances, and what is on no bill yet."""

from __future__ import annotations

from datetime import UTC
from urllib.parse import urlencode

from django.urls import reverse
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from billing.deployments import UNBILLED, unsettled
from billing.periods import month_bounds
from billing.reports import Period, gpu_hours, usage_rows
from common.database import database_now
from renderjobs.models import EasEdition, EasService


def month_shown(service: EasService) -> SafeString:
    """The running month in a few lines; a constant number of statements."""
    month = f"{database_now().astimezone(UTC):%Y-%m}"
    costs = f"{reverse('admin:billing_costs')}?{urlencode({'month': month, 'service': service.name, 'by': 'job'})}"
    lines = format_html_join("", "<p>{}</p>", ((line,) for line in month_lines(service, month)))
    return format_html('{}<p class="rk-pages"><a href="{}">By job</a></p>', lines, costs)


def month_lines(service: EasService, month: str) -> list[str]:
    start, end = month_bounds(month)
    period = Period(start=start, end=end, team_ids=[service.team_id], of={"service": service.name})
    lines = []
    for row in usage_rows([], period):
        pictures = f"{row['images']} pictures in {row['gpu_us'] / 1e6:.3f} s of GPU time"
        amounts = f"pictures {row['amount'] - row['deployment']:f}, deployed instances {row['deployment']:f}"
        lines.append(f"{pictures}; on the bill {row['amount']:f} {row['currency']} ({amounts})")
    for row in unsettled(period):
        hours = f"{gpu_hours(row):.2f} instance hours in pool {row['pool'] or 'none'}"
        if row["cost"] == UNBILLED:
            lines.append(f"Not billed: {hours}, for no rate card in force has a price for them")
        else:
            lines.append(f"Not settled yet: {hours}, {row['amount']:f} {row['currency']} so far")
    if service.edition == EasEdition.SERVERLESS:
        lines.append("Serverless: only the time of pictures is billed")
    return lines or ["Nothing yet"]
