"""B6 (submission) and B9 (claim), on the database the embedded form uses. Nothing is rendered here."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from django.conf import settings
from django.core.management import call_command
from django.db import connection, transaction

from accounts.authentication import Caller
from benchmarks.pairs import Ratio, measured
from common.identifiers import uuid7

IMAGES = 10_000


def submission() -> Ratio:
    """B6: one job of 10 000 images, set-based, against a save per row."""
    with database("submission"):
        from renderjobs.models import RenderImage, RenderJob
        from renderjobs.models.jobs import Source
        from renderjobs.submission import job_submit

        caller = bench_caller()

        def set_based() -> None:
            job_submit(caller=caller, request=a_request(n_iter=IMAGES), source=Source.API)

        def save_per_row() -> None:
            job, image = RenderJob.objects.first(), RenderImage.objects.first()
            job.pk, job._state.adding = uuid7(), True
            with transaction.atomic():
                job.save(force_insert=True)
                for index in range(IMAGES):
                    image.pk, image.job, image.index, image._state.adding = None, job, index, True
                    image.save(force_insert=True)

        set_based()  # gives the other side a row to repeat
        return measured(
            name="B6",
            meaning=f"save per row ÷ submission of {IMAGES} images",
            goal="≥ 20",
            above=save_per_row,
            below=set_based,
            notes={"database": connection.vendor},
        )


def claim() -> Ratio:
    """B9: claiming a micro-batch with 100 000 images waiting against 1 000."""
    for name, count in (("few", 1_000), ("many", 100_000)):
        with database(name):
            fill(count)
    return measured(
        name="B9",
        meaning="claim at 100 000 waiting ÷ claim at 1 000",
        goal="≤ 2",
        above=lambda: claims_in("many"),
        below=lambda: claims_in("few"),
        pairs=9,
        notes={"database": "sqlite", "claims_per_side": 20},
    )


def fill(count: int) -> None:
    from renderjobs.models.jobs import Source
    from renderjobs.submission import job_submit

    caller = bench_caller()
    for _ in range(count // 1_000):
        job_submit(caller=caller, request=a_request(n_iter=1_000), source=Source.API)


def claims_in(name: str) -> float:
    """Seconds of 20 claims, rolled back so that the number waiting stays."""
    import time

    from fleet.models import Pool
    from fleet.services import worker_register
    from renderjobs.claims import microbatch_claim

    with database(name):
        pool = Pool.objects.get()
        worker = worker_register(name="bench", pool=pool, device="cpu")
        spent = 0.0
        for _ in range(20):
            with transaction.atomic():
                started = time.perf_counter()
                assert microbatch_claim(worker_id=worker.pk, pool_id=pool.pk)
                spent += time.perf_counter() - started
                transaction.set_rollback(True)
        return spent


@contextmanager
def database(name: str) -> Iterator[None]:
    """Work on a SQLite file of its own, made and bootstrapped on first use."""
    path = Path(settings.DATA_DIR) / f"{name}.sqlite3"
    connection.close()
    connection.settings_dict["NAME"] = str(path)
    logging.disable(logging.WARNING)
    if not path.exists():
        call_command("migrate", verbosity=0)
        call_command("bootstrap", verbosity=0)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def bench_caller() -> Caller:
    from accounts.services import member_ensure
    from assets.models import Asset, AssetKind, AssetState

    Asset.objects.get_or_create(
        kind=AssetKind.CHECKPOINT,
        name="bench",
        sha256="0" * 64,
        defaults={"short_hash": "0" * 10, "state": AssetState.APPROVED, "is_default": True},
    )
    membership = member_ensure(team_name="bench", user_name="bench")
    return Caller(user=membership.user, team=membership.team)


def a_request(**changes):  # noqa: ANN201  RenderRequest needs the settings, so it is imported late
    from renderjobs.request import RenderRequest

    return RenderRequest.build({"prompt": "a red circle", "seed": 1, "width": 64, "height": 64, **changes})
