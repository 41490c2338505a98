"""The model zoo: a list of open models that ships with the platform, and fetching one of them into the intake.

The list is data (``data/zoo.json``); a checksum stands in it only where public documents agree on one. A model is fetched by the
safe fetcher, where the installation allows its host, into the parts of an ordinary upload: in little memory, gone on with after a
failure where the server can, and examined as whatever else is uploaded. One model is fetched at a time.
"""

from __future__ import annotations

import io
import json
import logging
import time
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import F, Q
from django.db.models.functions import Now
from kombu.exceptions import OperationalError

from accounts.models import User
from assets.intake import asset_process
from assets.models import Asset, AssetKind, AssetState, Upload
from assets.uploads import MOST_BYTES, upload_append, upload_begin, upload_give_up, upload_join
from assets.zoo_models import ZOO_OPEN, ZooImport, ZooState
from common.database import now_plus
from common.errors import ConflictError, ForbiddenError, NotFoundError
from common.fetching import (
    Download,
    FetchError,
    FetchForbiddenError,
    FetchPolicy,
    downloading,
    policy_installed,
    target_of,
)

logger = logging.getLogger(__name__)
FOLDER_OF_KIND = {
    AssetKind.CHECKPOINT: "models/Stable-diffusion",
    AssetKind.LORA: "models/Lora",
    AssetKind.VAE: "models/VAE",
    AssetKind.CONTROLNET: "models/ControlNet",
    AssetKind.UPSCALER: "models/RealESRGAN",
    AssetKind.HYPERNETWORK: "models/hypernetworks",
    AssetKind.EMBEDDING: "embeddings",
}
"""Where a file that was fetched by hand lies in a data directory."""
PART_BYTES = 8 * 1024**2
PIECE_BYTES = 256 * 1024
SILENT = timedelta(minutes=5)
"""A worker that has not told its progress for so long is lost."""
TELL_SECONDS = 5.0
MOST_FAILURES = 5
"""Of the server in a row, without a byte between them; then a person has to ask again."""
FETCH_LIMITS = {"max_bytes": MOST_BYTES, "seconds": 12 * 3600.0, "idle_seconds": 30.0}
FILE_TYPES = ("application/octet-stream", "binary/octet-stream", "application/zip", "application/x-zip")


class Overtaken(Exception):
    """Another worker has the import."""


@dataclass(frozen=True, slots=True)
class ZooEntry:
    key: str
    title: str
    kind: str
    family: str
    filename: str
    url: str
    page: str
    licence: str
    size_bytes: int | None
    """As published; None where it is not known here."""
    sha256: str
    """As public documents agree on it; empty where they do not, and the page says so."""
    hints: str
    prompt: str
    gated: bool = False
    """The publisher asks for an account and consent, which only a person can give."""

    @property
    def name(self) -> str:
        return self.filename.rpartition(".")[0]

    @property
    def by_hand(self) -> str:
        place = f"{FOLDER_OF_KIND[AssetKind(self.kind)]}/{self.filename}"
        command = f"manage.py import_asset {self.filename} --kind {self.kind} --public"
        return f"Fetch {self.url} by hand. Put it at {place} of a data directory that is imported, or run {command}."


def zoo_entries() -> tuple[ZooEntry, ...]:
    return _entries_in(settings.ZOO_LIST)


@cache
def _entries_in(path: Path) -> tuple[ZooEntry, ...]:
    return tuple(ZooEntry(**entry) for entry in json.loads(path.read_text()))


def entry_of(key: str) -> ZooEntry:
    """Raises: NotFoundError: The zoo has no such model."""
    found = next((entry for entry in zoo_entries() if entry.key == key), None)
    if found is None:
        raise NotFoundError("There is no such model in the zoo.")
    return found


def zoo_policy() -> FetchPolicy:
    """Hosts and networks as the installation's; size and time as large files need."""
    return replace(policy_installed(), content_types=FILE_TYPES, **FETCH_LIMITS)  # type: ignore[arg-type]


