"""`make bench`: the benchmarks that need no GPU. Prints the table of ratios and writes ``benchmarks/results/*.json``."""

from __future__ import annotations

import os
import subprocess
import sys
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
    from benchmarks import control_plane, engine_pairs, png_path, whole_platform
    from benchmarks.pairs import table, write

    chosen = sys.argv[1:]
    ratios = []
    with broker():
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
        ):
            if chosen and benchmark.__name__ not in chosen:
                continue
            ratios.append(benchmark())
            write(ratios[-1])
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
