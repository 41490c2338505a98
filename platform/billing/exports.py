"""Reports as flat lines for people and spreadsheets: what is on the bills, then what is not, or not yet, in the same columns."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from billing.deployments import unsettled
from billing.reports import Period, unallocated, usage_rows
from common.spreadsheets import Echo, harmless

NUMBERS = ("images", "gpu_seconds", "amount", "currency", "deployment")
COST = "cost"
"""The column that tells what is on a bill (``images``) from what nobody is charged for, and from what is not settled yet."""


def columns(dimensions: Sequence[str]) -> tuple[str, ...]:
    return (COST, *dimensions, *NUMBERS)


def report_lines(dimensions: Sequence[str], period: Period) -> Iterator[dict[str, Any]]:
    """Every line of a report, as texts; empty where a line has no such value."""
    for row in usage_rows(dimensions, period):
        yield line(dimensions, {**row, COST: "images"})
    for row in (*unallocated(period), *unsettled(period)):
        yield line(dimensions, {**row, "images": ""})


def line(dimensions: Sequence[str], row: dict[str, Any]) -> dict[str, str]:
    values = {**row, "gpu_seconds": f"{row['gpu_us'] / 1e6:.6f}", "amount": f"{row['amount']:.6f}"}
    values["deployment"] = f"{row['deployment']:.6f}" if "deployment" in row else ""
    return {name: "" if values.get(name) is None else str(values[name]) for name in columns(dimensions)}


def csv_lines(dimensions: Sequence[str], lines: Iterable[dict[str, str]]) -> Iterator[str]:
    """The report as CSV, piece by piece: a report by image is never in memory as a whole."""
    writer = csv.DictWriter(Echo(), columns(dimensions), lineterminator="\n")
    yield writer.writeheader()  # type: ignore[misc]
    for row in lines:
        yield writer.writerow({name: text if name in NUMBERS else harmless(text) for name, text in row.items()})


def json_lines(lines: Iterable[dict[str, str]]) -> Iterator[str]:
    """The report as a JSON list, a line an object, piece by piece like the CSV."""
    start = "["
    for row in lines:
        yield f"{start}\n{json.dumps(row)}"
        start = ","
    yield "[]\n" if start == "[" else "\n]\n"