def refusal_of(entry: ZooEntry) -> str:
    """Why the platform does not fetch the model itself; empty when it does. Nothing is connected to."""
    if entry.gated:
        return "Its publisher asks for an account and consent."
    try:
        target_of(entry.url, zoo_policy())
    except FetchForbiddenError as error:
        return str(error)
    return ""


def zoo_import(*, key: str, user: User | None) -> ZooImport:
    """Begin to fetch a model; asked for twice, it is fetched once, and what had failed half-way is gone on with.

    Raises:
        NotFoundError: The zoo has no such model.
        ForbiddenError: It is not fetched from here; the message says what to do by hand.
    """
    entry = entry_of(key)
    if refusal := refusal_of(entry):
        raise ForbiddenError(f"{refusal} {entry.by_hand}")
    try:
        with transaction.atomic():
            run = _half_way(entry) or ZooImport.objects.create(entry=key, started_by=user, created_at=Now())
    except IntegrityError:
        run = ZooImport.objects.filter(entry=key).order_by("-created_at", "-pk")[:1].get()
    transaction.on_commit(lambda: wake(run.pk))
    return run


def _half_way(entry: ZooEntry) -> ZooImport | None:
    """The newest import of the model, made waiting, where it is open or has parts that are worth keeping."""
    last = ZooImport.objects.filter(entry=entry.key).order_by("-created_at", "-pk").first()
    if last is None or last.state in ZOO_OPEN:
        return last
    if last.state == ZooState.FAILED and Upload.objects.filter(asset=last.asset_id).exists():
        waiting = {"state": ZooState.WAITING, "reason": "", "failures": 0, "ended_at": None}
        ZooImport.objects.filter(pk=last.pk, state=ZooState.FAILED).update(**waiting)
        return last
    return None


def wake(run_id: int) -> None:
    from assets.tasks import zoo_import_run

    try:
        zoo_import_run.delay(run_id)
    except OperationalError:
        logger.warning("The broker does not answer; import %s begins when it is looked for.", run_id)


def zoo_waiting() -> list[int]:
    """Imports that nobody works at, oldest first; none while another is worked at."""
    if ZooImport.objects.filter(state=ZooState.RUNNING).exclude(_silent()).exists():
        return []
    rows = ZooImport.objects.filter(Q(state=ZooState.WAITING) | _silent())
    return list(rows.order_by("failures", "created_at", "pk").values_list("pk", flat=True))


def _silent() -> Q:
    return Q(state=ZooState.RUNNING, touched_at__lt=now_plus(-SILENT.total_seconds()))


# --- fetching ---------------------------------------------------------------------------------------------------------


def zoo_run(run_id: int) -> None:
    """Work at an import until it ends or the server lets it down; of one that is worked at, nothing is done."""
    run = _taken(run_id)
    if run is None:
        return
    try:
        asset = _fetched(run, entry_of(run.entry))
    except (Overtaken, ConflictError):  # a part was kept by another worker
        return
    except (FetchForbiddenError, ForbiddenError, NotFoundError) as error:
        _tell_end(run, ZooState.FAILED, str(error))
    except FetchError as error:
        _let_down(run, str(error))
    else:
        approved = asset.state == AssetState.APPROVED
        _tell_end(run, ZooState.ENDED if approved else ZooState.FAILED, asset.reason, asset=asset)
    for waiting in zoo_waiting()[:1]:
        if waiting != run_id:  # one that was let down waits for the next look
            wake(waiting)


def _taken(run_id: int) -> ZooImport | None:
    free = ZooImport.objects.filter(Q(state=ZooState.WAITING) | _silent(), pk=run_id)
    others = ZooImport.objects.filter(state=ZooState.RUNNING).exclude(_silent())
    if others.exists() or not free.update(
        state=ZooState.RUNNING, fence=F("fence") + 1, touched_at=Now(), began_at=Now(), bytes_before=0
    ):
        return None
    return ZooImport.objects.get(pk=run_id)


