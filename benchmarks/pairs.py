"""The protocol of every number: warm up, alternate A B A B, take the median of the pairwise ratios, keep the spread."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tqdm import tqdm

RESULTS = Path(__file__).resolve().parent / "results"
PACKAGES = ("torch", "diffusers", "django", "celery", "pillow")


@dataclass(frozen=True)
class Ratio:
    """``ratio`` is the median of one side's seconds over the other's, pair by pair."""

    name: str
    meaning: str
    goal: str
    ratio: float
    lowest: float
    highest: float
    pairs: int
    above_seconds: float
    below_seconds: float
    notes: dict[str, Any]


def measured(
    *,
    name: str,
    meaning: str,
    goal: str,
    above: Callable[[], Any],
    below: Callable[[], Any],
    pairs: int = 5,
    notes: dict[str, Any] | None = None,
) -> Ratio:
    """Time ``above`` and ``below`` in turn; the ratio is above ÷ below. Each may return its own seconds instead."""
    above(), below()  # warm-up: imports, caches, first allocations
    times = [(seconds(above), seconds(below)) for _ in tqdm(range(pairs), desc=name, leave=False)]
    ratios = [one / other for one, other in times]
    return Ratio(
        name=name,
        meaning=meaning,
        goal=goal,
        ratio=statistics.median(ratios),
        lowest=min(ratios),
        highest=max(ratios),
        pairs=pairs,
        above_seconds=statistics.median(one for one, _ in times),
        below_seconds=statistics.median(other for _, other in times),
        notes=notes or {},
    )


def seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    own = work()
    return own if isinstance(own, float) else time.perf_counter() - started


def write(ratio: Ratio) -> Path:
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{ratio.name.lower()}.json"
    machine = {"python": platform.python_version(), "processor": platform.machine()}
    versions = {package: version(package) for package in PACKAGES}
    path.write_text(json.dumps({**asdict(ratio), "machine": machine, "versions": versions}, indent=2) + "\n")
    return path


def table(ratios: list[Ratio]) -> str:
    lines = [f"{'':14}{'ratio':>8}{'spread':>18}   {'goal':10} what"]
    for ratio in ratios:
        spread = f"{ratio.lowest:.3f}–{ratio.highest:.3f}"
        lines.append(f"{ratio.name:14}{ratio.ratio:8.3f}{spread:>18}   {ratio.goal:10} {ratio.meaning}")
    return "\n".join(lines)
