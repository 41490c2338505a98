"""Reports as flat lines for people and spreadsheets: charges, then what is on no team's bill, in the same columns."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from billing.reports import Period, unallocated, usage_rows

NUMBERS = ("images", "gpu_seconds", "amount", "currency")
COST = "cost"
"""The column that tells a charge (``images``) from what nobody is charged for."""


def columns(dimensions: Sequence[str]) -> tuple[str, ...]:
    return (COST, *dimensions, *NUMBERS)


def report_lines(dimensions: Sequence[str], period: Period) -> Iterator[dict[str, Any]]:
    """Every line of a report, as texts; empty where a line has no such value."""
    for row in usage_rows(dimensions, period):
        yield line(dimensions, {**row, COST: "images"})
    for row in unallocated(period):
        yield line(dimensions, {**row, "images": ""})


def line(dimensions: Sequence[str], row: dict[str, Any]) -> dict[str, str]:
    values = {**row, "gpu_seconds": f"{row['gpu_us'] / 1e6:.6f}", "amount": f"{row['amount']:.6f}"}
    return {name: "" if values.get(name) is None else str(values[name]) for name in columns(dimensions)}


class _Echo:
    """A file that hands back what is written."""

    def write(self, text: str) -> str:
        return text


def csv_lines(dimensions: Sequence[str], lines: Iterable[dict[str, str]]) -> Iterator[str]:
    """The report as CSV, piece by piece: a report by image is never in memory as a whole."""
    writer = csv.DictWriter(_Echo(), columns(dimensions), lineterminator="\n")
    yield writer.writeheader()  # type: ignore[misc]
    for row in lines:
        yield writer.writerow({name: text if name in NUMBERS else harmless(text) for name, text in row.items()})


def harmless(text: str) -> str:
    """A name that a spreadsheet would take for a formula, as plain text."""
    return f"'{text}" if text.startswith(("=", "+", "@", "-", "\t", "\r")) else text