def _fetched(run: ZooImport, entry: ZooEntry) -> Asset:
    """The asset as the intake left it.

    Raises:
        FetchError: The server let us down; what has arrived is kept.
        FetchForbiddenError: It is not fetched from here, by now or behind a redirect.
    """
    upload = Upload.objects.select_related("asset").filter(asset=run.asset_id).first() if run.asset_id else None
    asset = run.asset
    if asset is None or upload or not (asset.sha256 or asset.state == AssetState.QUARANTINED):
        if upload is None or not upload.is_complete:
            upload = _arrived(run, entry, upload)
        asset = upload_join(upload.pk)
    if asset is None:
        raise Overtaken
    try:
        return asset_process(asset.pk, progress=Meter(run).passed)
    except Asset.DoesNotExist:
        raise Overtaken from None


def _arrived(run: ZooImport, entry: ZooEntry, upload: Upload | None) -> Upload:
    """The upload with all its parts."""
    here = upload.received_bytes if upload else 0
    with downloading(entry.url, policy=zoo_policy(), first_byte=here, version=run.version) as download:
        if upload and (download.begins != here or download.size_bytes != upload.size_bytes):
            upload_give_up(upload)  # the file has changed, or the server gives only the whole
            upload = None
        if upload is None:
            if download.begins:
                raise FetchError("The address's answer is a part of another file than before.")
            upload = _begun(run, entry, download)
        _tell(run, bytes_before=upload.received_bytes)
        meter = Meter(run)
        while not upload.is_complete:
            part = _part(download, meter)
            _tell(run, failures=0)
            upload.received_bytes = upload_append(upload=upload, offset=upload.received_bytes, part=io.BytesIO(part))
    return upload


def _begun(run: ZooImport, entry: ZooEntry, download: Download) -> Upload:
    """Raises: ForbiddenError: It is another file than the list says."""
    if entry.size_bytes and download.size_bytes != entry.size_bytes:
        raise ForbiddenError(
            f"The file there has {download.size_bytes} bytes; the list says {entry.size_bytes}. It is not fetched."
        )
    with transaction.atomic():
        upload = upload_begin(
            uploaded_by=run.started_by,  # type: ignore[arg-type]
            name=entry.filename,
            kind=entry.kind,
            size_bytes=download.size_bytes,
            sha256=entry.sha256,
        )
        run.asset = upload.asset
        _tell(run, asset=upload.asset, version=download.version[:200])
    return upload


def _part(download: Download, meter: Meter) -> bytes:
    part = bytearray()
    while len(part) < PART_BYTES and (piece := download.read(min(PIECE_BYTES, PART_BYTES - len(part)))):
        part += piece
        meter.passed(len(piece))
    if not part:
        raise FetchError("The address's answer ended early.")
    return bytes(part)


class Meter:
    """Tells every few seconds that the worker is alive."""

    def __init__(self, run: ZooImport) -> None:
        self._run, self._told_at = run, time.monotonic()

    def passed(self, _: int) -> None:
        if time.monotonic() - self._told_at >= TELL_SECONDS:
            self._told_at = time.monotonic()
            _tell(self._run)


def _let_down(run: ZooImport, reason: str) -> None:
    """Wait for the next look, unless the server has failed too often without a byte between."""
    failures = ZooImport.objects.values_list("failures", flat=True).get(pk=run.pk) + 1
    if failures >= MOST_FAILURES:
        _tell_end(run, ZooState.FAILED, reason)
        return
    try:
        _tell(run, state=ZooState.WAITING, failures=failures, reason=reason)
    except Overtaken:
        return


def _tell_end(run: ZooImport, state: str, reason: str, **values: Any) -> None:
    try:
        _tell(run, state=state, reason=reason, ended_at=Now(), **values)
    except Overtaken:
        return


def _tell(run: ZooImport, **values: Any) -> None:
    """Raises: Overtaken: The import is not this worker's any more; nothing is written."""
    mine = ZooImport.objects.filter(pk=run.pk, fence=run.fence, state=ZooState.RUNNING)
    if not mine.update(touched_at=Now(), **values):
        raise Overtaken
