"""Intake that is cut off, repeated or run twice at once ends as if it had run once."""

from __future__ import annotations

import hashlib
import io
from datetime import timedelta
from pathlib import Path

import pytest
from django.core.files.base import ContentFile
from django.core.files.storage import storages
from django.utils import timezone

from assets.hashing import HashedStream
from assets.intake import asset_process, asset_receive
from assets.models import Asset
from assets.tasks import process
from tests.weights import a_checkpoint_file

pytestmark = pytest.mark.django_db
DATA = a_checkpoint_file()
SHA256 = hashlib.sha256(DATA).hexdigest()
FINAL = f"checkpoint/{SHA256}.safetensors"


class Killed(BaseException):
    """Stands for a signal: nothing in the product catches it."""


def received(name: str = "dream", **options: object) -> Asset:
    return asset_receive(file=io.BytesIO(DATA), name=name, kind="checkpoint", **options)


def content(asset: Asset) -> bytes:
    with storages["assets"].open(asset.file_key) as file:
        return file.read()


def stored(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "assets").rglob("*") if path.is_file())


def killed(_: int) -> None:
    raise Killed


@pytest.fixture(params=["disk", "object store"])
def either_storage(request, settings):
    if request.param == "object store":
        backend = {"BACKEND": "tests.assets.object_store.ObjectStore"}
        settings.STORAGES = {**settings.STORAGES, "assets": backend}


def test_s18_the_hash_is_known_when_the_upload_ends(either_storage):
    asset = received()
    assert (asset.state, asset.sha256, asset.size_bytes) == ("received", SHA256, len(DATA))


def test_an_upload_becomes_whole_and_its_draft_goes(either_storage):
    asset = asset_process(received().pk)
    assert asset.file_key == FINAL and content(asset) == DATA
    assert not storages["assets"].exists(f"quarantine/{asset.pk}/upload")


def test_s18_a_file_that_changed_in_the_storage_is_refused(tmp_path):
    asset = received()
    (tmp_path / "assets" / asset.file_key).write_bytes(a_checkpoint_file(b"\1"))
    assert "not what was uploaded" in asset_process(asset.pk).reason and stored(tmp_path) == []


def test_a_process_killed_while_hashing_is_finished_by_the_next(either_storage):
    asset = received()
    with pytest.raises(Killed):
        asset_process(asset.pk, progress=killed)
    assert content(asset_process(asset.pk)) == DATA


def test_a_process_killed_after_placing_the_file_is_finished_by_the_next(tmp_path):
    asset = received()
    (tmp_path / "assets/checkpoint").mkdir()
    (tmp_path / "assets" / asset.file_key).rename(tmp_path / "assets" / FINAL)
    Asset.objects.update(state="recognised")
    assert asset_process(asset.pk).state == "approved" and stored(tmp_path) == [f"{SHA256}.safetensors"]


def test_a_process_killed_before_it_removed_the_draft_is_finished_by_the_next(tmp_path):
    asset = asset_process(received().pk)
    storages["assets"].save(f"quarantine/{asset.pk}/upload", ContentFile(DATA))
    assert asset_process(asset.pk) == asset and stored(tmp_path) == [f"{SHA256}.safetensors"]


def test_a_half_written_object_in_the_final_place_is_replaced():
    storages["assets"].save(FINAL, ContentFile(DATA[:100]))
    assert content(asset_process(received().pk)) == DATA


def test_importing_again_mends_a_stored_file_that_was_damaged_or_lost(tmp_path):
    asset = asset_process(received().pk)
    for damage in (lambda path: path.write_bytes(DATA[:100]), Path.unlink):
        damage(tmp_path / "assets" / FINAL)
        assert asset_process(received().pk) == asset and content(asset) == DATA


def test_two_processes_at_once_approve_one_asset(either_storage):
    asset = received()
    seen = []
    outer = asset_process(asset.pk, progress=lambda _: seen.append(asset_process(asset.pk)))
    assert outer == seen[0] and outer.approved_at == seen[0].approved_at and content(outer) == DATA


def test_an_approved_asset_never_goes_back():
    asset = received()
    states = []

    def other_process(_: int) -> None:
        asset_process(asset.pk)
        states.append(Asset.objects.get().state)

    asset_process(asset.pk, progress=other_process)
    assert states == ["approved"] and Asset.objects.get().state == "approved"


def test_the_same_file_uploaded_twice_at_once_is_one_asset(tmp_path):
    first, second = received(), received()
    outer = asset_process(first.pk, progress=lambda _: asset_process(second.pk))
    assert outer == Asset.objects.get() and stored(tmp_path) == [f"{SHA256}.safetensors"]


def test_only_one_checkpoint_becomes_the_default():
    first, second = received("first"), received("second")
    asset_process(first.pk, progress=lambda _: asset_process(second.pk))
    assert Asset.objects.filter(is_default=True).count() == 1


def test_an_upload_that_fails_leaves_nothing(tmp_path):
    class Broken(io.BytesIO):
        def read(self, *size: int) -> bytes:
            raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space"):
        asset_receive(file=Broken(DATA), name="dream", kind="checkpoint")
    assert not Asset.objects.exists() and stored(tmp_path) == []


def test_an_upload_that_goes_on_is_left_alone_and_one_that_was_cut_off_is_refused():
    asset = Asset.objects.create(kind="checkpoint", name="dream")
    assert asset_process(asset.pk).state == "received"
    Asset.objects.update(created_at=timezone.now() - timedelta(hours=7))
    assert "was cut off" in asset_process(asset.pk).reason


def test_the_task_may_come_twice_also_for_a_repeated_upload():
    first, second = received(), received()
    for pk in (first.pk, second.pk, second.pk, first.pk):
        process.run(pk)
    assert Asset.objects.get().state == "approved"


def test_each_byte_is_hashed_once_however_often_it_is_read():
    stream = HashedStream(io.BytesIO(DATA))
    stream.read(100)
    stream.seek(50)
    stream.read()
    stream.seek(0)
    stream.read()
    assert stream.sha256 == SHA256 and stream.size == len(DATA)
