"""`make bench`: prints the table of ratios and writes ``benchmarks/results/*.json``; those that need a card say so without one."""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager


def main() -> None:
    scratch = tempfile.TemporaryDirectory(prefix="renderkiln-bench-")
    os.environ["DATA_DIR"] = scratch.name
    os.environ.pop("DATABASE_URL", None)
    os.environ.pop("REDIS_URL", None)
    from manage import prepare

    prepare()
    import django

    django.setup()
    from benchmarks import control_plane, engine_pairs, on_card, png_path, whole_platform
    from benchmarks.pairs import Ratio, table, write

    benchmarks = {
        benchmark.__name__: benchmark
        for benchmark in (
            control_plane.submission,
            control_plane.claim,
            png_path.natural,
            png_path.flat,
            png_path.natural_without_wheel,
            png_path.flat_without_wheel,
            engine_pairs.sixteen_requests,
            engine_pairs.one_request,
            engine_pairs.lora_changes,
            engine_pairs.exact_mode,
            engine_pairs.shared_passes_of_the_engine,
            whole_platform.against_bare_engine,
            whole_platform.against_engine_on_the_same_cores,
            whole_platform.shared_passes,
            whole_platform.accept_to_first_step,
            whole_platform.worker_start,
            *on_card.BENCHMARKS,
        )
    }
    asking = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    asking.add_argument("names", nargs="*", metavar="NAME", help=f"all, or some of: {', '.join(benchmarks)}")
    chosen = asking.parse_args().names or list(benchmarks)
    if unknown := set(chosen) - benchmarks.keys():
        asking.error(f"There is no {', '.join(sorted(unknown))}; --help names them all.")
    ratios: list[Ratio] = []
    with broker():
        for name, benchmark in benchmarks.items():
            if name not in chosen:
                continue
            if benchmark in on_card.BENCHMARKS and not on_card.is_there():
                print(f"{name} ({on_card.BENCHMARKS[benchmark]}) needs a card, and there is none.")
                continue
            found = benchmark()
            for ratio in [found] if isinstance(found, Ratio) else found:
                ratios.append(ratio)
                write(ratio)
    print(table(ratios))


@contextmanager
def broker() -> Iterator[None]:
    """The embedded Redis: submitting wakes the workers through it."""
    from operations.launcher import broker_answers, broker_command

    process = subprocess.Popen(broker_command(), stdout=subprocess.DEVNULL)
    try:
        while not broker_answers():
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait(10)


if __name__ == "__main__":
    main()
